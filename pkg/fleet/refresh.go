package fleet

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/structured"
)

// node is what the fleet knows of a node.
type node struct {
	*corev1.Node
	// slot is its number in sets of nodes.
	slot int
	// pools are those that it could use, as the allocator orders them.
	pools []*poolState
	// kind and state are nil until somebody asks. The parts of the kind are the devices of offers.
	kind   *kind
	offers []*poolState
	state  *state
	// seen is the last refresh that had it.
	seen int
}

type poolID struct{ driver, name string }

func (a poolID) compare(b poolID) int {
	return cmp.Or(strings.Compare(a.driver, b.driver), strings.Compare(a.name, b.name))
}

// poolState are all slices of a pool, also those for other nodes, because they count for
// whether it is complete, and who has its devices.
type poolState struct {
	id poolID
	// published are its slices, by name; in slices they have the taints of the rules.
	published, slices []*resourceapi.ResourceSlice
	generation        int64
	// local are the nodes that slices name, everywhere is whether others may use it too.
	local      sets.Set[string]
	everywhere bool
	// slim is whether an Interner has seen it.
	slim bool
	// holders are the claims that a device is allocated to, by its name, but for admin access.
	holders map[string][]*resourceapi.ResourceClaim
	// shared are the shares that are in use.
	shared sets.Set[structured.SharedDeviceID]
}

// Refresh makes the fleet be of a newer snapshot, as if it were new, and keeps what it
// knows of nodes where nothing has changed. Objects with the UID and the resource
// version of a known one are that one, wherever they lie. Claims that were placed or
// taken and that the snapshot does not have are released. If a class or a taint rule
// has changed, nothing is kept.
func (f *Fleet) Refresh(s Snapshot) {
	rules := slices.SortedStableFunc(slices.Values(s.TaintRules), byName)
	known := map[string]*resourceapi.DeviceClass{}
	for _, c := range s.Classes {
		known[c.Name] = c
	}
	if !slices.EqualFunc(f.rules, rules, unchanged) || !maps.EqualFunc(f.classes, known, unchanged) || f.pools == nil {
		*f = Fleet{
			Search: f.Search, cache: f.cache, memory: newMemory(),
			byName: map[string]*node{}, pools: map[poolID]*poolState{}, state: newAllocated(),
			taken: map[*resourceapi.ResourceClaim]int{}, byUID: map[types.UID]*resourceapi.ResourceClaim{},
		}
	}
	f.rules, f.classes = rules, known
	f.round++
	f.refreshNodes(nodesOf(s))
	f.refreshSlices(s.Slices)
	f.refreshClaims(s.Claims)
}

// unchanged reports whether b is what a was.
func unchanged[T interface {
	comparable
	metav1.Object
}](a, b T) bool {
	return a == b || a.GetUID() != "" && a.GetUID() == b.GetUID() && a.GetResourceVersion() != "" && a.GetResourceVersion() == b.GetResourceVersion()
}

func byName[T metav1.Object](a, b T) int { return strings.Compare(a.GetName(), b.GetName()) }

func nodesOf(s Snapshot) []*corev1.Node {
	all := slices.Clone(s.Nodes)
	known := sets.New[string]()
	for _, n := range all {
		known.Insert(n.Name)
	}
	named := sets.New[string]()
	add := func(name *string) {
		if name != nil && *name != "" && !known.Has(*name) {
			named.Insert(*name)
		}
	}
	for _, slice := range s.Slices {
		add(slice.Spec.NodeName)
		if isTrue(slice.Spec.PerDeviceNodeSelection) {
			for i := range slice.Spec.Devices {
				add(slice.Spec.Devices[i].NodeName)
			}
		}
	}
	for _, name := range sets.List(named) {
		all = append(all, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	return all
}

func (f *Fleet) refreshNodes(all []*corev1.Node) {
	f.nodes, f.all = all, make([]*node, len(all))
	for i, fresh := range all {
		n := f.byName[fresh.Name]
		switch {
		case n == nil:
			n = &node{Node: fresh, slot: f.slot()}
			f.byName[fresh.Name] = n
			f.live.set(n.slot)
			f.topology++
			for _, p := range f.pools {
				if p.everywhere {
					n.add(p)
				}
			}
		case unchanged(n.Node, fresh):
			n.Node = fresh
		default:
			n.Node = fresh
			f.memory.moved(n.slot)
			if slices.ContainsFunc(n.pools, func(p *poolState) bool { return p.everywhere }) {
				f.republished(n)
			}
			f.topology++
		}
		n.seen, f.all[i] = f.round, n
	}
	for name, n := range f.byName {
		if n.seen == f.round {
			continue
		}
		delete(f.byName, name)
		f.live.clear(n.slot)
		f.memory.moved(n.slot)
		f.republished(n)
		f.free = append(f.free, n.slot)
	}
}

// slot gives out a number for a node.
func (f *Fleet) slot() int {
	if last := len(f.free) - 1; last >= 0 {
		slot := f.free[last]
		f.free = f.free[:last]
		return slot
	}
	return len(f.byName)
}

// republished forgets what is known of a node's devices.
func (f *Fleet) republished(n *node) {
	f.memory.leave(n)
	n.kind, n.offers, n.state = nil, nil, nil
	f.memory.released(n.slot)
	f.topology++
}

func (n *node) add(p *poolState) {
	i, known := slices.BinarySearchFunc(n.pools, p, func(a, b *poolState) int { return a.id.compare(b.id) })
	if !known {
		n.pools = slices.Insert(n.pools, i, p)
	}
}

func (f *Fleet) refreshSlices(all []*resourceapi.ResourceSlice) {
	byPool := make(map[poolID][]*resourceapi.ResourceSlice, len(f.pools))
	for _, s := range all {
		id := poolID{s.Spec.Driver, s.Spec.Pool.Name}
		byPool[id] = append(byPool[id], s)
	}
	for id, fresh := range byPool {
		slices.SortStableFunc(fresh, byName)
		if p := f.pool(id); !p.same(fresh) {
			f.publish(p, fresh)
		}
	}
	for id, p := range f.pools {
		if byPool[id] == nil {
			f.publish(p, nil)
			if len(p.holders) == 0 {
				delete(f.pools, id)
			}
		}
	}
}

// same reports whether the pool has these slices already, and lets go of older copies of them.
func (p *poolState) same(fresh []*resourceapi.ResourceSlice) bool {
	if !slices.EqualFunc(p.published, fresh, unchanged) {
		return false
	}
	for i, old := range p.published {
		if p.slices[i] == old {
			p.slices[i] = fresh[i]
		}
	}
	p.published = fresh
	return true
}

// publish replaces the slices of a pool.
func (f *Fleet) publish(p *poolState, fresh []*resourceapi.ResourceSlice) {
	for n := range f.nodesWith(p) {
		n.pools = slices.DeleteFunc(n.pools, func(o *poolState) bool { return o == p })
		f.republished(n)
	}
	p.published, p.slices = fresh, taint(fresh, f.rules)
	p.generation, p.local, p.everywhere, p.slim = 0, sets.New[string](), false, false
	for _, s := range fresh {
		p.generation = max(p.generation, s.Spec.Pool.Generation)
		p.slim = p.slim || isSlim(s)
		if name := value(s.Spec.NodeName); name != "" {
			p.local.Insert(name)
		} else {
			p.everywhere = true
		}
	}
	for n := range f.nodesWith(p) {
		n.add(p)
		f.republished(n)
	}
}

// taint adds the taints of the rules to copies of the slices that they concern.
func taint(all []*resourceapi.ResourceSlice, rules []*resourceapi.DeviceTaintRule) []*resourceapi.ResourceSlice {
	all = slices.Clone(all)
	for _, r := range rules {
		selector := r.Spec.DeviceSelector
		if selector == nil {
			continue
		}
		differs := func(want *string, got string) bool { return want != nil && *want != got }
		for i, s := range all {
			if differs(selector.Driver, s.Spec.Driver) || differs(selector.Pool, s.Spec.Pool.Name) {
				continue
			}
			tainted := *s
			tainted.Spec.Devices = slices.Clone(s.Spec.Devices)
			for n := range tainted.Spec.Devices {
				if d := &tainted.Spec.Devices[n]; !differs(selector.Device, d.Name) {
					d.Taints = append(slices.Clip(d.Taints), r.Spec.Taint)
				}
			}
			all[i] = &tainted
		}
	}
	return all
}

// nodesWith are the nodes that could use a pool.
func (f *Fleet) nodesWith(p *poolState) func(func(*node) bool) {
	return func(yield func(*node) bool) {
		if p.everywhere {
			for _, n := range f.byName {
				if !yield(n) {
					return
				}
			}
			return
		}
		for name := range p.local {
			if n := f.byName[name]; n != nil && !yield(n) {
				return
			}
		}
	}
}

// pool returns the pool of that name, which may have no slices.
func (f *Fleet) pool(id poolID) *poolState {
	p := f.pools[id]
	if p == nil {
		p = &poolState{id: id, holders: map[string][]*resourceapi.ResourceClaim{}, shared: sets.New[structured.SharedDeviceID]()}
		f.pools[id] = p
	}
	return p
}

func (f *Fleet) refreshClaims(all []*resourceapi.ResourceClaim) {
	var fresh []*resourceapi.ResourceClaim
	for _, c := range all {
		if c.Status.Allocation == nil {
			continue
		}
		old := f.known(c)
		if old == nil || !unchanged(old, c) || old.Status.Allocation == nil {
			fresh = append(fresh, c)
			continue
		}
		f.swap(old, c)
		f.taken[c] = f.round
	}
	for c, round := range f.taken {
		if round != f.round {
			f.Release(c)
		}
	}
	for _, c := range fresh {
		f.Take(c)
	}
}

// known is the taken claim that this one is, or an older version of it.
func (f *Fleet) known(c *resourceapi.ResourceClaim) *resourceapi.ResourceClaim {
	if _, ok := f.taken[c]; ok {
		return c
	}
	return f.byUID[c.UID]
}

// swap puts a copy of a claim in its place.
func (f *Fleet) swap(old, fresh *resourceapi.ResourceClaim) {
	if old == fresh {
		return
	}
	delete(f.taken, old)
	f.taken[fresh], f.byUID[fresh.UID] = 0, fresh
	for _, r := range held(fresh) {
		holders := f.pools[poolID{r.Driver, r.Pool}].holders[r.Device]
		if i := slices.Index(holders, old); i >= 0 {
			holders[i] = fresh
		}
	}
}
