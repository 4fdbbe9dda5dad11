// Package dcgm owns what is measured of GPUs: by DCGM's exporter, and by kerf's
// plugin where that lists an instance not. It reads rows, from the recording
// rules in Prometheus or from the exporters themselves, and joins them to the
// devices of claims. It knows the traps of the formats; it decides nothing and
// keeps no state.
package dcgm

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// Metric is what was measured.
type Metric string

// The metrics.
const (
	// Utilization is in percent of the device, from 0 to 100: of a GPU its GPU_UTIL,
	// of an instance the time in which its engines were active.
	Utilization Metric = "utilization"
	// MemoryUsed and MemoryFree are in MiB.
	MemoryUsed Metric = "memory used"
	MemoryFree Metric = "memory free"
)

// Key is what a row is about: a GPU or an instance of it.
type Key struct {
	// GPU is the UUID of the board, also for an instance.
	GPU string
	// Instance is the id of the GPU instance, NoInstance for the whole GPU.
	Instance int
}

// NoInstance stands for the whole GPU.
const NoInstance = -1

// Row is a value of a metric at a moment.
type Row struct {
	Metric Metric
	Key
	// At is when the value was scraped. It was collected up to an interval of the exporter before.
	At time.Time
	// Value is NaN where there is none.
	Value float64
	// Own is true for a measurement of kerf's plugin, which gives way to one of the exporter.
	Own bool
	// Host, Namespace and Pod say where it was measured and who was there, as far as the labels tell.
	Host, Namespace, Pod string
}

// maxUtilization is what rounding may make of 100 %. Beyond it is no utilization, but one of DCGM's blanks.
const maxUtilization = 101

// maxMiB is more memory than a GPU has, and less than any of DCGM's blanks.
const maxMiB = 1e9

// normal is a value in the metric's unit and bounds, NaN where it is none.
func (m Metric) normal(value float64) float64 {
	limit := float64(maxMiB)
	if m == Utilization {
		limit = maxUtilization
	}
	switch {
	case !(value >= 0 && value <= limit):
		return math.NaN()
	case m == Utilization:
		return min(value, 100)
	default:
		return value
	}
}

// keyOf makes a key of labels, and reports whether they are those of a GPU.
func keyOf(uuid, instance string) (Key, bool) {
	k := Key{GPU: uuid, Instance: NoInstance}
	if !strings.HasPrefix(uuid, "GPU-") {
		return Key{}, false
	}
	if instance == "" {
		return k, true
	}
	var err error
	k.Instance, err = strconv.Atoi(instance)
	return k, err == nil && k.Instance >= 0
}
