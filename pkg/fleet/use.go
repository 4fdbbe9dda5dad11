package fleet

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/structured"
)

// Take makes the devices of an allocated claim be in use. A claim that is taken
// already stays so.
func (f *Fleet) Take(c *resourceapi.ResourceClaim) {
	if _, ok := f.taken[c]; ok {
		return
	}
	f.taken[c] = f.round
	if c.UID != "" {
		f.byUID[c.UID] = c
	}
	for id, r := range held(c) {
		take(f.state, id, r)
		p := f.pool(poolID{r.Driver, r.Pool})
		p.holders[r.Device] = append(p.holders[r.Device], c)
		if r.ShareID != nil {
			p.shared.Insert(structured.MakeSharedDeviceID(id, r.ShareID))
		}
		for n := range f.nodesWith(p) {
			n.state = nil
		}
	}
}

// Release gives the devices of a claim that was taken back. It may be another version
// of the claim, with the same UID.
func (f *Fleet) Release(c *resourceapi.ResourceClaim) {
	c = f.known(c)
	if c == nil {
		return
	}
	delete(f.taken, c)
	if f.byUID[c.UID] == c {
		delete(f.byUID, c.UID)
	}
	for id, r := range held(c) {
		release(f.state, id, r)
		p := f.pool(poolID{r.Driver, r.Pool})
		if p.holders[r.Device] = slices.DeleteFunc(p.holders[r.Device], func(h *resourceapi.ResourceClaim) bool { return h == c }); len(p.holders[r.Device]) == 0 {
			delete(p.holders, r.Device)
		}
		if r.ShareID != nil {
			p.shared.Delete(structured.MakeSharedDeviceID(id, r.ShareID))
		}
		for n := range f.nodesWith(p) {
			n.state = nil
			f.memory.released(n.slot)
		}
	}
}

func newAllocated() structured.AllocatedState {
	return structured.AllocatedState{
		AllocatedDevices: sets.New[structured.DeviceID](), AllocatedSharedDeviceIDs: sets.New[structured.SharedDeviceID](),
		AggregatedCapacity: structured.NewConsumedCapacityCollection(),
	}
}

func take(s structured.AllocatedState, id structured.DeviceID, r *resourceapi.DeviceRequestAllocationResult) {
	if r.ShareID == nil {
		s.AllocatedDevices.Insert(id)
		return
	}
	s.AllocatedSharedDeviceIDs.Insert(structured.MakeSharedDeviceID(id, r.ShareID))
	if r.ConsumedCapacity != nil {
		s.AggregatedCapacity.Insert(structured.NewDeviceConsumedCapacity(id, r.ConsumedCapacity))
	}
}

func release(s structured.AllocatedState, id structured.DeviceID, r *resourceapi.DeviceRequestAllocationResult) {
	if r.ShareID == nil {
		s.AllocatedDevices.Delete(id)
		return
	}
	s.AllocatedSharedDeviceIDs.Delete(structured.MakeSharedDeviceID(id, r.ShareID))
	if r.ConsumedCapacity != nil {
		s.AggregatedCapacity.Remove(structured.NewDeviceConsumedCapacity(id, r.ConsumedCapacity))
	}
}

// held are the devices that a claim has in use. Admin access uses none.
func held(c *resourceapi.ResourceClaim) func(func(structured.DeviceID, *resourceapi.DeviceRequestAllocationResult) bool) {
	return func(yield func(structured.DeviceID, *resourceapi.DeviceRequestAllocationResult) bool) {
		if c.Status.Allocation == nil {
			return
		}
		for i := range c.Status.Allocation.Devices.Results {
			r := &c.Status.Allocation.Devices.Results[i]
			if r.AdminAccess != nil && *r.AdminAccess {
				continue
			}
			if !yield(structured.MakeDeviceID(r.Driver, r.Pool, r.Device), r) {
				return
			}
		}
	}
}

// unknown is a node that no slice names and no snapshot had.
func unknown(n *corev1.Node) *node { return &node{Node: n, slot: -1} }

// holders are the claims that hold something of the node's pools.
func (n *node) holders() []*resourceapi.ResourceClaim {
	var all []*resourceapi.ResourceClaim
	seen := sets.New[*resourceapi.ResourceClaim]()
	for _, p := range n.pools {
		for _, s := range p.slices {
			for i := range s.Spec.Devices {
				for _, c := range p.holders[s.Spec.Devices[i].Name] {
					if !seen.Has(c) {
						seen.Insert(c)
						all = append(all, c)
					}
				}
			}
		}
	}
	return all
}

// allocated is what is in use, of all pools, but of shared devices those of the node
// alone: the allocator looks at each of them for each device.
func (n *node) allocated(all structured.AllocatedState) structured.AllocatedState {
	all.AllocatedSharedDeviceIDs = nil
	for _, p := range n.pools {
		if all.AllocatedSharedDeviceIDs.Len() == 0 {
			all.AllocatedSharedDeviceIDs = p.shared
		} else {
			all.AllocatedSharedDeviceIDs = all.AllocatedSharedDeviceIDs.Union(p.shared)
		}
	}
	return all
}

// allocatedWithout is what is in use on the node when the claims given are gone.
func (n *node) allocatedWithout(gone []*resourceapi.ResourceClaim) structured.AllocatedState {
	left := newAllocated()
	for _, c := range n.holders() {
		if slices.Contains(gone, c) {
			continue
		}
		for id, r := range held(c) {
			take(left, id, r)
		}
	}
	return left
}

// used are the parts of the node's kind that are in use when the claims given are
// gone, and whether any of it is shared.
func (n *node) used(without []*resourceapi.ResourceClaim) (used bitset, shared bool) {
	i := 0
	for _, p := range n.offers {
		shared = shared || p.shared.Len() > 0
		for s := range p.newest() {
			for d := range s.Spec.Devices {
				if len(p.holders) > 0 && slices.ContainsFunc(p.holders[s.Spec.Devices[d].Name], func(h *resourceapi.ResourceClaim) bool { return !slices.Contains(without, h) }) {
					used.set(i)
				}
				i++
			}
		}
	}
	return used, shared
}

// slices are those of the node's pools.
func (n *node) slices() []*resourceapi.ResourceSlice {
	var all []*resourceapi.ResourceSlice
	for _, p := range n.pools {
		all = append(all, p.slices...)
	}
	return all
}

// slim reports whether an Interner has seen a slice for the node.
func (n *node) slim() bool {
	return slices.ContainsFunc(n.pools, func(p *poolState) bool { return p.slim })
}

// slicesWith are the slices without the parts that are not to be kept.
func (n *node) slicesWith(keep bitset) []*resourceapi.ResourceSlice {
	var all []*resourceapi.ResourceSlice
	i := 0
	for _, p := range n.offers {
		for s := range p.newest() {
			reduced := *s
			reduced.Spec.Devices = nil
			for d := range s.Spec.Devices {
				if keep.has(i) {
					reduced.Spec.Devices = append(reduced.Spec.Devices, s.Spec.Devices[d])
				}
				i++
			}
			all = append(all, &reduced)
		}
	}
	return all
}
