package pool

import (
	"strconv"
	"strings"

	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Covers reads from the counters of a published device on which GPU it is, by the
// GPU's published name, and which of its memory slices it covers; a replica and
// the whole GPU cover all. It is not ok with devices of other drivers.
func Covers(d *resourceapi.Device) (name string, at gpu.Placement, ok bool) {
	for _, consumed := range d.ConsumesCounters {
		first, last := MemorySlices(consumed.Counters)
		if last >= first {
			return consumed.CounterSet, gpu.Placement{Start: first, Size: last - first + 1}, true
		}
	}
	return "", gpu.Placement{}, false
}

// MemorySlices are the first and the last memory slice that have a counter among
// those given. Without any, the last is before the first.
func MemorySlices(counters map[string]resourceapi.Counter) (first, last int) {
	first, last = 0, -1
	prefix, _, _ := strings.Cut(memorySlice, "%")
	for name := range counters {
		digits, found := strings.CutPrefix(name, prefix)
		i, err := strconv.Atoi(digits)
		if !found || err != nil {
			continue
		}
		if last < first || i < first {
			first = i
		}
		last = max(last, i)
	}
	return first, last
}
