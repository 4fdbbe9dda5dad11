package pool

import (
	"slices"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Lacks are the features that an API server does not have, so that it drops what
// they are about from a slice.
type Lacks struct {
	// PartitionableDevices: there are no counters.
	PartitionableDevices bool
	// DeviceTaints: a device cannot be tainted.
	DeviceTaints bool
}

// LacksOf reads the names of feature gates. ok is false if there is none that
// kerf knows how to do without.
func LacksOf(gates []string) (l Lacks, ok bool) {
	l.PartitionableDevices = slices.Contains(gates, "DRAPartitionableDevices")
	l.DeviceTaints = slices.Contains(gates, "DRADeviceTaints")
	return l, l != Lacks{}
}

// Or is what either lacks.
func (l Lacks) Or(o Lacks) Lacks {
	return Lacks{l.PartitionableDevices || o.PartitionableDevices, l.DeviceTaints || o.DeviceTaints}
}

// Reduce makes of a node's pool what can be published without the features.
// Without counters nothing would keep the scheduler from selling a GPU and its
// parts, so only whole GPUs are left, and of a GPU of which parts are in use
// nothing. Without taints a device that would be tainted is left out, unless it is
// in use. The devices are all of the node by name, and those in use by GPU.
func Reduce(resources resourceslice.DriverResources, lacks Lacks, devices map[string]gpu.Device, inUse map[string][]gpu.Device) resourceslice.DriverResources {
	if lacks == (Lacks{}) {
		return resources
	}
	parted := func(d gpu.Device) bool {
		return d.Type != gpu.TypeGPU || slices.ContainsFunc(inUse[d.GPU], func(o gpu.Device) bool { return o.Type != gpu.TypeGPU })
	}
	reduced := resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{}}
	for name, p := range resources.Pools {
		var all []resourceslice.Slice
		for _, s := range p.Slices {
			if lacks.PartitionableDevices {
				s.SharedCounters = nil
			}
			var left []resourceapi.Device
			for _, d := range s.Devices {
				device := devices[d.Name]
				if lacks.PartitionableDevices && parted(device) {
					continue
				}
				if lacks.DeviceTaints && len(d.Taints) > 0 && !slices.Contains(inUse[device.GPU], device) {
					continue
				}
				if lacks.PartitionableDevices {
					d.ConsumesCounters = nil
				}
				if lacks.DeviceTaints {
					d.Taints = nil
				}
				left = append(left, d)
			}
			s.Devices = left
			if len(s.SharedCounters) > 0 || len(s.Devices) > 0 {
				all = append(all, s)
			}
		}
		if len(all) == 0 {
			all = []resourceslice.Slice{{}}
		}
		p.Slices = all
		reduced.Pools[name] = p
	}
	return reduced
}
