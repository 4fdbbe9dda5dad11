package health

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Reasons of what the probes find. That of an Xid is "Xid" with its number.
const (
	ReasonLost             = "GPULost"
	ReasonRemappingPending = "RowRemappingPending"
	ReasonRemappingFailed  = "RowRemappingFailed"
	ReasonUncorrectedECC   = "UncorrectableECC"
)

const defaultSteady = 30 * time.Second

// futureAllowed is by how much an operator's clock may be ahead of the node's.
const futureAllowed = time.Minute

// problem is a condition, and what decides when it ends.
type problem struct {
	gpu.Condition
	// Xid is 0 for what a probe finds.
	Xid uint64 `json:"xid,omitempty"`
	// Partitioned is true where the board had, or may have had, MIG instances for users.
	Partitioned bool `json:"partitioned,omitempty"`
	// Last is when it happened last, or, for what a probe finds, got worse last.
	Last time.Time `json:"last"`
	// Count is how often it was counted, where the board counts.
	Count uint64 `json:"count,omitempty"`
	// Well is since when the board has been well again; zero: it is not.
	Well time.Time `json:"well,omitzero"`
	// Accepted is true where an operator has cleared what a probe finds still.
	Accepted bool `json:"accepted,omitempty"`
}

func (p problem) is(device gpu.Device, reason string) bool {
	return p.Device == device && p.Reason == reason
}

// tracker turns what happens into conditions. It reads no clock and touches
// nothing: every method is told what it needs to know.
type tracker struct {
	policy policy
	// steady is for how long a board must be well again to be offered again. One
	// that is lost and found by turns is lost all the while.
	steady   time.Duration
	problems []problem
	// resets are those that the session had seen of each board at its last probe.
	resets map[string]int
}

func newTracker(p policy) *tracker {
	return &tracker{policy: p, steady: defaultSteady, resets: map[string]int{}}
}

// conditions are the problems that have an effect, in the order in which they came.
func (t *tracker) conditions() []gpu.Condition {
	var all []gpu.Condition
	for _, p := range t.problems {
		if !p.Accepted {
			all = append(all, p.Condition)
		}
	}
	return all
}

func (t *tracker) find(device gpu.Device, reason string) *problem {
	if i := slices.IndexFunc(t.problems, func(p problem) bool { return p.is(device, reason) }); i >= 0 {
		return &t.problems[i]
	}
	return nil
}

// second is as precise as conditions are: the API keeps seconds, and operators write them.
func second(now time.Time) time.Time { return now.UTC().Truncate(time.Second) }

// heard takes in an Xid. The board as it is now tells which placement the event
// is about and who is concerned; without it, it is about the whole board.
func (t *tracker) heard(now time.Time, e gpu.Event, board *gpu.GPU) {
	partitioned := board == nil || board.MIG.Current
	effect := t.policy.effect(e.Xid, partitioned)
	if effect == gpu.EffectNone {
		return
	}
	device := gpu.Device{GPU: e.GPU}
	if board != nil && e.GPUInstance != gpu.Whole {
		for _, i := range board.Instances {
			if i.ID == e.GPUInstance {
				device = gpu.Device{Type: gpu.TypeMIG, GPU: e.GPU, Profile: i.Profile, Placement: i.Placement}
			}
		}
	}
	reason := fmt.Sprintf("Xid%d", e.Xid)
	p := t.find(device, reason)
	if p == nil {
		t.problems = append(t.problems, problem{
			Condition: gpu.Condition{Device: device, Reason: reason, Message: t.policy.describe(e.Xid, device), Since: second(now)}, Xid: e.Xid,
		})
		p = &t.problems[len(t.problems)-1]
	}
	p.Partitioned, p.Effect, p.Last, p.Well = partitioned, effect, second(now), time.Time{}
}

// probed takes in what the boards answered. A board that says nothing about
// something, or does not answer for another reason than that it is lost, changes nothing.
func (t *tracker) probed(now time.Time, boards []gpu.Health, unread gpu.ReadErrors) {
	for _, e := range unread {
		if e.UUID != "" && errors.Is(e.Err, gpu.ErrLost) {
			t.found(now, e.UUID, ReasonLost, gpu.EffectNoExecute, 1)
			t.setWell(e.UUID, func(problem) bool { return true }, time.Time{})
		}
	}
	for _, h := range boards {
		was := t.find(gpu.Device{GPU: h.GPU}, ReasonLost)
		returned := was != nil && was.Well.IsZero()
		resets, known := t.resets[h.GPU]
		t.resets[h.GPU] = h.Resets
		if returned || known && resets != h.Resets {
			t.setWell(h.GPU, func(p problem) bool { return p.Xid != 0 }, second(now))
		}
		t.found(now, h.GPU, ReasonLost, gpu.EffectNoExecute, 0)
		if r := h.Remapping; r != nil {
			t.found(now, h.GPU, ReasonRemappingPending, gpu.EffectNoSchedule, one(r.Pending))
			t.found(now, h.GPU, ReasonRemappingFailed, gpu.EffectNoSchedule, one(r.Failed))
		}
		if h.UncorrectedECC != nil {
			t.found(now, h.GPU, ReasonUncorrectedECC, gpu.EffectNoSchedule, *h.UncorrectedECC)
		}
	}
}

func one(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func (t *tracker) setWell(uuid string, which func(problem) bool, since time.Time) {
	for i := range t.problems {
		if p := &t.problems[i]; p.Device.GPU == uuid && which(*p) {
			p.Well = since
		}
	}
}

// found takes in that something was counted so often on a board, since its last reset where the board counts at all.
func (t *tracker) found(now time.Time, uuid, reason string, effect gpu.Effect, count uint64) {
	device := gpu.Device{GPU: uuid}
	p := t.find(device, reason)
	switch {
	case count == 0 && p == nil:
	case count == 0:
		if p.Well.IsZero() {
			p.Well = second(now)
		}
	case p == nil:
		t.problems = append(t.problems, problem{
			Condition: gpu.Condition{Device: device, Reason: reason, Effect: effect, Message: fmt.Sprintf(messages[reason], uuid), Since: second(now)},
			Last:      second(now), Count: count,
		})
	case count != p.Count || !p.Well.IsZero():
		// It has come again: what an operator has accepted is not this.
		p.Last, p.Count, p.Well, p.Accepted = second(now), count, time.Time{}, false
	}
}

const orAccepted = ", or an operator accepts it with the node's annotation " + ClearAnnotation

var messages = map[string]string{
	ReasonLost:             "GPU %s is lost: look for its Xid in the kernel log, and reset it or reboot the node",
	ReasonRemappingPending: "broken rows of the memory of GPU %s are replaced with its next reset: drain and reset it" + orAccepted,
	ReasonRemappingFailed:  "a broken row of the memory of GPU %s could not be replaced: have the GPU replaced" + orAccepted,
	ReasonUncorrectedECC:   "GPU %s has had uncorrectable memory errors since its last reset: drain and reset it" + orAccepted,
}

// expire ends what is over.
func (t *tracker) expire(now time.Time) {
	t.problems = slices.DeleteFunc(t.problems, func(p problem) bool {
		well := !p.Well.IsZero() && now.Sub(p.Well) >= t.steady
		return well || passes(p.Xid) && now.Sub(p.Last) >= t.policy.quietTime
	})
}

// clear does what an operator asks for: see ClearAnnotation. A lost board is lost, whatever anybody asks for.
func (t *tracker) clear(now time.Time, request string) error {
	if request == "" {
		return nil
	}
	text, uuid := request, ""
	if of, at, ok := strings.Cut(request, "@"); ok {
		uuid, text = of, at
	}
	until, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return fmt.Errorf("annotation %s=%q: it is to be a time such as %s, or <GPU UUID>@<time>", ClearAnnotation, request, second(now).Format(time.RFC3339))
	}
	if until.After(now.Add(futureAllowed)) {
		return fmt.Errorf("annotation %s=%q: the time is to come yet, and what happens until then is not known", ClearAnnotation, request)
	}
	concerns := func(p problem) bool { return (uuid == "" || p.Device.GPU == uuid) && !p.Last.After(until) }
	for i := range t.problems {
		if p := &t.problems[i]; p.Xid == 0 && p.Reason != ReasonLost && concerns(*p) {
			p.Accepted = true
		}
	}
	t.problems = slices.DeleteFunc(t.problems, func(p problem) bool { return p.Xid != 0 && concerns(p) })
	return nil
}

// restore takes over what was saved, in this boot of the node or in an earlier
// one, after which every board has been reset.
func (t *tracker) restore(now time.Time, saved []problem, sameBoot bool) {
	t.problems = nil
	for _, p := range saved {
		if p.Xid != 0 {
			p.Effect = t.policy.effect(p.Xid, p.Partitioned)
			p.Message = t.policy.describe(p.Xid, p.Device)
			if !sameBoot || p.Effect == gpu.EffectNone {
				continue
			}
		}
		if !sameBoot && p.Well.IsZero() {
			p.Well = second(now)
		}
		t.problems = append(t.problems, p)
	}
}

// follow takes over what another process of the node has saved, and keeps what
// it may not have heard of then. What it had and has no more, it has cleared.
func (t *tracker) follow(now time.Time, saved []problem, at time.Time) {
	own := t.problems
	t.restore(now, saved, true)
	for _, p := range own {
		if !p.Last.Before(second(at)) && t.find(p.Device, p.Reason) == nil {
			t.problems = append(t.problems, p)
		}
	}
}
