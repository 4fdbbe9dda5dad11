package nvmlsim

import (
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"
)

// clock is a time that passes when it is told to.
type clock struct{ at time.Time }

func newClock() *clock { return &clock{time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time { return c.at }

func (c *clock) pass(d time.Duration) { c.at = c.at.Add(d) }

func sample(t *testing.T, n *Node, d nvml.Device, gi int) nvml.GpmSample {
	t.Helper()
	s, ret := n.Interface().GpmSampleAlloc()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.SUCCESS, d.GpmMigSampleGet(gi, s))
	return s
}

// metrics are engine and memory bandwidth, in percent.
func metrics(t *testing.T, n *Node, first, second nvml.GpmSample) (engine, dram nvml.GpmMetric) {
	t.Helper()
	get := nvml.GpmMetricsGetType{Sample1: first, Sample2: second, NumMetrics: 2}
	get.Metrics[0].MetricId, get.Metrics[1].MetricId = uint32(nvml.GPM_METRIC_GRAPHICS_UTIL), uint32(nvml.GPM_METRIC_DRAM_BW_UTIL)
	require.Equal(t, nvml.SUCCESS, n.Interface().GpmMetricsGet(&get))
	return get.Metrics[0], get.Metrics[1]
}

func TestGPMIsTheMeanBetweenTwoSamples(t *testing.T) {
	time := newClock()
	n := openWith(t, "1xH100-SXM5-80GB,mig=on", WithClock(time.now))
	d := handle(t, n, 0)
	create(t, d, g3, 0)
	support, ret := d.GpmQueryDeviceSupport()
	require.Equal(t, nvml.SUCCESS, ret)
	require.EqualValues(t, 1, support.IsSupportedDevice)

	other := again(t, n) // kerf sim is another process.
	other.session.now = time.now
	require.NoError(t, other.SetLoad("0", ptr(1), Load{EnginePercent: 40, DRAMPercent: 10, MemoryMiB: 6000}))
	first := sample(t, n, d, 1)
	time.pass(10e9)
	require.NoError(t, other.SetLoad("0", ptr(1), Load{EnginePercent: 80, DRAMPercent: 30, MemoryMiB: 6000}))
	time.pass(10e9)
	second := sample(t, n, d, 1)
	engine, dram := metrics(t, n, first, second)
	require.InDelta(t, 60, engine.Value, 1e-6)
	require.InDelta(t, 20, dram.Value, 1e-6)

	mig, ret := d.GetMigDeviceHandleByIndex(0)
	require.Equal(t, nvml.SUCCESS, ret)
	for _, device := range []nvml.Device{mig, d} {
		memory, ret := device.GetMemoryInfo()
		require.Equal(t, nvml.SUCCESS, ret)
		require.EqualValues(t, 6000*mib, memory.Used)
		require.Equal(t, memory.Total, memory.Used+memory.Free)
	}

	time.pass(gpmRefresh)
	engine, dram = metrics(t, n, second, sample(t, n, d, 1))
	require.EqualValues(t, nvml.ERROR_NO_DATA, engine.NvmlReturn)
	require.EqualValues(t, nvml.ERROR_NO_DATA, dram.NvmlReturn)
}

// Who computes over the end of an instance gets a number, which means nothing.
func TestGPMOverTwoLivesIsNonsense(t *testing.T) {
	time := newClock()
	n := openWith(t, "1xH100-SXM5-80GB,mig=on", WithClock(time.now))
	d := handle(t, n, 0)
	gi, ci := create(t, d, g3, 0)
	require.NoError(t, n.SetLoad("0", ptr(1), Load{EnginePercent: 100}))
	time.pass(60e9)
	first := sample(t, n, d, 1)
	require.Equal(t, nvml.SUCCESS, ci.Destroy())
	require.Equal(t, nvml.SUCCESS, gi.Destroy())
	s, ret := n.Interface().GpmSampleAlloc()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.ERROR_NOT_FOUND, d.GpmMigSampleGet(1, s), "an instance that has gone")

	create(t, d, g3, 0)
	time.pass(15e9)
	engine, _ := metrics(t, n, first, sample(t, n, d, 1))
	require.EqualValues(t, nvml.SUCCESS, engine.NvmlReturn)
	require.Negative(t, engine.Value)
}

func TestGPMRefuses(t *testing.T) {
	n := newNode(t, "1xH100-SXM5-80GB,1xA100-SXM4-40GB,mig=on")
	d, a100 := handle(t, n, 0), handle(t, n, 1)
	create(t, d, g3, 0)
	create(t, d, g3, 4)
	create(t, a100, g3, 0)
	first, second := sample(t, n, d, 1), sample(t, n, d, 2)
	empty, ret := n.Interface().GpmSampleAlloc()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.ERROR_NOT_SUPPORTED, a100.GpmMigSampleGet(1, empty))
	_, ret = a100.GpmQueryDeviceSupport()
	require.Equal(t, nvml.ERROR_NOT_SUPPORTED, ret)

	get := func(first, second nvml.GpmSample) nvml.Return {
		return n.Interface().GpmMetricsGet(&nvml.GpmMetricsGetType{Sample1: first, Sample2: second})
	}
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, get(first, second), "of two instances")
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, get(first, empty), "of which one was never taken")
	require.Equal(t, nvml.SUCCESS, get(first, first))
	require.Equal(t, nvml.SUCCESS, first.Free())
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, first.Free())
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, get(first, first), "of which one is freed")
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, d.GpmMigSampleGet(1, first))
}

func TestLoadIsWhereSomethingCanRun(t *testing.T) {
	n := newNode(t, "1xH100-SXM5-80GB,1xL40S,mig=on")
	require.ErrorIs(t, n.SetLoad("0", nil, Load{EnginePercent: 50}), nvml.ERROR_INVALID_ARGUMENT, "in MIG mode only instances run anything")
	require.ErrorIs(t, n.SetLoad("0", ptr(1), Load{EnginePercent: 50}), nvml.ERROR_NOT_FOUND)
	require.ErrorIs(t, n.SetLoad("1", nil, Load{EnginePercent: 101}), nvml.ERROR_INVALID_ARGUMENT)
	require.NoError(t, n.SetLoad("1", nil, Load{EnginePercent: 50, DRAMPercent: 20, MemoryMiB: 100}))
	d := handle(t, n, 1)
	utilization, ret := d.GetUtilizationRates()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.Utilization{Gpu: 50, Memory: 20}, utilization)
	require.NoError(t, n.Reset("1"))
	d = handle(t, n, 1)
	utilization, ret = d.GetUtilizationRates()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Zero(t, utilization, "a reset ends what runs")
}
