package controller

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/scaling"
)

// usageEvery is how often it is asked what claims have used over a day.
const usageEvery = 10 * time.Minute

// advise looks whether another shape would suit a workload better, once in a while.
func (c *Controller) advise(ctx context.Context, now time.Time, all *world, workloads []*workload) {
	if now.Sub(c.usageAt) < usageEvery {
		return
	}
	c.usageAt = now
	usage, err := c.Source.Usage(ctx)
	if err != nil {
		if !errors.Is(err, errNoPrometheus) {
			klog.FromContext(ctx).Error(err, "It could not be asked what claims have used; the advice on shapes stays as it is")
		}
		return
	}
	byPool := map[string][]*resourceapi.ResourceSlice{}
	for _, s := range all.objects.Slices {
		if s.Spec.Driver == c.Driver {
			byPool[s.Spec.Pool.Name] = append(byPool[s.Spec.Pool.Name], s)
		}
	}
	for _, w := range workloads {
		c.known[w.hint.UID].rightSize = c.rightSize(byPool, usage, w)
	}
}

// rightSize advises another shape, where all replicas have one device of one shape and their use is known.
func (c *Controller) rightSize(slices map[string][]*resourceapi.ResourceSlice, used map[types.UID]scaling.Usage, w *workload) *v1alpha1.RightSize {
	usage := scaling.Usage{Utilization: math.NaN(), PeakMemoryMiB: math.NaN()}
	var device *resourceapi.Device
	for _, r := range w.replicas {
		if !r.ready {
			continue
		}
		if len(r.devices) != 1 || r.devices[0].Shared {
			return nil
		}
		u, ok := used[r.claims[0].UID]
		if !ok {
			return nil // Too new, or not measured: the others may not be like it.
		}
		usage.Utilization, usage.PeakMemoryMiB = largest(usage.Utilization, u.Utilization), largest(usage.PeakMemoryMiB, u.PeakMemoryMiB)
		if device == nil {
			device = c.published(slices, r.claims[0])
		}
	}
	if device == nil {
		return nil
	}
	present, shapes := shapesOf(device)
	best, ok := scaling.RightSize(present, shapes, usage, w.hint.Spec.Memory)
	if !ok {
		return nil
	}
	message := fmt.Sprintf("over a day the busiest replica was at %.0f %% of its %s (95th percentile)", usage.Utilization, present.Name)
	if w.hint.Spec.Memory != v1alpha1.MemoryReserved {
		message += fmt.Sprintf(", and used %.0f of its %d MiB at most", usage.PeakMemoryMiB, present.MemoryMiB)
	}
	if best.MemoryMiB > present.MemoryMiB && usage.PeakMemoryMiB*scaling.MemoryHeadroom > float64(present.MemoryMiB) {
		message += ": more replicas would not help against that"
	}
	return &v1alpha1.RightSize{Profile: best.Name, Message: message}
}

// largest ignores what is not known.
func largest(a, b float64) float64 {
	if math.IsNaN(a) {
		return b
	}
	if math.IsNaN(b) {
		return a
	}
	return max(a, b)
}

// shapesOf are the shape of a device and all those of its board. Of two profiles
// that have the same slices and memory, the one with the media engines is left out.
func shapesOf(d *resourceapi.Device) (present scaling.Shape, shapes []scaling.Shape) {
	device := fleet.Device{Device: d}
	i := slices.IndexFunc(gpu.Boards(), func(b gpu.Board) bool { return b.ProductName == attribute(device, "productName") })
	if i < 0 {
		return scaling.Shape{}, nil
	}
	b := gpu.Boards()[i]
	whole := scaling.Shape{Name: "gpu", ComputeSlices: wholeSlices, MemoryMiB: b.MemoryMiB}
	shapes = append(shapes, whole)
	present = whole
	for _, p := range b.Profiles {
		s := scaling.Shape{Name: p.Name, ComputeSlices: p.ComputeSlices, MemoryMiB: p.MemoryMiB}
		if attribute(device, "type") == string(gpu.TypeMIG) && attribute(device, "profile") == p.Name {
			present = s
		}
		if !p.MediaExtensions || s == present {
			shapes = append(shapes, s)
		}
	}
	return present, shapes
}

// wholeSlices is what a GPU without MIG is worth: a board with MIG has 7 compute slices, and loses an eighth by it.
const wholeSlices = 8

// published is the device that a claim of one device was given.
func (c *Controller) published(slices map[string][]*resourceapi.ResourceSlice, claim *resourceapi.ResourceClaim) *resourceapi.Device {
	for _, r := range claim.Status.Allocation.Devices.Results {
		if r.Driver != c.Driver {
			continue
		}
		for _, s := range slices[r.Pool] {
			for i := range s.Spec.Devices {
				if s.Spec.Devices[i].Name == r.Device {
					return &s.Spec.Devices[i]
				}
			}
		}
	}
	return nil
}
