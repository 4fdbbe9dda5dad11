package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/nvml"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
	"github.com/kerf-project/kerf/pkg/plugin"
)

// meter answers for each GPU instance, by its id; what has no answer fails, and what is in hang never answers.
type meter struct {
	mu     sync.Mutex
	usage  map[int]gpu.Usage
	hang   map[string]bool
	owners map[int]string
	calls  int
}

func (m *meter) Usage(ctx context.Context, i gpu.Instance, owner string) (gpu.Usage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.hang[i.GPU] {
		m.mu.Unlock()
		<-ctx.Done()
		m.mu.Lock()
		return gpu.Usage{}, fmt.Errorf("read usage: %w", gpu.ErrDeadline)
	}
	m.owners[i.ID] = owner
	u, ok := m.usage[i.ID]
	if !ok {
		return gpu.Usage{}, errors.New("NVML: unknown error")
	}
	return u, nil
}

// busy is a usage with memory, and is busy at a share unless that is negative.
func busy(active float64) gpu.Usage {
	u := gpu.Usage{MemoryUsed: 3, MemoryFree: 7}
	if active >= 0 {
		u.EngineActive, u.DRAMActive = &active, new(float64)
	}
	return u
}

// preparedWith is a claim with instances of a GPU.
func preparedWith(uid, board string, prepared time.Time, ids ...int) *journal.Claim {
	c := &journal.Claim{UID: uid, Namespace: "ns", Name: uid, State: journal.ClaimPrepared, PreparedAt: prepared}
	for _, id := range ids {
		i := gpu.Instance{GPU: board, Profile: "1g.10gb", ID: id}
		c.Devices = append(c.Devices, journal.ClaimDevice{Name: fmt.Sprintf("d%d", id), Device: i.Device(), Instance: &i})
	}
	return c
}

// claimList are records that change while somebody reads them.
type claimList struct {
	mu  sync.Mutex
	all []*journal.Claim
}

func (l *claimList) set(all ...*journal.Claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = all
}

func (l *claimList) Claims() ([]*journal.Claim, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all, nil
}

func (l *claimList) Claim(string) (*journal.Claim, error) { return nil, journal.ErrNotFound }

// gathered are the values of all series, by name and labels.
func gathered(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			all[name] = m.Gauge.GetValue()
		}
	}
	return all
}

func TestSampler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			engine = "kerf_instance_engine_active_ratio GPU_I_ID=%d UUID=%s"
			dram   = "kerf_instance_dram_active_ratio GPU_I_ID=%d UUID=%s"
			used   = "kerf_instance_memory_used_bytes GPU_I_ID=%d UUID=%s"
			free   = "kerf_instance_memory_free_bytes GPU_I_ID=%d UUID=%s"
		)
		m := &meter{usage: map[int]gpu.Usage{1: busy(-1), 2: busy(0.85)}, hang: map[string]bool{"GPU-sick": true}, owners: map[int]string{}}
		admin := preparedWith("admin", "GPU-1", time.Now(), 2)
		admin.Devices[0].AdminAccess = true
		releasing := preparedWith("releasing", "GPU-1", time.Now(), 5)
		releasing.State = journal.ClaimReleasing
		whole := &journal.Claim{UID: "whole", State: journal.ClaimPrepared, Devices: []journal.ClaimDevice{{Device: gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-2"}}}}
		claims := &claimList{}
		claims.set(preparedWith("a", "GPU-1", time.Now(), 1, 2, 3), preparedWith("b", "GPU-sick", time.Now(), 1, 2), admin, releasing, whole)
		registry := prometheus.NewPedanticRegistry()
		s, err := plugin.NewSampler(registry, m, claims)
		require.NoError(t, err)
		require.Empty(t, gathered(t, registry))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			s.Run(ctx, 15*time.Second)
			close(done)
		}()

		// The GPU that does not answer costs ten seconds and one call; the others are measured.
		time.Sleep(11 * time.Second)
		synctest.Wait()
		require.Equal(t, map[string]float64{
			fmt.Sprintf(used, 1, "GPU-1"): 3, fmt.Sprintf(free, 1, "GPU-1"): 7,
			fmt.Sprintf(used, 2, "GPU-1"): 3, fmt.Sprintf(free, 2, "GPU-1"): 7,
			fmt.Sprintf(engine, 2, "GPU-1"): 0.85, fmt.Sprintf(dram, 2, "GPU-1"): 0,
		}, gathered(t, registry), "what failed or was not measured is no zero")
		require.Equal(t, 4, m.calls)
		first := m.owners[2]

		// The next claim on the same instance is another owner, and does not show what its predecessor used.
		claims.set(preparedWith("a", "GPU-1", time.Now(), 2))
		require.Empty(t, gathered(t, registry))
		time.Sleep(15 * time.Second)
		synctest.Wait()
		require.Equal(t, 0.85, gathered(t, registry)[fmt.Sprintf(engine, 2, "GPU-1")])
		require.NotEqual(t, first, m.owners[2], "the same claim, prepared anew")

		// A sample that fails takes the last one away.
		m.mu.Lock()
		clear(m.usage)
		m.mu.Unlock()
		time.Sleep(15 * time.Second)
		synctest.Wait()
		require.Empty(t, gathered(t, registry))
		cancel()
		<-done
	})
}

// The real adapter on simulated boards: an H100 tells how busy an instance is, an A100 its memory only, and a
// sampler that never rests keeps nobody from destroying what it measures, nor from switching MIG off.
func TestSamplerOnBoards(t *testing.T) {
	spec, err := nvmlsim.Parse("1xH100-SXM5-80GB,1xA100-SXM4-40GB,mig=on,state=" + t.TempDir())
	require.NoError(t, err)
	sim, err := nvmlsim.Open(spec)
	require.NoError(t, err)
	defer func() { require.NoError(t, sim.Close()) }()
	adapter := nvml.New(sim.Interface())
	require.NoError(t, adapter.Open(t.Context()))
	defer func() { require.NoError(t, adapter.Close()) }()
	boards, err := sim.Boards()
	require.NoError(t, err)
	claims := &claimList{}
	var all []*journal.Claim
	var made []gpu.Instance
	for n, profile := range []string{"3g.40gb", "3g.20gb"} {
		i, err := adapter.CreateGPUInstance(t.Context(), boards[n].UUID, profile, gpu.Placement{Start: 0, Size: 4})
		require.NoError(t, err)
		i, err = adapter.CreateComputeInstance(t.Context(), i)
		require.NoError(t, err)
		require.NoError(t, sim.SetLoad(boards[n].UUID, &i.ID, nvmlsim.Load{EnginePercent: 85, DRAMPercent: 40, MemoryMiB: 1024}))
		made = append(made, i)
		all = append(all, &journal.Claim{UID: profile, State: journal.ClaimPrepared, Devices: []journal.ClaimDevice{{Name: profile, Device: i.Device(), Instance: &i}}})
	}
	claims.set(all...)
	registry := prometheus.NewPedanticRegistry()
	s, err := plugin.NewSampler(registry, adapter, claims)
	require.NoError(t, err)
	run := func(every time.Duration) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			s.Run(ctx, every)
			close(done)
		}()
		return func() {
			cancel()
			<-done
		}
	}
	stop := run(200 * time.Millisecond)
	series := func(name string, board int) string {
		return fmt.Sprintf("kerf_instance_%s GPU_I_ID=1 UUID=%s", name, boards[board].UUID)
	}
	require.Eventually(t, func() bool {
		got := gathered(t, registry)
		engine, dram := got[series("engine_active_ratio", 0)], got[series("dram_active_ratio", 0)]
		return math.Abs(engine-0.85) < 1e-3 && math.Abs(dram-0.4) < 1e-3 && len(got) == 6 &&
			got[series("memory_used_bytes", 0)] == 1<<30 && got[series("memory_used_bytes", 1)] == 1<<30
	}, waitLong, waitStep)
	stop()

	stop = run(time.Microsecond)
	left, err := adapter.DestroyComputeInstance(t.Context(), made[0])
	require.NoError(t, err)
	require.NoError(t, adapter.DestroyGPUInstance(t.Context(), left))
	require.NoError(t, adapter.SetMIGMode(t.Context(), made[0].GPU, false))
	stop()
}
