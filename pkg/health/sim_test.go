package health

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvml"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// news is a publisher that a test can wait for.
type news chan struct{}

func (news) Publishing() bool { return true }

func (n news) Wake() {
	select {
	case n <- struct{}{}:
	default:
	}
}

// From the driver to the conditions and back: a GPU that is lost while others are
// toggled, an instance with an error, and all of it over in the end.
func TestOnASimulatedNode(t *testing.T) {
	spec, err := nvmlsim.Parse("3xH100-SXM5-80GB,state=" + t.TempDir())
	require.NoError(t, err)
	sim, err := nvmlsim.Open(spec)
	require.NoError(t, err)
	defer func() { require.NoError(t, sim.Close()) }()
	boards, err := sim.Boards()
	require.NoError(t, err)
	registered := make(chan string, 100)
	adapter := nvml.New(sim.Interface(), nvml.WithObserver(func(op, uuid string, _ time.Duration, err error) {
		if op == "register events" && err == nil {
			registered <- uuid
		}
	}))
	require.NoError(t, adapter.Open(t.Context()))
	defer func() { require.NoError(t, adapter.Close()) }()

	dir := t.TempDir()
	nobody := func(context.Context) (string, error) { return "", nil }
	m := New(t.Context(), adapter, nobody, (*configv1alpha1.NodeConfiguration)(nil).HealthPolicy(), dir, sim.HostRoot())
	m.interval, m.tracker.steady = 10*time.Millisecond, 50*time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	changed := make(news, 1)
	running.Go(func() { m.Run(ctx, changed, func(gpu.Condition, bool) {}) })
	defer running.Wait()
	defer cancel()
	for range boards {
		<-registered
	}
	// until waits for the conditions to be those of a device each.
	until := func(want map[string]gpu.Device) {
		t.Helper()
		for {
			got := map[string]gpu.Device{}
			for _, c := range m.Conditions() {
				got[c.Reason] = c.Device
			}
			if maps.Equal(got, want) {
				return
			}
			<-changed
		}
	}
	lost, toggled := boards[0].UUID, boards[1].UUID

	require.NoError(t, adapter.SetMIGMode(t.Context(), toggled, true))
	require.Equal(t, toggled, <-registered)
	i, err := adapter.CreateGPUInstance(t.Context(), toggled, "1g.10gb", gpu.Placement{Start: 3, Size: 1})
	require.NoError(t, err)
	require.NoError(t, sim.Xid(toggled, 48, &i.ID, nil))
	require.NoError(t, sim.Xid(toggled, 31, nil, nil))
	until(map[string]gpu.Device{"Xid48": i.Device()})

	require.NoError(t, sim.Xid(lost, 79, nil, nil))
	require.NoError(t, sim.Lose(lost))
	require.NoError(t, sim.ECCErrors(boards[2].UUID, 1))
	until(map[string]gpu.Device{"Xid48": i.Device(), "Xid79": {GPU: lost}, ReasonLost: {GPU: lost}, ReasonUncorrectedECC: {GPU: boards[2].UUID}})

	require.NoError(t, sim.Restore(lost))
	until(map[string]gpu.Device{"Xid48": i.Device(), ReasonUncorrectedECC: {GPU: boards[2].UUID}})
	require.NoError(t, sim.Reset(toggled))
	require.NoError(t, sim.Reset(boards[2].UUID))
	until(map[string]gpu.Device{})
	saved, err := load(dir)
	require.NoError(t, err)
	require.Empty(t, saved.Problems)
}
