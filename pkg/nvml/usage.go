package nvml

import (
	"context"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// gpmSymbols are all that is called of GPM.
var gpmSymbols = []string{
	"nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmSampleFree", "nvmlGpmMigSampleGet", "nvmlGpmMetricsGet",
}

// sample is what was counted for an instance until a moment.
type sample struct {
	gpm nvml.GpmSample
	// instance and owner tell whether a later sample is of the same use of the same instance.
	instance gpu.Instance
	owner    string
}

// Usage measures an instance. How busy it was is the mean since the last call for
// the same instance and owner, so the first has none; nor has a board without GPM,
// which Hopper was the first to have. Two calls should be more than 100 ms apart (nvml.h).
//
// The driver gives all ids of an instance again, and GPM computes over the end of
// one without a word. So nothing is computed between two owners, nor over what
// this adapter destroys, or over a mode change or a reset. An owner is whatever
// keeps the instance from being made anew while it has it, such as the
// preparation of a claim. ErrNotFound means that the instance is not, or no longer, that one.
func (a *Adapter) Usage(ctx context.Context, i gpu.Instance, owner string) (gpu.Usage, error) {
	return onGPU(ctx, a, i.GPU, opUsage, func(b *board, h nvml.Device) (gpu.Usage, error) {
		op := fmt.Sprintf("%s of GPU instance %d", opUsage, i.ID)
		now, u, err := a.measure(op, b, h, i)
		last := b.samples[i.ID]
		if err == nil && now != nil && last != nil && last.owner == owner && last.instance.Same(i) {
			u.EngineActive, u.DRAMActive = a.between(last.gpm, now)
		}
		b.forgetSamples(i.ID)
		switch {
		case now == nil:
		case err != nil:
			_ = now.Free()
		default:
			if b.samples == nil {
				b.samples = map[int]*sample{}
			}
			b.samples[i.ID] = &sample{gpm: now, instance: i, owner: owner}
		}
		if err != nil {
			return gpu.Usage{}, err
		}
		return u, nil
	})
}

// measure takes a sample, nil without GPM, and reads the memory, of what is that very instance before and after.
func (a *Adapter) measure(op string, b *board, h nvml.Device, i gpu.Instance) (nvml.GpmSample, gpu.Usage, error) {
	if _, _, err := a.verify(op, b, h, i); err != nil {
		return nil, gpu.Usage{}, err
	}
	s, err := a.sample(op, b, h, i.ID)
	if err != nil {
		return s, gpu.Usage{}, err
	}
	u := gpu.Usage{}
	if len(i.Compute) > 0 {
		// That of a MIG device is its GPU instance's, whose compute instances share it.
		mig, ret := b.migDevice(h, computeID{i.ID, i.Compute[0].ID})
		var memory nvml.Memory
		if ret == nvml.SUCCESS {
			memory, ret = mig.GetMemoryInfo()
		}
		if ret != nvml.SUCCESS {
			return s, u, failed(op, b, gone(ret))
		}
		u.MemoryUsed, u.MemoryFree = memory.Used, memory.Free
	}
	_, _, err = a.verify(op, b, h, i)
	return s, u, err
}

// sample asks GPM for what it has counted. It gives nil where the board or its driver has no GPM.
func (a *Adapter) sample(op string, b *board, h nvml.Device, gi int) (nvml.GpmSample, error) {
	for _, symbol := range gpmSymbols {
		// Calling a function that an old driver lacks ends the process.
		if a.lib.Extensions().LookupSymbol(symbol) != nil {
			return nil, nil //nolint:nilerr // the error says that there is none
		}
	}
	support, ret := h.GpmQueryDeviceSupport()
	if ret == nvml.ERROR_NOT_SUPPORTED || ret == nvml.SUCCESS && support.IsSupportedDevice == 0 {
		return nil, nil
	}
	var s nvml.GpmSample
	if ret == nvml.SUCCESS {
		s, ret = a.lib.GpmSampleAlloc()
	}
	if ret != nvml.SUCCESS {
		return nil, failed(op, b, ret)
	}
	switch ret := h.GpmMigSampleGet(gi, s); ret {
	case nvml.SUCCESS:
		return s, nil
	case nvml.ERROR_NOT_SUPPORTED:
		_ = s.Free()
		return nil, nil
	default:
		return s, failed(op, b, gone(ret))
	}
}

// between is what GPM computes from two samples, nil where it can't.
func (a *Adapter) between(first, second nvml.GpmSample) (engine, dram *float64) {
	get := nvml.GpmMetricsGetType{Sample1: first, Sample2: second, NumMetrics: 2}
	get.Metrics[0].MetricId, get.Metrics[1].MetricId = uint32(nvml.GPM_METRIC_GRAPHICS_UTIL), uint32(nvml.GPM_METRIC_DRAM_BW_UTIL)
	if a.lib.GpmMetricsGet(&get) != nvml.SUCCESS {
		return nil, nil
	}
	return share(get.Metrics[0]), share(get.Metrics[1])
}

// maxPercent is what rounding may make of 100 %. What is more, or negative or NaN, is no percentage.
const maxPercent = 101

func share(m nvml.GpmMetric) *float64 {
	if nvml.Return(m.NvmlReturn) != nvml.SUCCESS || !(m.Value >= 0 && m.Value <= maxPercent) {
		return nil
	}
	active := min(m.Value/100, 1)
	return &active
}

// forgetSamples frees those of a GPU instance, or of all with gpu.Whole.
func (b *board) forgetSamples(gi int) {
	for id, s := range b.samples {
		if gi == gpu.Whole || gi == id {
			_ = s.gpm.Free()
			delete(b.samples, id)
		}
	}
}
