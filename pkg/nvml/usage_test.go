package nvml

import (
	"errors"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// measured is a node whose counters go by a clock, with the first board's 3g instance, made by the adapter.
type measured struct {
	sim  *nvmlsim.Node
	a    *Adapter
	gpu  string
	now  time.Time
	made gpu.Instance
}

func newMeasured(t *testing.T, board, profile string, wrap func(nvml.Interface) nvml.Interface) *measured {
	t.Helper()
	m := &measured{now: time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)}
	spec, err := nvmlsim.Parse("1x" + board + ",mig=on,state=" + t.TempDir())
	require.NoError(t, err)
	m.sim, err = nvmlsim.Open(spec, nvmlsim.WithClock(func() time.Time { return m.now }))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.sim.Close()) })
	m.a, m.gpu = open(t, wrap(m.sim.Interface())), uuids(t, m.sim)[0]
	m.made = m.create(t, profile)
	return m
}

func (m *measured) create(t *testing.T, profile string) gpu.Instance {
	t.Helper()
	made, err := m.a.CreateGPUInstance(t.Context(), m.gpu, profile, at(0, 4))
	require.NoError(t, err)
	made, err = m.a.CreateComputeInstance(t.Context(), made)
	require.NoError(t, err)
	return made
}

func (m *measured) destroy(t *testing.T) {
	t.Helper()
	left, err := m.a.DestroyComputeInstance(t.Context(), m.made)
	require.NoError(t, err)
	require.NoError(t, m.a.DestroyGPUInstance(t.Context(), left))
}

// run lets a load run for a time.
func (m *measured) run(t *testing.T, l nvmlsim.Load, d time.Duration) {
	t.Helper()
	require.NoError(t, m.sim.SetLoad(m.gpu, &m.made.ID, l))
	m.now = m.now.Add(d)
}

func (m *measured) usage(t *testing.T, owner string) gpu.Usage {
	t.Helper()
	u, err := m.a.Usage(t.Context(), m.made, owner)
	require.NoError(t, err)
	return u
}

func asItIs(lib nvml.Interface) nvml.Interface { return lib }

func TestUsage(t *testing.T) {
	m := newMeasured(t, "H100-SXM5-80GB", "3g.40gb", asItIs)
	first := m.usage(t, "claim")
	require.Nil(t, first.EngineActive, "there is nothing to compare with")
	require.Zero(t, first.MemoryUsed)
	require.NotZero(t, first.MemoryFree)

	m.run(t, nvmlsim.Load{EnginePercent: 85, DRAMPercent: 40, MemoryMiB: 6000}, 15*time.Second)
	u := m.usage(t, "claim")
	require.InDelta(t, 0.85, *u.EngineActive, 1e-6)
	require.InDelta(t, 0.40, *u.DRAMActive, 1e-6)
	require.EqualValues(t, 6000<<20, u.MemoryUsed)
	require.Equal(t, first.MemoryFree, u.MemoryFree+u.MemoryUsed)

	m.run(t, nvmlsim.Load{}, 15*time.Second)
	u = m.usage(t, "claim")
	require.Zero(t, *u.EngineActive, "idle is a measurement too")

	m.now = m.now.Add(time.Millisecond)
	require.Nil(t, m.usage(t, "claim").EngineActive, "too soon")
}

// An A100 has no GPM: its instances have memory, and nothing that could pass for idle.
func TestUsageWithoutGPM(t *testing.T) {
	m := newMeasured(t, "A100-SXM4-40GB", "3g.20gb", asItIs)
	for range 2 {
		m.run(t, nvmlsim.Load{EnginePercent: 85, MemoryMiB: 5000}, 15*time.Second)
		u := m.usage(t, "claim")
		require.Nil(t, u.EngineActive)
		require.Nil(t, u.DRAMActive)
		require.EqualValues(t, 5000<<20, u.MemoryUsed)
	}
}

// oldDriver lacks the functions of GPM, so that to call one ends the process.
type oldDriver struct{ nvml.Interface }

func (oldDriver) Extensions() nvml.ExtendedInterface {
	return &mock.ExtendedInterface{LookupSymbolFunc: func(symbol string) error {
		if strings.HasPrefix(symbol, "nvmlGpm") {
			return errors.New("undefined symbol")
		}
		return nil
	}}
}

func (oldDriver) GpmSampleAlloc() (nvml.GpmSample, nvml.Return) { panic("undefined symbol") }

func TestUsageWithAnOldDriver(t *testing.T) {
	m := newMeasured(t, "H100-SXM5-80GB", "3g.40gb", func(lib nvml.Interface) nvml.Interface { return oldDriver{lib} })
	u := m.usage(t, "claim")
	require.Nil(t, u.EngineActive)
	require.NotZero(t, u.MemoryFree)
}

// counted counts the samples that are not freed.
type counted struct {
	nvml.Interface
	left *atomic.Int32
}

type countedSample struct {
	nvml.GpmSample
	left *atomic.Int32
}

func (s countedSample) Free() nvml.Return {
	s.left.Add(-1)
	return s.GpmSample.Free()
}

func (c counted) GpmSampleAlloc() (nvml.GpmSample, nvml.Return) {
	s, ret := c.Interface.GpmSampleAlloc()
	if ret == nvml.SUCCESS {
		c.left.Add(1)
	}
	return countedSample{s, c.left}, ret
}

func (c counted) GpmMetricsGet(get *nvml.GpmMetricsGetType) nvml.Return {
	bare := *get
	bare.Sample1, bare.Sample2 = get.Sample1.(countedSample).GpmSample, get.Sample2.(countedSample).GpmSample
	ret := c.Interface.GpmMetricsGet(&bare)
	get.Metrics = bare.Metrics
	return ret
}

type countedDevice struct{ nvml.Device }

func (d countedDevice) GpmMigSampleGet(gi int, s nvml.GpmSample) nvml.Return {
	return d.Device.GpmMigSampleGet(gi, s.(countedSample).GpmSample)
}

func (c counted) DeviceGetHandleByIndex(n int) (nvml.Device, nvml.Return) {
	h, ret := c.Interface.DeviceGetHandleByIndex(n)
	return countedDevice{h}, ret
}

func (c counted) DeviceGetHandleByPciBusId(id string) (nvml.Device, nvml.Return) {
	h, ret := c.Interface.DeviceGetHandleByPciBusId(id)
	return countedDevice{h}, ret
}

// Whatever ends the instance ends what was counted for it, and nothing is kept that could stand in the way.
func TestUsageOverTwoLives(t *testing.T) {
	for name, c := range map[string]struct {
		owner   string
		between func(t *testing.T, m *measured)
	}{
		"the next owner of the same instance": {"next", func(*testing.T, *measured) {}},
		"made again with all its ids": {"claim", func(t *testing.T, m *measured) {
			m.destroy(t)
			again := m.create(t, "3g.40gb")
			require.True(t, again.Same(m.made))
		}},
		"another profile with its ids and its UUID": {"claim", func(t *testing.T, m *measured) {
			m.destroy(t)
			next := m.create(t, "4g.40gb")
			require.Equal(t, m.made.Compute[0].UUID, next.Compute[0].UUID)
			m.made = next
		}},
		"replaced by somebody else": {"claim", func(t *testing.T, m *measured) {
			require.NoError(t, m.sim.DestroyInstance(m.gpu, m.made.ID))
			_, err := m.sim.CreateInstance(m.gpu, "4g.40gb", &gpu.Placement{Start: 0, Size: 4}, true)
			require.NoError(t, err)
			m.made = instances(t, m.sim)[0]
		}},
		"its compute instance made again": {"claim", func(t *testing.T, m *measured) {
			left, err := m.a.DestroyComputeInstance(t.Context(), m.made)
			require.NoError(t, err)
			again, err := m.a.CreateComputeInstance(t.Context(), left)
			require.NoError(t, err)
			require.True(t, again.Same(m.made))
		}},
		"MIG off and on again": {"claim", func(t *testing.T, m *measured) {
			m.destroy(t)
			require.NoError(t, m.a.SetMIGMode(t.Context(), m.gpu, false))
			require.NoError(t, m.a.SetMIGMode(t.Context(), m.gpu, true))
			m.made = m.create(t, "3g.40gb")
		}},
		"destroyed by somebody else and seen to be": {"claim", func(t *testing.T, m *measured) {
			require.NoError(t, m.sim.DestroyInstance(m.gpu, m.made.ID))
			_, err := m.a.Usage(t.Context(), m.made, "claim")
			require.ErrorIs(t, err, gpu.ErrNotFound)
			m.made = m.create(t, "3g.40gb")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var left atomic.Int32
			m := newMeasured(t, "H100-SXM5-80GB", "3g.40gb", func(lib nvml.Interface) nvml.Interface { return counted{lib, &left} })
			m.run(t, nvmlsim.Load{EnginePercent: 50}, time.Minute)
			require.Nil(t, m.usage(t, "claim").EngineActive)
			m.now = m.now.Add(time.Minute)
			require.InDelta(t, 0.5, *m.usage(t, "claim").EngineActive, 1e-6)
			require.EqualValues(t, 1, left.Load(), "one sample an instance")
			c.between(t, m)
			// By now the counters say more than those of the first life, so that a difference would look good.
			m.run(t, nvmlsim.Load{EnginePercent: 100}, 5*time.Minute)
			require.Nil(t, m.usage(t, c.owner).EngineActive)
			m.now = m.now.Add(time.Minute)
			require.InDelta(t, 1, *m.usage(t, c.owner).EngineActive, 1e-6)
			require.EqualValues(t, 1, left.Load())
			m.destroy(t)
			require.Zero(t, left.Load(), "no sample outlives its instance")
			m.made = m.create(t, "3g.40gb")
			m.usage(t, "claim")
			require.NoError(t, m.a.Close())
			require.Zero(t, left.Load())
		})
	}
}

// Somebody puts another instance in the place of ours before each single call of a measurement, once:
// nothing is computed over both, and what fails says that ours is gone.
func TestUsageWhileOthersChange(t *testing.T) {
	c := newChurn(t)
	for n := 0; ; n++ {
		a := c.begin(nil, n)
		g, err := a.GPU(t.Context(), c.uuid)
		require.NoError(t, err)
		ours, ok := g.InstanceAt("3g.40gb", at(0, 4))
		require.True(t, ok)
		require.NoError(t, c.other.SetLoad(c.uuid, &ours.ID, nvmlsim.Load{EnginePercent: 50}))
		c.now = c.now.Add(time.Minute)
		_, err = a.Usage(t.Context(), ours, "claim")
		require.NoError(t, err)
		c.now = c.now.Add(time.Minute)
		c.calls, c.strike = 0, func() {
			c.strike = nil
			c.destroy("3g.40gb", 0, 4)
			c.make("4g.40gb", 0, 4)
			require.NoError(t, c.other.SetLoad(c.uuid, &ours.ID, nvmlsim.Load{EnginePercent: 100}))
			c.now = c.now.Add(5 * time.Minute)
		}
		u, err := a.Usage(t.Context(), ours, "claim")
		if c.calls <= n {
			require.Greater(t, n, 20, "the sweep has hardly begun")
			break
		}
		if err != nil {
			require.ErrorIs(t, err, gpu.ErrNotFound, "call %d", n)
		} else {
			require.InDelta(t, 0.5, *u.EngineActive, 1e-6, "call %d", n)
		}
		_, err = a.Usage(t.Context(), ours, "claim")
		require.ErrorIs(t, err, gpu.ErrNotFound)
	}
}

func TestWhatIsNoShareIsNotKnown(t *testing.T) {
	for value, want := range map[float64]any{-1: nil, 0: 0.0, 50: 0.5, 100.4: 1.0, 150: nil, math.NaN(): nil, math.Inf(1): nil} {
		got := share(nvml.GpmMetric{Value: value})
		if want == nil {
			require.Nil(t, got, "%v", value)
		} else {
			require.Equal(t, want, *got)
		}
	}
	require.Nil(t, share(nvml.GpmMetric{Value: 50, NvmlReturn: uint32(nvml.ERROR_NO_DATA)}))
}
