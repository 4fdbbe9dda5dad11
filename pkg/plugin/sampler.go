package plugin

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// Meter measures an instance since the last call for the same instance and owner. See package nvml.
type Meter interface {
	Usage(ctx context.Context, i gpu.Instance, owner string) (gpu.Usage, error)
}

// Sampler measures the instances of prepared claims, and tells Prometheus what
// it has measured: DCGM's exporter does not list the instances that were made
// after its start. What could not be measured has no series, because a zero
// would look idle.
//
// It takes no lock of a claim or a GPU, and of the driver one instance's turn at
// a time, so that a claim never waits for more than one measurement.
type Sampler struct {
	meter                    Meter
	claims                   Claims
	engine, dram, used, free *prometheus.Desc
	// latest is what the last round has measured.
	latest atomic.Pointer[map[use]gpu.Usage]
}

// use is an instance in the hands of a claim. The driver gives ids again, and a claim can be prepared anew.
type use struct {
	gpu   string
	id    int
	owner string
}

// NewSampler makes a sampler and registers its metrics.
func NewSampler(registry prometheus.Registerer, meter Meter, claims Claims) (*Sampler, error) {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("kerf_instance_"+name, help+" Of the MIG instances of prepared claims.", []string{"UUID", "GPU_I_ID"}, nil)
	}
	s := &Sampler{
		meter: meter, claims: claims,
		engine: desc("engine_active_ratio", "Share of time in which anything computed, since the last sample."),
		dram:   desc("dram_active_ratio", "Share of the memory's bandwidth in use, since the last sample."),
		used:   desc("memory_used_bytes", "Memory in use."),
		free:   desc("memory_free_bytes", "Memory that is free."),
	}
	s.latest.Store(&map[use]gpu.Usage{})
	return s, registry.Register(s)
}

// Run measures again and again until the context ends.
func (s *Sampler) Run(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		s.sample(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// sample measures all instances once: those of a GPU one after the other, and all GPUs at once.
func (s *Sampler) sample(ctx context.Context) {
	byGPU := map[string]map[use]gpu.Instance{}
	if err := s.inUse(func(u use, i gpu.Instance) {
		if byGPU[u.gpu] == nil {
			byGPU[u.gpu] = map[use]gpu.Instance{}
		}
		byGPU[u.gpu][u] = i
	}); err != nil {
		klog.FromContext(ctx).Error(err, "The instances of claims are not known and not measured")
	}
	var (
		measuring sync.WaitGroup
		mu        sync.Mutex
		measured  = map[use]gpu.Usage{}
	)
	for _, instances := range byGPU {
		measuring.Go(func() {
			for u, i := range instances {
				if ctx.Err() != nil {
					return
				}
				// What is under way goes on to its end: cut off, it would make the GPU pass
				// for one that does not answer, just when a plugin that ends cleans up.
				patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTimeout)
				usage, err := s.meter.Usage(patience, i, u.owner)
				over := patience.Err() != nil
				cancel()
				if err == nil {
					mu.Lock()
					measured[u] = usage
					mu.Unlock()
					continue
				}
				// Failures are counted among the calls to the driver.
				klog.FromContext(ctx).V(2).Info("An instance could not be measured", "instance", i.String(), "err", err)
				if over {
					return // The GPU does not answer: it is left alone until the next round.
				}
			}
		})
	}
	measuring.Wait()
	s.latest.Store(&measured)
}

// inUse visits the instances of prepared claims. Devices with admin access are somebody else's.
func (s *Sampler) inUse(visit func(use, gpu.Instance)) error {
	all, err := s.claims.Claims()
	for _, c := range all {
		if c.State != journal.ClaimPrepared {
			continue
		}
		for _, d := range c.Devices {
			if d.Instance != nil && !d.AdminAccess {
				visit(use{d.Instance.GPU, d.Instance.ID, fmt.Sprintf("%s/%d", c.UID, c.PreparedAt.UnixNano())}, *d.Instance)
			}
		}
	}
	return tolerated(err)
}

// Describe is part of prometheus.Collector.
func (s *Sampler) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.engine, s.dram, s.used, s.free} {
		descs <- d
	}
}

// Collect is part of prometheus.Collector. It shows what was measured for claims that still have their instances.
func (s *Sampler) Collect(metrics chan<- prometheus.Metric) {
	latest := *s.latest.Load()
	err := s.inUse(func(u use, _ gpu.Instance) {
		usage, ok := latest[u]
		if !ok {
			return
		}
		gauge := func(d *prometheus.Desc, value float64) {
			metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, u.gpu, strconv.Itoa(u.id))
		}
		if usage.EngineActive != nil {
			gauge(s.engine, *usage.EngineActive)
		}
		if usage.DRAMActive != nil {
			gauge(s.dram, *usage.DRAMActive)
		}
		gauge(s.used, float64(usage.MemoryUsed))
		gauge(s.free, float64(usage.MemoryFree))
	})
	if err != nil {
		metrics <- prometheus.NewInvalidMetric(s.engine, err)
	}
}
