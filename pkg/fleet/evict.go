package fleet

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/sets"
)

func allowed(all []*resourceapi.ResourceClaim, may func(*resourceapi.ResourceClaim) bool) []*resourceapi.ResourceClaim {
	return slices.DeleteFunc(all, func(c *resourceapi.ResourceClaim) bool { return may != nil && !may(c) })
}

// MakeRoom looks for a set of claims, of those that may go, without which the pod's
// claims would fit on the node: the first of Evictions. It is empty if they fit as it
// is, and nil if there is none. What it returns are the caller's objects.
func (f *Fleet) MakeRoom(ctx context.Context, p Pod, node *corev1.Node, may []*resourceapi.ResourceClaim) ([]*resourceapi.ResourceClaim, error) {
	n := f.byName[node.Name]
	if n == nil {
		return nil, nil
	}
	pending := p.Pending()
	sh, err := f.shapeOf(pending)
	if err != nil {
		return nil, err
	}
	t, err := f.termsOf(p)
	if err != nil || t.excludes(p, n) {
		return nil, err
	}
	_, err = f.fit(ctx, n, sh, pending, nil)
	switch {
	case err == nil:
		return []*resourceapi.ResourceClaim{}, nil
	case !refusal(err):
		return nil, err
	}
	theirs := map[*resourceapi.ResourceClaim]*resourceapi.ResourceClaim{}
	var movable []*resourceapi.ResourceClaim
	for _, c := range may {
		if own := f.known(c); own != nil && theirs[own] == nil && n.hasOf(own) {
			theirs[own] = c
			movable = append(movable, own)
		}
	}
	if len(movable) == 0 {
		return nil, nil
	}
	sets, err := f.evictions(ctx, n, sh, pending, movable)
	if err != nil || len(sets) == 0 {
		return nil, err
	}
	room := slices.Clone(sets[0])
	for i, own := range room {
		room[i] = theirs[own]
	}
	return room, nil
}

// hasOf reports whether a claim holds something of the node's pools.
func (n *node) hasOf(c *resourceapi.ResourceClaim) bool {
	for _, r := range held(c) {
		if slices.ContainsFunc(n.pools, func(p *poolState) bool { return p.id == poolID{r.Driver, r.Pool} }) {
			return true
		}
	}
	return false
}

// maxPairs bounds the claims among which pairs are tried one by one.
const maxPairs = 24

// Evictions are sets of claims, of those that may go, without which the claims
// given would fit on the node: the smallest first, each tried with the allocator,
// and none with a claim that could stay. If one claim is enough, all such claims are
// there. Sets of more than two are the smallest ones for a request of one
// device; for several they are those that were found GPU by GPU.
func (f *Fleet) Evictions(ctx context.Context, node *corev1.Node, claims []*resourceapi.ResourceClaim, may func(*resourceapi.ResourceClaim) bool) ([][]*resourceapi.ResourceClaim, error) {
	n := f.byName[node.Name]
	if n == nil {
		return nil, nil
	}
	sh, err := f.shapeOf(claims)
	if err != nil {
		return nil, err
	}
	return f.evictions(ctx, n, sh, claims, allowed(n.holders(), may))
}

func (f *Fleet) evictions(ctx context.Context, n *node, sh *shape, claims, movable []*resourceapi.ResourceClaim) ([][]*resourceapi.ResourceClaim, error) {
	fits := func(without []*resourceapi.ResourceClaim) (bool, error) {
		_, err := f.fit(ctx, n, sh, claims, without)
		if refusal(err) {
			return false, nil
		}
		return err == nil, err
	}
	if ok, err := fits(movable); !ok || err != nil {
		return nil, err
	}
	var found [][]*resourceapi.ResourceClaim
	for _, c := range movable {
		if err := try(&found, fits, c); err != nil {
			return nil, err
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	// Shrink what is enough for each device, or for each GPU, or at all.
	starts, err := f.starts(ctx, n.Node, claims, movable)
	if err != nil {
		return nil, err
	}
	for _, start := range append(starts, movable) {
		set, err := shrink(start, fits)
		if err != nil {
			return nil, err
		}
		slices.SortFunc(set, func(a, b *resourceapi.ResourceClaim) int { return strings.Compare(Key(a), Key(b)) })
		if set != nil && !slices.ContainsFunc(found, func(o []*resourceapi.ResourceClaim) bool { return same(o, set) }) {
			found = append(found, set)
		}
	}
	slices.SortStableFunc(found, func(a, b []*resourceapi.ResourceClaim) int { return len(a) - len(b) })
	if len(found[0]) > 2 && len(movable) <= maxPairs {
		var pairs [][]*resourceapi.ResourceClaim
		for i, c := range movable {
			for _, d := range movable[:i] {
				if err := try(&pairs, fits, c, d); err != nil {
					return nil, err
				}
			}
		}
		found = append(pairs, found...)
	}
	return found, nil
}

func try(found *[][]*resourceapi.ResourceClaim, fits func([]*resourceapi.ResourceClaim) (bool, error), set ...*resourceapi.ResourceClaim) error {
	ok, err := fits(set)
	if ok {
		*found = append(*found, set)
	}
	return err
}

// starts are sets of claims that may be enough: those in the way of each device, and those on each counter set.
func (f *Fleet) starts(ctx context.Context, node *corev1.Node, claims, movable []*resourceapi.ResourceClaim) ([][]*resourceapi.ResourceClaim, error) {
	pools, err := f.Pools(node)
	if err != nil {
		return nil, err
	}
	var all [][]*resourceapi.ResourceClaim
	add := func(set []*resourceapi.ResourceClaim) {
		set = slices.DeleteFunc(slices.Clone(set), func(c *resourceapi.ResourceClaim) bool { return !slices.Contains(movable, c) })
		if len(set) > 0 && !slices.ContainsFunc(all, func(o []*resourceapi.ResourceClaim) bool { return same(o, set) }) {
			all = append(all, set)
		}
	}
	requests := Requests(claims)
	for _, p := range pools {
		bySet := map[string][]*resourceapi.ResourceClaim{}
		for _, d := range p.Devices {
			for _, r := range requests {
				matches, err := f.Selects(ctx, r, d)
				if err != nil {
					return nil, err
				}
				if matches {
					add(p.Blockers(d, r.AdminAccess))
				}
			}
			for _, consumed := range d.ConsumesCounters {
				bySet[consumed.CounterSet] = append(bySet[consumed.CounterSet], p.Holders(d)...)
			}
		}
		for _, name := range sets.List(sets.KeySet(bySet)) {
			add(bySet[name])
		}
	}
	return all, nil
}

// shrink takes claims out of a set that is enough until none is left that could
// stay, or returns nil if the set is not enough.
func shrink(set []*resourceapi.ResourceClaim, fits func([]*resourceapi.ResourceClaim) (bool, error)) ([]*resourceapi.ResourceClaim, error) {
	if ok, err := fits(set); !ok || err != nil {
		return nil, err
	}
	for _, c := range slices.Clone(set) {
		fewer := slices.DeleteFunc(slices.Clone(set), func(o *resourceapi.ResourceClaim) bool { return o == c })
		ok, err := fits(fewer)
		if err != nil {
			return nil, err
		}
		if ok {
			set = fewer
		}
	}
	return set, nil
}

func same(a, b []*resourceapi.ResourceClaim) bool { return sets.New(a...).Equal(sets.New(b...)) }
