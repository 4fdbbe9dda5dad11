package plugin

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/journal"
)

// buckets, in seconds, reach from a claim that is answered from its record to a
// call that ran into the kubelet's deadline of 45 s.
var buckets = []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 45}

// Metrics are what the plugin tells Prometheus.
type Metrics struct {
	operations, locks, calls *prometheus.HistogramVec
}

// NewMetrics registers the metrics.
func NewMetrics(registry prometheus.Registerer, version string) *Metrics {
	factory := promauto.With(registry)
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return factory.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	factory.NewGauge(prometheus.GaugeOpts{
		Name: "kerf_build_info", Help: "1, with the version of kerf.", ConstLabels: prometheus.Labels{"version": version},
	}).Set(1)
	return &Metrics{
		operations: histogram("kerf_claim_operation_duration_seconds", "How long preparing or releasing a claim took.", "operation", "result"),
		locks:      histogram("kerf_lock_wait_seconds", "How long calls waited for the lock of a claim or for those of its GPUs.", "lock"),
		calls:      histogram("kerf_nvml_call_duration_seconds", "How long operations on a GPU took the NVIDIA driver, those with several calls to NVML as one.", "operation", "result"),
	}
}

func result(err error) string {
	if err != nil {
		return "failure"
	}
	return "success"
}

// Call takes down a call to the driver. It is an observer of package nvml.
func (m *Metrics) Call(op, _ string, took time.Duration, err error) {
	m.calls.WithLabelValues(op, result(err)).Observe(took.Seconds())
}

// Operation takes down a claim's whole preparation or release, what refuses it before the engine included.
func (m *Metrics) Operation(operation string, took time.Duration, err error) {
	m.operations.WithLabelValues(operation, result(err)).Observe(took.Seconds())
}

// Locks takes down how long a journal's locks are waited for.
func (m *Metrics) Locks(j claims.Journal) claims.Journal { return timedLocks{j, m.locks} }

type timedLocks struct {
	claims.Journal
	locks *prometheus.HistogramVec
}

func (t timedLocks) LockClaim(ctx context.Context, uid string) (func(), error) {
	began := time.Now()
	unlock, err := t.Journal.LockClaim(ctx, uid)
	t.locks.WithLabelValues("claim").Observe(time.Since(began).Seconds())
	return unlock, err
}

func (t timedLocks) LockGPUs(ctx context.Context, uuids ...string) (func(), error) {
	began := time.Now()
	unlock, err := t.Journal.LockGPUs(ctx, uuids...)
	t.locks.WithLabelValues("gpu").Observe(time.Since(began).Seconds())
	return unlock, err
}

// ClaimInfo registers what claims hold, for joins with the series of DCGM, whose
// labels UUID and GPU_I_ID it has.
func ClaimInfo(registry prometheus.Registerer, claims Claims) error {
	return registry.Register(&claimInfo{
		desc: prometheus.NewDesc("kerf_claim_device_info", "1 for every device of a prepared claim. GPU_I_ID is that of a MIG instance, else empty.",
			[]string{"UUID", "GPU_I_ID", "claim_namespace", "claim_name", "claim_uid", "device", "type", "profile"}, nil),
		claims: claims,
	})
}

type claimInfo struct {
	desc   *prometheus.Desc
	claims Claims
}

func (c *claimInfo) Describe(descs chan<- *prometheus.Desc) { descs <- c.desc }

func (c *claimInfo) Collect(metrics chan<- prometheus.Metric) {
	all, err := c.claims.Claims()
	if tolerated(err) != nil {
		metrics <- prometheus.NewInvalidMetric(c.desc, err)
		return
	}
	for _, claim := range all {
		if claim.State != journal.ClaimPrepared {
			continue
		}
		for _, d := range claim.Devices {
			instance := ""
			if d.Instance != nil {
				instance = strconv.Itoa(d.Instance.ID)
			}
			metrics <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, 1,
				d.Device.GPU, instance, claim.Namespace, claim.Name, claim.UID, d.Name, string(d.Device.Type), d.Device.Profile)
		}
	}
}

// CountInstances registers the number of instances by state. They are counted
// when they are asked for, so that they are those of all processes of the node.
func CountInstances(registry prometheus.Registerer, records Records, foreign func() int) error {
	return registry.Register(&instanceCounter{
		desc:    prometheus.NewDesc("kerf_instances", "GPU instances on the node. Foreign ones were not made by kerf.", []string{"state"}, nil),
		records: records, foreign: foreign,
	})
}

type instanceCounter struct {
	desc    *prometheus.Desc
	records Records
	foreign func() int
}

func (c *instanceCounter) Describe(descs chan<- *prometheus.Desc) { descs <- c.desc }

func (c *instanceCounter) Collect(metrics chan<- prometheus.Metric) {
	all, err := c.records.Instances()
	if tolerated(err) != nil {
		metrics <- prometheus.NewInvalidMetric(c.desc, err)
		return
	}
	byState := map[string]int{
		string(journal.InstanceClaimed): 0, string(journal.InstanceIdle): 0, string(journal.InstanceReleasing): 0,
		"foreign": c.foreign(),
	}
	for _, i := range all {
		byState[string(i.State)]++
	}
	for state, n := range byState {
		metrics <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), state)
	}
}
