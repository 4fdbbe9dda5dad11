package health

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
)

const uuid, other = "GPU-1", "GPU-2"

var (
	start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	whole = gpu.Device{GPU: uuid}
	// placed is where the board has GPU instance 9.
	placed = gpu.Device{Type: gpu.TypeMIG, GPU: uuid, Profile: "1g.10gb", Placement: gpu.Placement{Start: 4, Size: 1}}
	// board is in MIG mode, with that instance.
	board = &gpu.GPU{UUID: uuid, MIG: gpu.MIGMode{Capable: true, Current: true}, Instances: []gpu.Instance{
		{GPU: uuid, ID: 3, Profile: "3g.40gb", Placement: gpu.Placement{Start: 0, Size: 4}},
		{GPU: uuid, ID: 9, Profile: placed.Profile, Placement: placed.Placement},
	}}
)

func after(d time.Duration) time.Time { return start.Add(d) }

func policyOf(xids map[string]gpu.Effect) policy {
	h := (*configv1alpha1.NodeConfiguration)(nil).HealthPolicy()
	h.Xids = xids
	return newPolicy(h)
}

func xidEvent(number uint64) gpu.Event {
	return gpu.Event{GPU: uuid, Xid: number, GPUInstance: gpu.Whole, ComputeInstance: gpu.Whole}
}

// having is a tracker that has heard those Xids of the whole board at the start.
func having(numbers ...uint64) *tracker {
	t := newTracker(policyOf(nil))
	for _, n := range numbers {
		t.heard(start, xidEvent(n), nil)
	}
	return t
}

func (t *tracker) reasons() []string {
	all := []string{}
	for _, c := range t.conditions() {
		all = append(all, c.Reason)
	}
	return all
}

func healthy(change ...func(*gpu.Health)) []gpu.Health {
	zero := uint64(0)
	h := gpu.Health{GPU: uuid, Remapping: &gpu.RowRemapping{}, UncorrectedECC: &zero}
	for _, c := range change {
		c(&h)
	}
	return []gpu.Health{h}
}

func lostError() gpu.ReadErrors {
	return gpu.ReadErrors{{UUID: uuid, Err: fmt.Errorf("read: %w", gpu.ErrLost)}}
}

// probeUntil probes as often as the monitor does, and ends what is over.
func (t *tracker) probeUntil(from, until time.Duration, boards []gpu.Health, unread gpu.ReadErrors) {
	for d := from; d <= until; d += defaultInterval {
		t.probed(after(d), boards, unread)
		t.expire(after(d))
	}
}

// The defaults, number by number: who is evicted, who is kept away, and what is no news of the board.
func TestDefaults(t *testing.T) {
	evicting := []uint64{79, 95}
	applications := []uint64{13, 31, 43, 45, 68, 109}
	lasting := []uint64{46, 48, 64, 74, 79, 95, 119, 120}
	p := policyOf(nil)
	for number := uint64(1); number < 300; number++ {
		want := gpu.EffectNoSchedule
		switch {
		case slices.Contains(evicting, number):
			want = gpu.EffectNoExecute
		case slices.Contains(applications, number):
			want = gpu.EffectNone
		}
		require.Equal(t, want, p.effect(number, false), number)
		require.Equal(t, want, p.effect(number, true), number)
		require.Equal(t, !slices.Contains(lasting, number), passes(number), number)
	}
	known := slices.Sorted(maps.Keys(xids))
	require.ElementsMatch(t, slices.Compact(slices.Sorted(slices.Values(slices.Concat(applications, lasting, []uint64{94})))), known)
	require.False(t, passes(0))
}

func TestConfiguredEffects(t *testing.T) {
	p := policyOf(map[string]gpu.Effect{"79": gpu.EffectNoSchedule, "48": gpu.EffectNone, "13": gpu.EffectNoExecute, "74": gpu.EffectNoExecute})
	require.Equal(t, gpu.EffectNoSchedule, p.effect(79, false))
	require.Equal(t, gpu.EffectNone, p.effect(48, false))
	require.Equal(t, gpu.EffectNoExecute, p.effect(13, true))
	require.Equal(t, gpu.EffectNoExecute, p.effect(74, false))
	require.Equal(t, gpu.EffectNoSchedule, p.effect(74, true), "NVLink is not the tenants of instances' business")
}

func TestAttribution(t *testing.T) {
	for name, c := range map[string]struct {
		xid    uint64
		gi     int
		board  *gpu.GPU
		want   gpu.Device
		effect gpu.Effect
	}{
		"to an instance":              {94, 9, board, placed, gpu.EffectNoSchedule},
		"to an instance, with effect": {95, 9, board, placed, gpu.EffectNoExecute},
		"to the board":                {95, gpu.Whole, board, whole, gpu.EffectNoExecute},
		"to an instance that is gone": {94, 5, board, whole, gpu.EffectNoSchedule},
		"of a board that is unread":   {94, 9, nil, whole, gpu.EffectNoSchedule},
		"NVLink, in MIG mode":         {74, gpu.Whole, board, whole, gpu.EffectNoSchedule},
		"NVLink, unread":              {74, gpu.Whole, nil, whole, gpu.EffectNoSchedule},
		"NVLink, of the whole board":  {74, gpu.Whole, &gpu.GPU{UUID: uuid}, whole, gpu.EffectNoExecute},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTracker(policyOf(map[string]gpu.Effect{"74": gpu.EffectNoExecute}))
			e := xidEvent(c.xid)
			e.GPUInstance = c.gi
			tr.heard(start.Add(time.Millisecond), e, c.board)
			got := tr.conditions()
			require.Len(t, got, 1)
			require.Equal(t, c.want, got[0].Device)
			require.Equal(t, c.effect, got[0].Effect)
			require.Equal(t, fmt.Sprintf("Xid%d", c.xid), got[0].Reason)
			require.Equal(t, start, got[0].Since)
			require.Contains(t, got[0].Message, ClearAnnotation)
			require.Contains(t, got[0].Message, c.want.String())
		})
	}
}

func TestApplicationErrorsAreNoNews(t *testing.T) {
	require.Empty(t, having(13, 31, 43, 45, 68, 109).problems)
}

func TestQuietTime(t *testing.T) {
	tr := having(94, 48)
	tr.heard(after(9*time.Minute), xidEvent(94), nil)
	tr.expire(after(19*time.Minute - time.Second))
	require.Equal(t, []string{"Xid94", "Xid48"}, tr.reasons())
	require.Equal(t, start, tr.conditions()[0].Since, "it began with the first")
	tr.expire(after(19 * time.Minute))
	require.Equal(t, []string{"Xid48"}, tr.reasons(), "what lasts is not over because it is quiet")
	tr.expire(after(1000 * time.Hour))
	require.Equal(t, []string{"Xid48"}, tr.reasons())
}

// A board is offered again when it has been back for a while; what was wrong before it was lost is then over as well.
func TestALostBoardReturns(t *testing.T) {
	tr := having(79, 48)
	tr.heard(start, gpu.Event{GPU: other, Xid: 48, GPUInstance: gpu.Whole}, nil)
	tr.probeUntil(0, 0, healthy(), nil)
	tr.probeUntil(5*time.Second, time.Minute, nil, lostError())
	require.Equal(t, []string{"Xid79", "Xid48", "Xid48", ReasonLost}, tr.reasons())
	require.Equal(t, gpu.EffectNoExecute, tr.conditions()[3].Effect)

	tr.probeUntil(65*time.Second, 90*time.Second, healthy(), nil)
	require.Len(t, tr.conditions(), 4, "not steady yet")
	tr.probeUntil(95*time.Second, 95*time.Second, healthy(), nil)
	require.Equal(t, []gpu.Device{{GPU: other}}, []gpu.Device{tr.conditions()[0].Device})
	require.Len(t, tr.conditions(), 1)
}

func TestABoardThatComesAndGoesStaysLost(t *testing.T) {
	tr := having(79)
	for d := time.Duration(0); d < 10*time.Minute; d += 20 * time.Second {
		tr.probeUntil(d, d+5*time.Second, nil, lostError())
		tr.probeUntil(d+10*time.Second, d+15*time.Second, healthy(), nil)
		require.Equal(t, []string{"Xid79", ReasonLost}, tr.reasons())
		require.Equal(t, start, tr.conditions()[1].Since)
	}
}

func TestReset(t *testing.T) {
	tr := having(48, 64)
	tr.probeUntil(0, time.Minute, healthy(), nil)
	require.Len(t, tr.conditions(), 2, "that a board answers says nothing")
	reset := healthy(func(h *gpu.Health) { h.Resets = 1 })
	tr.probeUntil(65*time.Second, 70*time.Second, reset, nil)
	tr.heard(after(70*time.Second), xidEvent(64), nil)
	tr.probeUntil(75*time.Second, 3*time.Minute, reset, nil)
	require.Equal(t, []string{"Xid64"}, tr.reasons(), "what has happened again since is not over")
}

func TestProbes(t *testing.T) {
	for reason, c := range map[string]struct {
		bad     func(*gpu.Health)
		unknown func(*gpu.Health)
	}{
		ReasonRemappingPending: {func(h *gpu.Health) { h.Remapping = &gpu.RowRemapping{Pending: true} }, func(h *gpu.Health) { h.Remapping = nil }},
		ReasonRemappingFailed:  {func(h *gpu.Health) { h.Remapping = &gpu.RowRemapping{Failed: true} }, func(h *gpu.Health) { h.Remapping = nil }},
		ReasonUncorrectedECC:   {func(h *gpu.Health) { n := uint64(2); h.UncorrectedECC = &n }, func(h *gpu.Health) { h.UncorrectedECC = nil }},
	} {
		t.Run(reason, func(t *testing.T) {
			tr := having()
			tr.probeUntil(0, time.Minute, healthy(), nil)
			require.Empty(t, tr.problems)
			tr.probeUntil(time.Minute, 2*time.Minute, healthy(c.bad), nil)
			require.Equal(t, []string{reason}, tr.reasons())
			got := tr.conditions()[0]
			require.Equal(t, gpu.EffectNoSchedule, got.Effect)
			require.Equal(t, whole, got.Device)
			require.Equal(t, after(time.Minute), got.Since)
			require.Contains(t, got.Message, uuid)

			tr.probeUntil(2*time.Minute, time.Hour, healthy(c.unknown), nil)
			tr.probeUntil(2*time.Minute, time.Hour, nil, gpu.ReadErrors{{UUID: uuid, Err: gpu.ErrDeadline}})
			require.Equal(t, []string{reason}, tr.reasons(), "not to be told is not to be well")
			tr.probeUntil(time.Hour, time.Hour+25*time.Second, healthy(), nil)
			require.Equal(t, []string{reason}, tr.reasons())
			tr.probeUntil(time.Hour+30*time.Second, time.Hour+30*time.Second, healthy(), nil)
			require.Empty(t, tr.problems)
		})
	}
}

func TestABoardWithoutANameIsNotLost(t *testing.T) {
	tr := having()
	tr.probed(start, nil, gpu.ReadErrors{{Index: 1, Err: gpu.ErrLost}})
	require.Empty(t, tr.problems)
}

func TestAnOperatorClears(t *testing.T) {
	stamp := func(d time.Duration) string { return after(d).Format(time.RFC3339) }
	for name, c := range map[string]struct {
		request string
		left    []string
		message string
	}{
		"nothing":              {"", []string{"Xid48", "Xid48", ReasonLost, ReasonUncorrectedECC}, ""},
		"all":                  {stamp(time.Minute), []string{ReasonLost}, ""},
		"all, another zone":    {after(time.Minute).In(time.FixedZone("", 7200)).Format(time.RFC3339), []string{ReasonLost}, ""},
		"the second itself":    {stamp(0), []string{ReasonLost, ReasonUncorrectedECC}, ""},
		"what was before":      {stamp(-time.Second), []string{"Xid48", "Xid48", ReasonLost, ReasonUncorrectedECC}, ""},
		"of a GPU":             {uuid + "@" + stamp(time.Minute), []string{"Xid48", ReasonLost}, ""},
		"of no GPU":            {"GPU-3@" + stamp(time.Minute), []string{"Xid48", "Xid48", ReasonLost, ReasonUncorrectedECC}, ""},
		"a clock a bit ahead":  {stamp(2*time.Minute + 30*time.Second), []string{ReasonLost}, ""},
		"for times to come":    {stamp(time.Hour), []string{"Xid48", "Xid48", ReasonLost, ReasonUncorrectedECC}, "is to come yet"},
		"no time":              {uuid, []string{"Xid48", "Xid48", ReasonLost, ReasonUncorrectedECC}, "such as 2026-05-01T12:02:00Z"},
		"no time after the at": {uuid + "@now", []string{"Xid48", "Xid48", ReasonLost, ReasonUncorrectedECC}, ClearAnnotation},
	} {
		t.Run(name, func(t *testing.T) {
			tr := having(48)
			tr.heard(start, gpu.Event{GPU: other, Xid: 48, GPUInstance: gpu.Whole}, nil)
			tr.probed(after(time.Second), nil, lostError())
			tr.probed(after(time.Second), healthy(func(h *gpu.Health) { n := uint64(1); h.UncorrectedECC = &n })[:1], nil)
			tr.problems[2].Well = time.Time{}
			err := tr.clear(after(2*time.Minute), c.request)
			if c.message == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.message)
			}
			require.Equal(t, c.left, tr.reasons())
		})
	}
}

// What an operator has accepted stays accepted until there is more of it, whether or not the annotation stays.
func TestAccepted(t *testing.T) {
	errors := func(n uint64) []gpu.Health { return healthy(func(h *gpu.Health) { h.UncorrectedECC = &n }) }
	tr := having()
	tr.probeUntil(0, 10*time.Second, errors(1), nil)
	request := after(time.Minute).Format(time.RFC3339)
	require.NoError(t, tr.clear(after(time.Minute), request))
	require.Empty(t, tr.reasons())
	tr.probeUntil(time.Minute, time.Hour, errors(1), nil)
	require.Empty(t, tr.reasons())

	tr.probeUntil(time.Hour, time.Hour, errors(2), nil)
	require.NoError(t, tr.clear(after(time.Hour), request))
	require.Equal(t, []string{ReasonUncorrectedECC}, tr.reasons())

	require.NoError(t, tr.clear(after(2*time.Hour), after(2*time.Hour).Format(time.RFC3339)))
	tr.probeUntil(3*time.Hour, 3*time.Hour+time.Minute, errors(0), nil)
	require.Empty(t, tr.problems, "it is over, and forgotten")
	tr.probeUntil(4*time.Hour, 4*time.Hour, errors(2), nil)
	require.Equal(t, []string{ReasonUncorrectedECC}, tr.reasons())
}

func TestRestore(t *testing.T) {
	before := having(48, 94, 79)
	before.probed(start, nil, lostError())
	before.probed(start, healthy(func(h *gpu.Health) { n := uint64(1); h.UncorrectedECC = &n }), nil)
	require.Equal(t, []string{"Xid48", "Xid94", "Xid79", ReasonLost, ReasonUncorrectedECC}, before.reasons())

	tr := having()
	tr.restore(after(time.Hour), before.problems, true)
	require.Equal(t, before.conditions(), tr.conditions())
	tr.expire(after(time.Hour))
	require.NotContains(t, tr.reasons(), "Xid94", "it was quiet meanwhile")

	// After a reboot only what is found again stays, with the time at which it began.
	tr = having()
	tr.restore(after(time.Hour), before.problems, false)
	require.Equal(t, []string{ReasonLost, ReasonUncorrectedECC}, tr.reasons())
	tr.probeUntil(time.Hour, time.Hour+time.Minute, healthy(func(h *gpu.Health) { n := uint64(1); h.UncorrectedECC = &n }), nil)
	require.Equal(t, []string{ReasonUncorrectedECC}, tr.reasons())
	require.Equal(t, start, tr.conditions()[0].Since)

	// Another configuration holds from now on.
	tr = newTracker(policyOf(map[string]gpu.Effect{"48": gpu.EffectNone, "94": gpu.EffectNoExecute}))
	tr.restore(after(time.Minute), before.problems, true)
	require.NotContains(t, tr.reasons(), "Xid48")
	require.Equal(t, gpu.EffectNoExecute, tr.conditions()[0].Effect)
}

func TestFollow(t *testing.T) {
	leader, follower := having(48, 64), having(48, 64)
	require.NoError(t, leader.clear(after(time.Minute), uuid+"@"+after(time.Minute).Format(time.RFC3339)))
	leader.heard(after(2*time.Minute), xidEvent(119), nil)
	// Heard by one while the other was saving.
	follower.heard(after(3*time.Minute), xidEvent(120), nil)
	follower.follow(after(4*time.Minute), leader.problems, after(3*time.Minute+500*time.Millisecond))
	require.Equal(t, []string{"Xid119", "Xid120"}, follower.reasons())
	follower.follow(after(4*time.Minute), leader.problems, after(3*time.Minute+2*time.Second))
	require.Equal(t, []string{"Xid119"}, follower.reasons(), "what the leader has no more, it has cleared")
}
