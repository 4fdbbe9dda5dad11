package explain

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/pool"
)

// Request is what becomes of a request on one node: how many devices are left when
// one condition after the other is put.
type Request struct {
	Claim   string `json:"claim"`
	Request string `json:"request"`
	Class   string `json:"class"`
	// Needed is how many devices it wants; all that match if All.
	Needed int64 `json:"needed"`
	All    bool  `json:"all,omitempty"`
	// Stages begin with all devices that the scheduler sees on the node.
	Stages []Stage `json:"stages"`
}

// Stage is a condition and how many devices are left after it and all before.
type Stage struct {
	// Condition is "devices", "class", "selector", "tolerated" or "free".
	Condition string `json:"condition"`
	// Subject is the class, or the expression of the selector.
	Subject string `json:"subject,omitempty"`
	Left    int    `json:"left"`
}

// funnel is a Request with the devices behind it.
type funnel struct {
	Request
	r fleet.Request
	// selectors are those of the class, then those of the request.
	selectors []selector
	// selected are the devices that pass them all.
	selected []candidate
	taints   []resourceapi.DeviceTaint
	free     int
	// most is the largest number of free devices that could be allocated at once, or
	// more; ever is the same while nothing is in use and every taint is tolerated.
	most, ever int
	// without is how many devices pass all selectors but that one.
	without []int
	// failed is the first selector that fails on a device that the allocator looks at.
	failed *failure
}

type selector struct {
	resourceapi.DeviceSelector
	// class is set where the selector is the class's.
	class string
	index int
}

type candidate struct {
	fleet.Device
	pool   *fleet.Pool
	taken  bool
	taints []resourceapi.DeviceTaint
}

func (c candidate) free() bool { return !c.taken && len(c.taints) == 0 }

type failure struct {
	selector
	device fleet.Device
	err    error
}

// need is the number of devices without which the request is refused.
func (f *funnel) need() int {
	if f.All {
		return max(1, len(f.selected))
	}
	return int(f.Needed)
}

// newFunnel counts the devices of the pools that are left to a request.
func newFunnel(ctx context.Context, from *fleet.Fleet, pools []*fleet.Pool, r fleet.Request) (*funnel, error) {
	f := &funnel{r: r, Request: Request{Claim: fleet.Key(r.Claim), Request: r.Name, Class: r.Class, Needed: r.Count, All: r.All}}
	class, ok := from.Class(r.Class)
	if !ok {
		return f, nil
	}
	for i, s := range class.Spec.Selectors {
		f.selectors = append(f.selectors, selector{s, class.Name, i})
	}
	for i, s := range r.Selectors {
		f.selectors = append(f.selectors, selector{s, "", i})
	}
	f.without = make([]int, len(f.selectors))
	total, left := 0, make([]int, len(f.selectors))
	for _, p := range pools {
		if !p.Usable() {
			continue
		}
		for _, d := range p.Devices {
			total++
			passed, err := f.passes(ctx, from, p, d)
			if err != nil {
				return nil, err
			}
			for i := range passed {
				left[i]++
			}
			if passed == len(f.selectors) {
				f.add(p, d)
			}
		}
	}
	f.Stages = []Stage{{Condition: "devices", Left: total}}
	for i, s := range f.selectors {
		stage := Stage{Condition: "selector", Left: left[i]}
		if s.CEL != nil {
			stage.Subject = s.CEL.Expression
		}
		if s.class != "" {
			stage.Condition, stage.Subject = "class", s.class
		}
		f.Stages = append(f.Stages, stage)
	}
	tolerated := len(slices.DeleteFunc(slices.Clone(f.selected), func(c candidate) bool { return len(c.taints) > 0 }))
	f.most = atOnce(slices.DeleteFunc(slices.Clone(f.selected), func(c candidate) bool { return !c.free() }))
	f.ever = atOnce(f.selected)
	f.Stages = append(f.Stages, Stage{Condition: "tolerated", Left: tolerated}, Stage{Condition: "free", Left: f.free})
	return f, nil
}

// passes is how many selectors, in turn, the device passes.
func (f *funnel) passes(ctx context.Context, from *fleet.Fleet, p *fleet.Pool, d fleet.Device) (int, error) {
	first, misses := len(f.selectors), 0
	for i, s := range f.selectors {
		matches, err := from.Matches(ctx, s.DeviceSelector, d)
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		// The allocator goes on to no selector after one that does not match, and
		// looks at no device that is in use.
		if err != nil && misses == 0 && f.failed == nil && (f.r.AdminAccess || f.r.All || len(p.Holders(d)) == 0) {
			f.failed = &failure{s, d, err}
		}
		if !matches {
			if misses++; misses == 1 {
				first = i
			}
		}
	}
	if misses == 1 {
		f.without[first]++
	}
	return first, nil
}

func (f *funnel) add(p *fleet.Pool, d fleet.Device) {
	c := candidate{Device: d, pool: p, taken: p.Taken(d, f.r.AdminAccess), taints: fleet.NotTolerated(d, f.r.Tolerations)}
	f.selected = append(f.selected, c)
	if c.free() {
		f.free++
	}
	for _, t := range c.taints {
		t.TimeAdded = nil
		if !slices.Contains(f.taints, t) {
			f.taints = append(f.taints, t)
		}
	}
}

// impossible reports that so many devices cannot be had, without a search: that of
// the allocator takes as long as there are ways to choose so many.
func (f *funnel) impossible() bool { return !f.All && f.need() > f.most }

// atOnce bounds how many of the devices can be in use at once. MIG devices of a GPU
// are intervals of its memory slices, of which the most that do not overlap are found by
// taking the one that ends first, again and again.
func atOnce(all []candidate) int {
	type interval struct {
		gpu        string
		start, end int
	}
	n := 0
	var mig []interval
	for _, c := range all {
		if name, at, ok := pool.Covers(c.Device.Device); ok && isMIG(c.Device) {
			mig = append(mig, interval{name, at.Start, at.Start + at.Size})
		} else {
			n++
		}
	}
	slices.SortFunc(mig, func(a, b interval) int { return a.end - b.end })
	ends := map[string]int{}
	for _, i := range mig {
		if i.start >= ends[i.gpu] {
			ends[i.gpu] = i.end
			n++
		}
	}
	return n
}

// Text is the funnel in one sentence.
func (r Request) Text() string {
	var parts []string
	for i, s := range r.Stages {
		switch s.Condition {
		case "devices":
			parts = append(parts, plural(s.Left, "device"))
		case "class":
			parts = append(parts, fmt.Sprintf("%d of class %s", s.Left, s.Subject))
		case "selector":
			parts = append(parts, fmt.Sprintf("%d for selector `%s`", s.Left, short(s.Subject, 60)))
		case "tolerated":
			if s.Left != r.Stages[i-1].Left {
				parts = append(parts, fmt.Sprintf("%d without taints", s.Left))
			}
		case "free":
			if r.Stages[i-1].Left > 0 {
				parts = append(parts, fmt.Sprintf("%d free", s.Left))
			}
		}
	}
	needed := fmt.Sprintf("%d needed", r.Needed)
	if r.All {
		needed = "all needed"
	}
	return fmt.Sprintf("%s: %s; %s", r.Request, strings.Join(parts, ", "), needed)
}

// Survey counts, for each request of the claims and each alternative, the devices
// that are left on the node: why a claim waits, without any what-if question.
func Survey(ctx context.Context, f *fleet.Fleet, node *corev1.Node, claims []*resourceapi.ResourceClaim) ([]Request, error) {
	pools, err := f.Pools(node)
	if err != nil {
		return nil, err
	}
	var all []Request
	for _, r := range fleet.Requests(claims) {
		counted, err := newFunnel(ctx, f, pools, r)
		if err != nil {
			return nil, err
		}
		all = append(all, counted.Request)
	}
	return all, nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// short cuts a text that is for one line.
func short(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}
