// Package dcgm owns what DCGM's exporter says of GPUs: it reads rows, from
// Prometheus or from exporters, and joins them to the devices of claims. It
// knows the traps of the format; it decides nothing and keeps no state.
package dcgm

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// Metric is the name of a metric of the exporter.
type Metric string

// The metrics that are read. All are in the exporter's default files of counters.
const (
	// GPUUtil is in percent. It does not exist for MIG instances.
	GPUUtil Metric = "DCGM_FI_DEV_GPU_UTIL"
	// EngineActive is the share of time, from 0 to 1, in which the graphics or compute engine was busy.
	EngineActive Metric = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"
	// MemoryUsed and MemoryFree are in MiB.
	MemoryUsed Metric = "DCGM_FI_DEV_FB_USED"
	MemoryFree Metric = "DCGM_FI_DEV_FB_FREE"
)

// Metrics are all that are read.
func Metrics() []Metric { return []Metric{GPUUtil, EngineActive, MemoryUsed, MemoryFree} }

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
	// Host, Namespace and Pod say where it was measured and who was there, as far as the labels tell.
	Host, Namespace, Pod string
}

// blank is where DCGM's values begin that mean: no value.
const blank = 9223372036854775792

// newRow makes a row of labels, and reports whether they are those of a GPU.
func newRow(metric string, label func(string) string, value float64, at time.Time) (Row, bool) {
	r := Row{Metric: Metric(metric), Key: Key{GPU: label("UUID"), Instance: NoInstance}, At: at, Value: value}
	if !strings.HasPrefix(r.GPU, "GPU-") {
		return Row{}, false
	}
	if id := label("GPU_I_ID"); id != "" {
		n, err := strconv.Atoi(id)
		if err != nil || n < 0 {
			return Row{}, false
		}
		r.Instance = n
	}
	if value >= blank || math.IsInf(value, 0) {
		r.Value = math.NaN()
	}
	r.Host = first(label, "hostname", "Hostname")
	// Scraped without honorLabels, pod is the exporter's own and exported_pod the workload's.
	r.Namespace = first(label, "exported_namespace", "exported_pod_namespace", "pod_namespace", "namespace")
	r.Pod = first(label, "exported_pod", "exported_pod_name", "pod_name", "pod")
	return r, true
}

// first is the first label that is there.
func first(label func(string) string, names ...string) string {
	for _, name := range names {
		if v := label(name); v != "" {
			return v
		}
	}
	return ""
}
