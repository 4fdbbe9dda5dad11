package explain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/fleet"
)

// The bounds of searches, in attempts as fleet.DefaultSearch. Of what-if questions
// there are many, and what is found is found soon.
const (
	whatIfSearch = fleet.DefaultSearch / 100
	slowSearch   = fleet.DefaultSearch / 5
)

// examiner asks one node.
type examiner struct {
	fleet *fleet.Fleet
	node  *corev1.Node
	pod   fleet.Pod
	world world
	pools []*fleet.Pool
	// funnels are those of the requests, alternatives one by one.
	funnels []*funnel
}

func newExaminer(f *fleet.Fleet, node *corev1.Node, pod fleet.Pod) *examiner {
	return &examiner{fleet: f, node: node, pod: pod, world: world{f.Only(node), pod.Pending()}}
}

// allocate tries a world. What is wrong with it is no error, but why the claims do not fit.
func (e *examiner) allocate(ctx context.Context, w world, search int) (results []resourceapi.AllocationResult, refused, err error) {
	f := e.fleet.With(w.Snapshot)
	f.Search = search
	results, refused = f.Allocate(ctx, e.node, w.pending...)
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	return results, refused, nil
}

// fits tries the world with changes.
func (e *examiner) fits(ctx context.Context, w world, changes ...Change) (bool, error) {
	_, refused, err := e.allocate(ctx, w.changed(changes...), whatIfSearch)
	return refused == nil, err
}

func (e *examiner) examine(ctx context.Context) (Node, error) {
	n := Node{Name: e.node.Name}
	why := e.pod.Excluded(e.node)
	if why == "" {
		n.Causes = e.missingClasses()
	} else {
		n.Causes = []Cause{{Kind: NodeExcluded, Text: why}}
	}
	if n.Causes != nil {
		n.Why = line(n)
		return n, nil
	}
	alone := e.fleet.With(e.world.Snapshot)
	var err error
	if e.pools, err = alone.Pools(e.node); err != nil {
		return n, err
	}
	for _, r := range fleet.Requests(e.world.pending) {
		f, err := newFunnel(ctx, e.fleet, e.pools, r)
		if err != nil {
			return n, err
		}
		e.funnels = append(e.funnels, f)
	}
	// A request that is refused alone is refused with others, and that is known soon.
	var refused []*funnel
	for _, c := range e.world.pending {
		for i := range c.Spec.Devices.Requests {
			funnels := e.funnelsOf(c, i)
			if !slices.ContainsFunc(funnels, func(f *funnel) bool { return !f.impossible() || f.failed != nil }) {
				refused = append(refused, funnels...)
				continue
			}
			_, no, err := e.allocate(ctx, e.only(c, i, -1), e.fleet.Search)
			if err != nil {
				return n, err
			}
			if no != nil {
				refused = append(refused, funnels...)
			}
		}
	}
	if len(refused) > 0 {
		return n, e.refused(ctx, &n, refused)
	}
	results, no, err := e.allocate(ctx, e.world, e.fleet.Search)
	switch {
	case err != nil:
		return n, err
	case no == nil:
		n.Fits, n.devices = true, devices(n.Name, e.world.pending, results)
		return n, nil
	case errors.Is(no, fleet.ErrSearch):
		err = e.tooLong(ctx, &n)
	default:
		err = e.together(ctx, &n, no)
	}
	n.Why = line(n)
	return n, err
}

func (e *examiner) missingClasses() []Cause {
	var all []Cause
	for _, r := range fleet.Requests(e.world.pending) {
		if _, ok := e.fleet.Class(r.Class); !ok {
			all = append(all, Cause{Kind: ClassMissing, Claim: fleet.Key(r.Claim), Request: r.Name, Subject: r.Class,
				Text: fmt.Sprintf("there is no device class %s, which %s asks for", r.Class, where(r))})
		}
	}
	return all
}

// only is the world with one request alone, or one alternative of it.
func (e *examiner) only(c *resourceapi.ResourceClaim, request, alternative int) world {
	c = c.DeepCopy()
	r := c.Spec.Devices.Requests[request]
	if alternative >= 0 {
		r.FirstAvailable = r.FirstAvailable[alternative : alternative+1]
	}
	// Constraints may name requests that are gone: they then say nothing.
	c.Spec.Devices.Requests = []resourceapi.DeviceRequest{r}
	return world{e.world.Snapshot, []*resourceapi.ResourceClaim{c}}
}

func (e *examiner) funnelsOf(c *resourceapi.ResourceClaim, request int) []*funnel {
	return slices.DeleteFunc(slices.Clone(e.funnels), func(f *funnel) bool { return f.r.Claim != c || f.r.Index != request })
}

// refused finds the causes of the requests that do not fit alone, and the cures.
func (e *examiner) refused(ctx context.Context, n *Node, requests []*funnel) error {
	var changes []Change
	for _, f := range requests {
		n.Requests = append(n.Requests, f.Request)
		causes, useful, err := e.blame(ctx, f)
		if err != nil {
			return err
		}
		n.Causes = append(n.Causes, causes...)
		changes = append(changes, useful...)
		if len(e.funnels) > 1 {
			// Beside the other requests it may have to be fewer still.
			counts, err := e.suspectCount(ctx, f, e.world)
			if err != nil {
				return err
			}
			for _, s := range counts {
				changes = append(changes, s.Change)
			}
		}
	}
	n.Causes = distinct(n.Causes)
	if err := e.cure(ctx, n, changes); err != nil {
		return err
	}
	n.Why = line(*n)
	if len(e.funnels) < 2 {
		return nil
	}
	_, no, err := e.allocate(ctx, e.world, whatIfSearch)
	n.slow = errors.Is(no, fleet.ErrSearch)
	return err
}

// cure tries the changes on all claims: one by one, then all, less what is not needed.
func (e *examiner) cure(ctx context.Context, n *Node, changes []Change) error {
	changes = slices.DeleteFunc(slices.Clone(changes), func(c Change) bool { return c.Kind == completePool || c.Kind == dropCapacity })
	add := func(changes ...Change) (bool, error) {
		w := e.world.changed(changes...)
		results, no, err := e.allocate(ctx, w, whatIfSearch)
		if err != nil || no != nil {
			return false, err
		}
		n.cures = append(n.cures, Cure{Node: n.Name, Changes: changes, Devices: devices(n.Name, w.pending, results)})
		return true, nil
	}
	for _, c := range changes {
		if _, err := add(c); err != nil {
			return err
		}
	}
	if len(n.cures) > 0 || len(changes) < 2 {
		return nil
	}
	set, err := e.fewest(ctx, e.world, changes)
	if err != nil || set == nil {
		return err
	}
	_, err = add(set...)
	return err
}

// fewest leaves changes out, the dearest first, until none can be left out. It is
// nil if all of them are not enough.
func (e *examiner) fewest(ctx context.Context, w world, changes []Change) ([]Change, error) {
	if ok, err := e.fits(ctx, w, changes...); !ok || err != nil {
		return nil, err
	}
	slices.SortStableFunc(changes, func(a, b Change) int {
		return Cure{Changes: []Change{b}}.cost() - Cure{Changes: []Change{a}}.cost()
	})
	for i := 0; i < len(changes); {
		fewer := slices.Concat(changes[:i], changes[i+1:])
		ok, err := e.fits(ctx, w, fewer...)
		if err != nil {
			return nil, err
		}
		if ok {
			changes = fewer
		} else {
			i++
		}
	}
	return changes, nil
}

// maxCauses bounds the causes in a text; the report has all.
const maxCauses = 3

// parts are a node's answer: what is left to its requests, then the causes.
func (n Node) parts() []string {
	var parts []string
	for _, r := range n.Requests {
		parts = append(parts, r.Text())
	}
	for _, c := range n.Causes[:min(len(n.Causes), maxCauses)] {
		if c.Joint {
			parts = append(parts, "together with other causes: "+c.Text)
		} else {
			parts = append(parts, c.Text)
		}
	}
	if more := len(n.Causes) - maxCauses; more > 0 {
		parts = append(parts, plural(more, "more cause"))
	}
	return parts
}

func line(n Node) string { return strings.Join(n.parts(), "; ") }

func distinct(causes []Cause) []Cause {
	var all []Cause
	for _, c := range causes {
		if !slices.ContainsFunc(all, func(o Cause) bool { return o.Kind == c.Kind && o.Text == c.Text }) {
			all = append(all, c)
		}
	}
	return all
}
