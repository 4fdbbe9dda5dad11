package explain

import (
	"context"
	"fmt"
	"slices"
	"strings"

	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/fleet"
)

// suspect is a change that may undo what keeps a request from the node, with the
// cause that it would prove.
type suspect struct {
	Change
	cause Cause
}

// blame finds the causes for which a request alone is refused, and the changes that undo them.
func (e *examiner) blame(ctx context.Context, f *funnel) ([]Cause, []Change, error) {
	w := e.only(f.r.Claim, f.r.Index, f.r.Alternative)
	if f.failed != nil {
		if _, no, err := e.allocate(ctx, w, whatIfSearch); err != nil || no != nil && !isRefusal(no) {
			causes, changes := f.blameExpression()
			return causes, changes, err
		}
	}
	pools, err := e.suspectPools(ctx, f)
	if err != nil {
		return nil, nil, err
	}
	suspects := slices.Concat(pools, f.suspectTaints(), f.suspectSelectors(), f.suspectConstraints(), f.suspectCapacity())
	counts, err := e.suspectCount(ctx, f, w)
	if err != nil {
		return nil, nil, err
	}
	evictions, err := e.suspectClaims(ctx, f, w)
	if err != nil {
		return nil, nil, err
	}
	causes, changes, err := e.convict(ctx, w, slices.Concat(suspects, counts, evictions))
	switch {
	case err != nil:
		return nil, nil, err
	case len(pools) > 0 && !slices.ContainsFunc(causes, func(c Cause) bool { return c.Kind == PoolIncomplete || c.Kind == PoolInvalid }):
		// What is missing of the pool can be what is needed, and nobody can try it.
		for _, p := range pools {
			causes = append(causes, p.cause)
		}
	case len(pools) == 0 && len(f.selected) == 0:
		// Whoever uses what, so it needs no proof.
		causes = f.noMatch(e.node.Name)
	case len(causes) == 0:
		causes = f.unproven(e.pools)
	}
	return causes, changes, nil
}

// convict keeps the suspects without any one of which the world fits, or, if there
// are none, the fewest that are enough together.
func (e *examiner) convict(ctx context.Context, w world, suspects []suspect) ([]Cause, []Change, error) {
	var causes []Cause
	var changes []Change
	all := make([]Change, len(suspects))
	for i, s := range suspects {
		all[i] = s.Change
		ok, err := e.fits(ctx, w, s.Change)
		if err != nil {
			return nil, nil, err
		}
		if ok {
			causes, changes = append(causes, s.cause), append(changes, s.Change)
		}
	}
	if len(causes) > 0 || len(suspects) < 2 {
		return distinct(causes), changes, nil
	}
	set, err := e.fewest(ctx, w, all)
	if err != nil {
		return nil, nil, err
	}
	for _, s := range suspects {
		if slices.ContainsFunc(set, func(c Change) bool { return c.Text == s.Text }) {
			s.cause.Joint = true
			causes = append(causes, s.cause)
		}
	}
	return distinct(causes), set, nil
}

// suspectPools suspects the pools from which nothing is allocated now, unless they
// are of a driver whose devices the request's class never takes.
func (e *examiner) suspectPools(ctx context.Context, f *funnel) ([]suspect, error) {
	var all []suspect
	for _, p := range e.pools {
		if p.Usable() {
			continue
		}
		related, err := e.takes(ctx, f, p.Driver)
		if err != nil {
			return nil, err
		}
		if !related {
			continue
		}
		name := p.Driver + "/" + p.Name
		s := suspect{
			Change{Kind: completePool, pool: p, Text: "complete pool " + name},
			f.cause(PoolIncomplete, name, fmt.Sprintf("pool %s is incomplete: %d of %d slices of generation %d are there", name, p.Have, p.Want, p.Generation)),
		}
		if p.Have == p.Want {
			s.cause = f.cause(PoolInvalid, name, fmt.Sprintf("pool %s is invalid: %s", name, p.Invalid))
		}
		all = append(all, s)
	}
	return all, nil
}

// takes reports whether the class takes devices of the driver on any node, or of no driver at all.
func (e *examiner) takes(ctx context.Context, f *funnel, driver string) (bool, error) {
	none := true
	for _, n := range e.fleet.Nodes() {
		pools, err := e.fleet.Pools(n)
		if err != nil {
			return false, err
		}
		for _, p := range pools {
			for _, d := range p.Devices {
				ok, err := e.fleet.Selects(ctx, fleet.Request{Class: f.Class}, d)
				if ctx.Err() != nil {
					return false, context.Cause(ctx)
				}
				if ok && err == nil {
					none = false
					if p.Driver == driver {
						return true, nil
					}
				}
			}
		}
	}
	return none, nil
}

func (f *funnel) suspectTaints() []suspect {
	var all []suspect
	for _, t := range f.taints {
		n := 0
		for _, c := range f.selected {
			if slices.ContainsFunc(c.taints, func(o resourceapi.DeviceTaint) bool {
				return o.Key == t.Key && o.Value == t.Value && o.Effect == t.Effect
			}) {
				n++
			}
		}
		verb := "have"
		if n == 1 {
			verb = "has"
		}
		all = append(all, suspect{tolerate(f.r, t), f.cause(Tainted, taintText(t),
			fmt.Sprintf("%d of %s %s the taint %s, which request %s does not tolerate", n, plural(len(f.selected), "device"), verb, taintText(t), f.r.Name))})
	}
	return all
}

// suspectSelectors suspects the request's own selectors if they leave too few
// devices, whoever uses them.
func (f *funnel) suspectSelectors() []suspect {
	if len(f.selected) >= f.need() {
		return nil
	}
	var all []suspect
	for i, s := range f.selectors {
		if s.class == "" && s.CEL != nil {
			all = append(all, suspect{dropSelector(f.r, s), f.cause(NoMatch, s.CEL.Expression, fmt.Sprintf("selector `%s` of request %s leaves %d of %s, %d needed",
				short(s.CEL.Expression, 80), f.r.Name, f.Stages[i+1].Left, plural(f.Stages[i].Left, "device"), f.need()))})
		}
	}
	return all
}

func dropSelector(r fleet.Request, s selector) Change {
	return Change{Kind: DropSelector, Claim: fleet.Key(r.Claim), Request: r.Name, Index: s.index,
		Text: fmt.Sprintf("drop selector `%s` of %s", short(s.CEL.Expression, 80), where(r))}
}

func (f *funnel) suspectConstraints() []suspect {
	var all []suspect
	for i, c := range f.r.Claim.Spec.Devices.Constraints {
		base, _, _ := strings.Cut(f.r.Name, "/")
		if len(c.Requests) > 0 && !slices.Contains(c.Requests, base) && !slices.Contains(c.Requests, f.r.Name) {
			continue
		}
		all = append(all, suspectConstraint(f.r.Claim, i))
	}
	return all
}

func (f *funnel) suspectCapacity() []suspect {
	if f.r.Capacity == nil {
		return nil
	}
	var wanted []string
	for name, q := range f.r.Capacity.Requests {
		wanted = append(wanted, fmt.Sprintf("%s of %s", q.String(), name))
	}
	slices.Sort(wanted)
	text := strings.Join(wanted, ", ")
	return []suspect{{Change{Kind: dropCapacity, Claim: fleet.Key(f.r.Claim), Request: f.r.Name, Text: "ask for no capacity"},
		f.cause(Capacity, text, fmt.Sprintf("no device has %s left for request %s", text, f.r.Name))}}
}

// suspectCount finds how many devices would fit.
func (e *examiner) suspectCount(ctx context.Context, f *funnel, w world) ([]suspect, error) {
	if f.r.All || f.r.Count < 2 {
		return nil, nil
	}
	most := int64(0)
	for low, high := int64(1), min(f.r.Count-1, int64(f.most)); low <= high; {
		middle := (low + high + 1) / 2
		ok, err := e.fits(ctx, w, lowerCount(f.r, middle))
		if err != nil {
			return nil, err
		}
		if ok {
			most, low = middle, middle+1
		} else {
			high = middle - 1
		}
	}
	if most == 0 {
		return nil, nil
	}
	return []suspect{{lowerCount(f.r, most), f.cause(Count, fmt.Sprint(f.r.Count),
		fmt.Sprintf("request %s asks for %d devices at once, at most %d fit", f.r.Name, f.r.Count, most))}}, nil
}

func lowerCount(r fleet.Request, n int64) Change {
	return Change{Kind: LowerCount, Claim: fleet.Key(r.Claim), Request: r.Name, Count: n, Text: fmt.Sprintf("ask for %s in %s", plural(int(n), "device"), where(r))}
}

// maxEvictions bounds the sets of claims that are proposed for a node.
const maxEvictions = 8

// suspectClaims are the sets of claims that would have to go, and if something else
// is in the way besides, each of those in the way.
func (e *examiner) suspectClaims(ctx context.Context, f *funnel, w world) ([]suspect, error) {
	var sets [][]*resourceapi.ResourceClaim
	if f.All || f.need() <= f.ever {
		var err error
		if sets, err = e.evictions(ctx, w); err != nil {
			return nil, err
		}
	}
	if sets == nil {
		for _, c := range e.world.Claims {
			if slices.ContainsFunc(f.selected, func(d candidate) bool { return slices.Contains(d.pool.Blockers(d.Device, f.r.AdminAccess), c) }) {
				sets = append(sets, []*resourceapi.ResourceClaim{c})
			}
		}
		return suspectSets(sets, f.inUse(e.pools, nil)), nil
	}
	return suspectSets(sets[:min(len(sets), maxEvictions)], f.inUse(e.pools, sets)), nil
}

// evictions are the sets of claims without which the world fits, none if it does not whoever goes.
func (e *examiner) evictions(ctx context.Context, w world) ([][]*resourceapi.ResourceClaim, error) {
	f := e.fleet.With(w.Snapshot)
	f.Search = whatIfSearch
	sets, err := f.Evictions(ctx, e.node, w.pending, nil)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, nil //nolint:nilerr // Something else is wrong besides.
	}
	return sets, nil
}

func suspectSets(sets [][]*resourceapi.ResourceClaim, cause Cause) []suspect {
	var all []suspect
	for _, set := range sets {
		all = append(all, suspect{evict(set), cause})
	}
	return all
}
