package scaling

import (
	"cmp"
	"math"
	"slices"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

// Shape is a profile of MIG instances, or a whole GPU, on one kind of board.
type Shape struct {
	Name          string
	ComputeSlices int
	MemoryMiB     uint64
}

// Usage is what a replica of the present shape has used over a window. NaN is no measurement.
type Usage struct {
	// Utilization is the 95th percentile, in percent of the shape's compute.
	Utilization float64
	// PeakMemoryMiB is the most of its memory that was used.
	PeakMemoryMiB float64
}

const (
	// MemoryHeadroom is how much memory there is to be for each MiB of the peak.
	MemoryHeadroom = 1.1
	// computeAt is the share of the compute that the 95th percentile is to take.
	computeAt = 0.8
)

// RightSize returns the smallest shape that has the memory for the peak and ten
// percent more, and the compute to serve the 95th percentile at 80 %. False: the
// present shape is that one, none is large enough, or nothing was measured.
//
// Reserved memory says nothing about the demand, so then no shape with less
// memory than the present one is advised. Memory pressure needs a larger shape
// where it needs one at all: further replicas do not make a model smaller.
func RightSize(present Shape, shapes []Shape, u Usage, memory v1alpha1.MemoryModel) (Shape, bool) {
	needsMemory := memory != v1alpha1.MemoryReserved
	if math.IsNaN(u.Utilization) || needsMemory && math.IsNaN(u.PeakMemoryMiB) {
		return Shape{}, false
	}
	needMemory := u.PeakMemoryMiB * MemoryHeadroom
	if !needsMemory {
		needMemory = float64(present.MemoryMiB)
	}
	needCompute := u.Utilization / 100 * float64(present.ComputeSlices) / computeAt

	ordered := slices.SortedFunc(slices.Values(shapes), func(a, b Shape) int {
		return cmp.Or(cmp.Compare(a.MemoryMiB, b.MemoryMiB), cmp.Compare(a.ComputeSlices, b.ComputeSlices), cmp.Compare(a.Name, b.Name))
	})
	for _, s := range ordered {
		if float64(s.MemoryMiB) >= needMemory && float64(s.ComputeSlices) >= needCompute {
			return s, s.Name != present.Name
		}
	}
	return Shape{}, false
}
