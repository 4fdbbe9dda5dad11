package pool

import (
	"fmt"
	"slices"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// DefaultDriver is the driver name under which existing manifests ask for GPUs.
// It is also the domain of the attributes and capacities, whatever the driver is
// called, so that selectors written for them go on working.
const DefaultDriver = "gpu.nvidia.com"

// Node is whose pool it is, and what its driver and boards are.
type Node struct {
	// Name is the Kubernetes node's, and the pool's.
	Name string
	// Driver is the name of the DRA driver.
	Driver string
	gpu.Node
}

// Attribute is the name of an attribute or capacity in the node's slices. Under the
// default driver name it needs no domain: the driver's own is meant.
func (n Node) Attribute(short string) resourceapi.QualifiedName {
	if n.Driver == DefaultDriver {
		return resourceapi.QualifiedName(short)
	}
	return resourceapi.QualifiedName(DefaultDriver + "/" + short)
}

// Counters. A GPU has one per memory slice, always worth `weight`, and one for
// the set of media engines that only one instance can have. A whole GPU and a
// placement take the full weight of the slices that they cover, a replica takes
// 1 of each: so replicas, at most as many as the weight, share with one another
// and with nothing else. The weight is a constant rather than the number of
// replicas, so that no counter ever changes, whatever is configured or in use.
const (
	weight      = gpu.MaxReplicas
	memorySlice = "memory-slice-%d"
	media       = "media-extensions"
)

// Build describes the offers of a node's GPUs, by UUID, as one pool: first the
// counters, then the devices, GPU by GPU. The devices of a GPU are in one slice,
// so that a change of what it offers or of its health updates one object. Every
// condition that concerns a device and has an effect is a taint on it.
//
// GPUs that are lost must still be among the node's: devices in use that vanish
// from the pool would be sold again. An error means that an argument contradicts
// itself, or that a GPU has more devices than a slice can hold.
func Build(n Node, offers map[string]Offer, conditions []gpu.Condition) (resourceslice.DriverResources, error) {
	describe, err := newDescriber(n, conditions)
	if err != nil {
		return resourceslice.DriverResources{}, err
	}
	var counters, devices []resourceslice.Slice
	left := 0 // devices that the last slice still has room for
	for i := range n.GPUs {
		g := &n.GPUs[i]
		if len(counters) == 0 || len(counters[len(counters)-1].SharedCounters) == resourceapi.ResourceSliceMaxCounterSets {
			counters = append(counters, resourceslice.Slice{})
		}
		last := &counters[len(counters)-1]
		last.SharedCounters = append(last.SharedCounters, resourceapi.CounterSet{Name: describe.names.GPU(g.UUID), Counters: budgetOf(g).all()})

		offer := offers[g.UUID]
		space := room(g, offer)
		if space > resourceapi.ResourceSliceMaxDevicesWithAdvancedFeatures {
			return resourceslice.DriverResources{}, fmt.Errorf("GPU %s can offer %d devices, a ResourceSlice holds %d: offer fewer profiles or replicas",
				g.UUID, space, resourceapi.ResourceSliceMaxDevicesWithAdvancedFeatures)
		}
		if left < space {
			devices, left = append(devices, resourceslice.Slice{}), resourceapi.ResourceSliceMaxDevicesWithAdvancedFeatures
		}
		left -= space
		described, err := describe.offer(g, offer)
		if err != nil {
			return resourceslice.DriverResources{}, err
		}
		last = &devices[len(devices)-1]
		last.Devices = append(last.Devices, described...)
	}
	all := slices.Concat(counters, devices)
	if len(all) == 0 {
		// An empty slice says "no GPUs here", no slice says "not known yet".
		all = []resourceslice.Slice{{}}
	}
	return resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{n.Name: {Slices: all}}}, nil
}

// room is how many devices the GPU can come to offer, in any mode and with any
// number of replicas. Slices are filled by it rather than by what is offered now,
// so that a GPU that changes does not push its neighbours into other slices.
func room(g *gpu.GPU, offer Offer) int {
	n, withMedia := 1+gpu.MaxReplicas, 0
	for _, p := range g.Profiles {
		if p.MediaExtensions {
			withMedia += len(p.Placements)
		} else {
			n += len(p.Placements)
		}
	}
	for _, d := range offer {
		if p, ok := g.Profile(d.Profile); ok && p.MediaExtensions {
			return n + withMedia
		}
	}
	return n
}

// budget is what a GPU has to give.
type budget struct {
	memorySlices int
	media        bool
}

// budgetOf derives the budget from the placements. A board without MIG has one memory slice.
func budgetOf(g *gpu.GPU) budget {
	b := budget{memorySlices: 1, media: g.MIG.Capable}
	for _, p := range g.Profiles {
		for _, at := range p.Placements {
			b.memorySlices = max(b.memorySlices, at.Start+at.Size)
		}
	}
	return b
}

func (b budget) all() map[string]resourceapi.Counter {
	all := take(gpu.Placement{Size: b.memorySlices}, weight)
	if b.media {
		all[media] = counter(1)
	}
	return all
}

// taken is what a device, of that profile if it is a MIG device, takes.
func (b budget) taken(d gpu.Device, p gpu.Profile) map[string]resourceapi.Counter {
	switch {
	case d.Type == gpu.TypeTimeSlice:
		return take(gpu.Placement{Size: b.memorySlices}, 1)
	case d.Type == gpu.TypeGPU || d.Placement.Size == b.memorySlices:
		return b.all()
	}
	taken := take(d.Placement, weight)
	if p.MediaExtensions {
		taken[media] = counter(1)
	}
	return taken
}

func take(at gpu.Placement, n int64) map[string]resourceapi.Counter {
	taken := make(map[string]resourceapi.Counter, at.Size+1)
	for i := range at.Size {
		taken[fmt.Sprintf(memorySlice, at.Start+i)] = counter(n)
	}
	return taken
}

func counter(n int64) resourceapi.Counter {
	return resourceapi.Counter{Value: *resource.NewQuantity(n, resource.DecimalSI)}
}
