package nvmlsim

import (
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// gpmRefresh is how often the driver refreshes what it samples (nvml.h).
const gpmRefresh = 100 * time.Millisecond

// gpmSample is a buffer for the counters of a GPU instance at a moment.
type gpmSample struct {
	session *session
	freed   bool

	// at is zero until something was sampled.
	at           time.Time
	board, gi    int
	engine, dram float64
}

var _ nvml.GpmSample = (*gpmSample)(nil)

func (s *session) GpmSampleAlloc() (nvml.GpmSample, nvml.Return) {
	if _, ret := s.enter("GpmSampleAlloc", -1); ret != nvml.SUCCESS {
		return nil, ret
	}
	return &gpmSample{session: s}, nvml.SUCCESS
}

func (p *gpmSample) Free() nvml.Return {
	if p.freed {
		return nvml.ERROR_INVALID_ARGUMENT
	}
	p.freed = true
	return nvml.SUCCESS
}

// Get would sample a whole board, which is not simulated.
func (p *gpmSample) Get(nvml.Device) nvml.Return { return nvml.ERROR_NOT_SUPPORTED }

func (p *gpmSample) MigGet(d nvml.Device, gi int) nvml.Return { return d.GpmMigSampleGet(gi, p) }

// hasGPM: nvml.h says for Hopper or newer.
func (g *board) hasGPM() bool { return g.table.Architecture == "Hopper" }

func (d *device) GpmQueryDeviceSupport() (nvml.GpmSupport, nvml.Return) {
	_, g, ret := d.look("GpmQueryDeviceSupport")
	if ret == nvml.SUCCESS && !g.hasGPM() {
		ret = nvml.ERROR_NOT_SUPPORTED
	}
	if ret != nvml.SUCCESS {
		return nvml.GpmSupport{}, ret
	}
	return nvml.GpmSupport{Version: nvml.GPM_SUPPORT_VERSION, IsSupportedDevice: 1}, nvml.SUCCESS
}

func (d *device) GpmMigSampleGet(gi int, into nvml.GpmSample) nvml.Return {
	_, g, ret := d.look("GpmMigSampleGet")
	p, ok := into.(*gpmSample)
	switch {
	case ret != nvml.SUCCESS:
		return ret
	case !ok || p.freed:
		return nvml.ERROR_INVALID_ARGUMENT
	case !g.hasGPM() || !g.MIG:
		return nvml.ERROR_NOT_SUPPORTED
	case g.instance(gi) == nil:
		// [inferred]: nvml.h names no error.
		return nvml.ERROR_NOT_FOUND
	}
	p.at, p.board, p.gi = d.session.now(), d.index, gi
	p.engine, p.dram = g.instance(gi).Load.counters(p.at)
	return nvml.SUCCESS
}

// GpmMetricsGet knows the metrics GRAPHICS_UTIL and DRAM_BW_UTIL, in percent.
func (s *session) GpmMetricsGet(get *nvml.GpmMetricsGetType) nvml.Return {
	if _, ret := s.enter("GpmMetricsGet", -1); ret != nvml.SUCCESS {
		return ret
	}
	if get == nil || int(get.NumMetrics) > len(get.Metrics) {
		return nvml.ERROR_INVALID_ARGUMENT
	}
	first, ok1 := get.Sample1.(*gpmSample)
	second, ok2 := get.Sample2.(*gpmSample)
	switch {
	case !ok1 || !ok2 || first.freed || second.freed || first.at.IsZero() || second.at.IsZero():
		return nvml.ERROR_INVALID_ARGUMENT
	case first.board != second.board || first.gi != second.gi:
		// [inferred]: there is nothing to be had from them.
		return nvml.ERROR_INVALID_ARGUMENT
	}
	took := second.at.Sub(first.at)
	for n := range get.NumMetrics {
		m := &get.Metrics[n]
		m.Value, m.NvmlReturn = 0, uint32(nvml.SUCCESS)
		switch {
		case took <= gpmRefresh:
			// nvml.h: the interval should be greater. [inferred]: else nothing has been counted.
			m.NvmlReturn = uint32(nvml.ERROR_NO_DATA)
		case m.MetricId == uint32(nvml.GPM_METRIC_GRAPHICS_UTIL):
			m.Value = 100 * (second.engine - first.engine) / took.Seconds()
		case m.MetricId == uint32(nvml.GPM_METRIC_DRAM_BW_UTIL):
			m.Value = 100 * (second.dram - first.dram) / took.Seconds()
		default:
			m.NvmlReturn = uint32(nvml.ERROR_NOT_SUPPORTED)
		}
	}
	return nvml.SUCCESS
}
