package nvml

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// gate is a library in which the calls about one board hang while the gate is shut.
type gate struct {
	nvml.Interface
	uuid    string
	shut    atomic.Bool
	hanging chan struct{}
	open    chan struct{}
}

func newGate(lib nvml.Interface, uuid string) *gate {
	g := &gate{Interface: lib, uuid: uuid, hanging: make(chan struct{}, 100), open: make(chan struct{})}
	g.shut.Store(true)
	return g
}

type gatedDevice struct {
	nvml.Device
	gate *gate
}

func (d gatedDevice) GetMigMode() (int, int, nvml.Return) {
	if d.gate.shut.Load() {
		d.gate.hanging <- struct{}{}
		<-d.gate.open
	}
	return d.Device.GetMigMode()
}

func (g *gate) wrap(h nvml.Device, ret nvml.Return) (nvml.Device, nvml.Return) {
	if ret == nvml.SUCCESS {
		if uuid, ret := h.GetUUID(); ret == nvml.SUCCESS && uuid == g.uuid {
			return gatedDevice{h, g}, nvml.SUCCESS
		}
	}
	return h, ret
}

func (g *gate) DeviceGetHandleByIndex(n int) (nvml.Device, nvml.Return) {
	return g.wrap(g.Interface.DeviceGetHandleByIndex(n))
}

func (g *gate) DeviceGetHandleByPciBusId(id string) (nvml.Device, nvml.Return) {
	return g.wrap(g.Interface.DeviceGetHandleByPciBusId(id))
}

func (g *gate) release() {
	g.shut.Store(false)
	close(g.open)
}

// A board on which the driver hangs costs its own calls only, and only until the driver answers.
func TestHangingBoard(t *testing.T) {
	sim := simulate(t, "3xH100-SXM5-80GB")
	sick, well := uuids(t, sim)[1], uuids(t, sim)[2]
	g := newGate(sim.Interface(), sick)
	var late atomic.Int32
	a := open(t, g, WithObserver(func(op, uuid string, took time.Duration, err error) {
		if uuid == sick && op == opRead {
			late.Add(1)
		}
	}))

	// The caller gives up; the call itself goes on.
	cause := errors.New("the kubelet has given up")
	ctx, giveUp := context.WithCancelCause(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := a.GPU(ctx, sick)
		first <- err
	}()
	<-g.hanging
	giveUp(cause)
	err := <-first
	require.ErrorIs(t, err, gpu.ErrDeadline)
	require.ErrorIs(t, err, cause)
	require.ErrorContains(t, err, sick)

	// From now on its calls fail at once, without a deadline of their own.
	_, err = a.GPU(context.Background(), sick)
	require.ErrorIs(t, err, gpu.ErrDeadline)
	require.ErrorContains(t, err, opRead)
	_, err = a.CreateGPUInstance(context.Background(), sick, "1g.10gb", gpu.Placement{Start: 0, Size: 1})
	require.ErrorIs(t, err, gpu.ErrDeadline)
	require.Empty(t, g.hanging, "no further call may be sent after one that hangs")

	// The others go on.
	require.NoError(t, a.SetMIGMode(t.Context(), well, true))
	_, err = a.CreateGPUInstance(t.Context(), well, "1g.10gb", gpu.Placement{Start: 0, Size: 1})
	require.NoError(t, err)
	node, err := a.Node(context.Background())
	var bad gpu.ReadErrors
	require.ErrorAs(t, err, &bad)
	require.Len(t, bad, 1)
	require.Equal(t, sick, bad[0].UUID)
	require.Len(t, node.GPUs, 2, "the sick board was never read")
	require.ErrorIs(t, a.Close(), gpu.ErrDeadline, "NVML would hang in Shutdown too")

	// The driver answers at last.
	g.release()
	require.Eventually(t, func() bool { return late.Load() == 1 }, time.Minute, time.Millisecond)
	_, err = a.GPU(t.Context(), sick)
	require.NoError(t, err)
	node, err = a.Node(t.Context())
	require.NoError(t, err)
	require.Len(t, node.GPUs, 3)
}

// Whoever waits for its turn behind a call that turns out to hang is told so.
func TestWaitingBehindAHangingCall(t *testing.T) {
	sim := simulate(t, "1xH100-SXM5-80GB")
	uuid := uuids(t, sim)[0]
	g := newGate(sim.Interface(), uuid)
	defer g.release()
	a := open(t, g)
	ctx, giveUp := context.WithCancel(t.Context())
	_, err := a.find(ctx, uuid)
	require.NoError(t, err)

	var waiting sync.WaitGroup
	waiting.Go(func() {
		_, err := a.GPU(ctx, uuid)
		assert.ErrorIs(t, err, gpu.ErrDeadline)
	})
	<-g.hanging
	started := make(chan struct{}, 3)
	for range 3 {
		waiting.Go(func() {
			started <- struct{}{}
			_, err := a.GPU(context.Background(), uuid)
			assert.ErrorIs(t, err, gpu.ErrDeadline)
		})
	}
	for range 3 {
		<-started
	}
	giveUp()
	waiting.Wait()
}

// A call that is over before it begins changes nothing.
func TestOverBeforeItBegins(t *testing.T) {
	a := open(t, simulate(t, "1xH100-SXM5-80GB").Interface())
	node, err := a.Node(t.Context())
	require.NoError(t, err)
	uuid := node.GPUs[0].UUID
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = a.SetMIGMode(ctx, uuid, true)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, gpu.ErrDeadline, "that would mean that it may yet come true")
	g, err := a.GPU(t.Context(), uuid)
	require.NoError(t, err)
	require.False(t, g.MIG.Current)
}

// Calls about one board take turns.
func TestTurns(t *testing.T) {
	a := open(t, simulate(t, "1xH100-SXM5-80GB").Interface())
	node, err := a.Node(t.Context())
	require.NoError(t, err)
	b := a.session.boards[0]
	require.Equal(t, node.GPUs[0].UUID, b.id())
	var inside atomic.Int32
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			_, err := call(t.Context(), a, b, "test", func(nvml.Device) (int32, error) {
				assert.Equal(t, int32(1), inside.Add(1))
				return inside.Add(-1), nil
			})
			assert.NoError(t, err)
		})
	}
	all.Wait()
}
