package explain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/fleet"
)

// together finds out why requests that fit alone do not fit at once.
func (e *examiner) together(ctx context.Context, n *Node, refusal error) error {
	if !isRefusal(refusal) {
		n.Causes = e.broken(refusal)
		_, changes := e.expressions()
		return e.cure(ctx, n, changes)
	}
	for _, f := range e.funnels {
		n.Requests = append(n.Requests, f.Request)
	}
	causes, changes, err := e.atOnce(ctx)
	if err != nil {
		return err
	}
	if len(causes) == 0 {
		if causes, err = e.conflict(ctx); err != nil {
			return err
		}
	}
	n.Causes = causes
	return e.cure(ctx, n, changes)
}

// atOnce finds what keeps requests that fit alone from fitting at once, and what
// would undo it.
func (e *examiner) atOnce(ctx context.Context) ([]Cause, []Change, error) {
	var suspects []suspect
	for _, c := range e.world.pending {
		for i := range c.Spec.Devices.Constraints {
			suspects = append(suspects, suspectConstraint(c, i))
		}
	}
	for _, f := range e.funnels {
		counts, err := e.suspectCount(ctx, f, e.world)
		if err != nil {
			return nil, nil, err
		}
		suspects = slices.Concat(suspects, f.suspectTaints(), counts)
	}
	sets, err := e.evictions(ctx, e.world)
	if err != nil {
		return nil, nil, err
	}
	if len(sets) > 0 {
		cause := Cause{Kind: InUse, GPUs: withClaims(nil, e.pools, sets)}
		cause.Text = "each request fits alone, but not all at once: " + gpusText(cause.GPUs)
		suspects = append(suspects, suspectSets(sets[:min(len(sets), maxEvictions)], cause)...)
	}
	causes, changes, err := e.convict(ctx, e.world, suspects)
	if err != nil {
		return nil, nil, err
	}
	// Selectors are no cause, since every request fits alone, but can be a way out.
	for _, f := range e.funnels {
		for _, s := range f.selectors {
			if s.class == "" && s.CEL != nil {
				changes = append(changes, dropSelector(f.r, s))
			}
		}
	}
	return causes, changes, nil
}

func suspectConstraint(c *resourceapi.ResourceClaim, i int) suspect {
	x := c.Spec.Devices.Constraints[i]
	what, attribute := "all devices have the same", x.MatchAttribute
	if x.DistinctAttribute != nil {
		what, attribute = "no two devices have the same", x.DistinctAttribute
	}
	subject := ""
	if attribute != nil {
		subject = string(*attribute)
	}
	of := "of claim " + fleet.Key(c)
	if len(x.Requests) > 0 {
		of = fmt.Sprintf("of requests %s of claim %s", strings.Join(x.Requests, ", "), fleet.Key(c))
	}
	return suspect{
		Change{Kind: DropConstraint, Claim: fleet.Key(c), Index: i, Text: fmt.Sprintf("drop constraint %d of claim %s (%s %s)", i, fleet.Key(c), what, subject)},
		Cause{Kind: Constraint, Claim: fleet.Key(c), Subject: subject, Text: fmt.Sprintf("constraint %d %s, that %s %s, holds for no devices that are free", i, of, what, subject)},
	}
}

// conflict names the fewest requests that do not fit at once.
func (e *examiner) conflict(ctx context.Context) ([]Cause, error) {
	type key struct {
		claim *resourceapi.ResourceClaim
		name  string
	}
	var all []key
	for _, c := range e.world.pending {
		for _, r := range c.Spec.Devices.Requests {
			all = append(all, key{c, r.Name})
		}
	}
	for i := 0; i < len(all); {
		fewer := slices.Concat(all[:i], all[i+1:])
		w := world{Snapshot: e.world.Snapshot}
		for _, c := range e.world.pending {
			c2 := c.DeepCopy()
			c2.Spec.Devices.Requests = slices.DeleteFunc(c2.Spec.Devices.Requests, func(r resourceapi.DeviceRequest) bool { return !slices.Contains(fewer, key{c, r.Name}) })
			w.pending = append(w.pending, c2)
		}
		_, no, err := e.allocate(ctx, w, whatIfSearch)
		if err != nil {
			return nil, err
		}
		if no != nil {
			all = fewer
		} else {
			i++
		}
	}
	var names []string
	for _, k := range all {
		names = append(names, fleet.Key(k.claim)+" "+k.name)
	}
	return []Cause{{Kind: Together, Subject: strings.Join(names, ", "),
		Text: fmt.Sprintf("requests %s fit alone, but not at once: the node has not the devices for all of them", strings.Join(names, ", "))}}, nil
}

// broken is what the allocator says where no request alone is refused.
func (e *examiner) broken(refusal error) []Cause {
	if causes, _ := e.expressions(); causes != nil {
		return causes
	}
	return []Cause{{Kind: Other, Text: refusal.Error()}}
}

func (e *examiner) expressions() (causes []Cause, changes []Change) {
	for _, f := range e.funnels {
		if f.failed != nil {
			c, x := f.blameExpression()
			causes, changes = append(causes, c...), append(changes, x...)
		}
	}
	return causes, changes
}

// tooLong proposes another order of the requests, or else what makes the search unnecessary.
func (e *examiner) tooLong(ctx context.Context, n *Node) error {
	n.Causes = []Cause{{Kind: SearchTooLong, Text: fmt.Sprintf("the allocator finds nothing in %d attempts, about as many as it makes before the scheduler gives up", e.fleet.Search)}}
	if err := e.cure(ctx, n, []Change{e.scarcestFirst()}); err != nil || len(n.cures) > 0 {
		return err
	}
	causes, changes, err := e.atOnce(ctx)
	if err != nil {
		return err
	}
	n.Causes = append(n.Causes, causes...)
	return e.cure(ctx, n, changes)
}

// scarcestFirst orders claims and requests by how many devices are free for them.
func (e *examiner) scarcestFirst() Change {
	type entry struct {
		claim, request string
		free           int
	}
	var all []entry
	for _, c := range e.world.pending {
		least := len(all)
		for i, r := range c.Spec.Devices.Requests {
			free := 0
			for _, f := range e.funnelsOf(c, i) {
				free += f.free
			}
			all = append(all, entry{fleet.Key(c), r.Name, free})
		}
		slices.SortStableFunc(all[least:], func(a, b entry) int { return a.free - b.free })
	}
	// The requests of a claim stay together: claims are allocated one after the other.
	scarcest := map[string]int{}
	for _, x := range all {
		if old, ok := scarcest[x.claim]; !ok || x.free < old {
			scarcest[x.claim] = x.free
		}
	}
	slices.SortStableFunc(all, func(a, b entry) int {
		return cmp.Or(scarcest[a.claim]-scarcest[b.claim], strings.Compare(a.claim, b.claim))
	})
	var order []string
	for _, x := range all {
		order = append(order, x.claim+" "+x.request)
	}
	return Change{Kind: Reorder, Order: order, Text: "ask for the scarcest first: " + strings.Join(order, ", ")}
}

// slowHint says so if the scheduler would search in vain for as long as it may, and
// another order would end that.
func (e *examiner) slowHint(ctx context.Context) ([]string, error) {
	for _, r := range fleet.Requests(e.world.pending) {
		pools, err := e.fleet.With(e.world.Snapshot).Pools(e.node)
		if err != nil {
			return nil, err
		}
		f, err := newFunnel(ctx, e.fleet, pools, r)
		if err != nil {
			return nil, err
		}
		e.funnels = append(e.funnels, f)
	}
	_, no, err := e.allocate(ctx, e.world, slowSearch)
	if err != nil || !errors.Is(no, fleet.ErrSearch) {
		return nil, err
	}
	order := e.scarcestFirst()
	if _, no, err = e.allocate(ctx, e.world.changed(order), whatIfSearch); err != nil || errors.Is(no, fleet.ErrSearch) {
		return nil, err
	}
	return []string{fmt.Sprintf("The allocator makes more than %d attempts in vain, and other pods wait meanwhile. It sees that at once if you %s.", slowSearch, order.Text)}, nil
}
