package nvml

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// listener is an adapter that watches, and what it hears.
type listener struct {
	*Adapter
	t *testing.T
	// registered gets the UUID of each board that it begins to listen to.
	registered chan string
	events     chan gpu.Event
}

func listen(t *testing.T, sim *nvmlsim.Node) *listener {
	t.Helper()
	l := &listener{t: t, registered: make(chan string, 100), events: make(chan gpu.Event, 100)}
	l.Adapter = open(t, sim.Interface(), WithObserver(func(op, uuid string, _ time.Duration, err error) {
		if op == opRegisterEvents && err == nil {
			l.registered <- uuid
		}
	}))
	l.eventRetry = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Watch(ctx, func(e gpu.Event) { l.events <- e })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return l
}

func (l *listener) awaitRegistered(uuids ...string) {
	l.t.Helper()
	var got []string
	for range uuids {
		got = append(got, <-l.registered)
	}
	require.ElementsMatch(l.t, uuids, got)
}

func xidOf(uuid string, number uint64) gpu.Event {
	return gpu.Event{GPU: uuid, Xid: number, GPUInstance: gpu.Whole, ComputeInstance: gpu.Whole}
}

func TestEvents(t *testing.T) {
	sim := simulate(t, "2xH100-SXM5-80GB,1xL40S,mig=on")
	all := uuids(t, sim)
	l := listen(t, sim)
	l.awaitRegistered(all...)
	i, err := l.CreateGPUInstance(t.Context(), all[1], "1g.10gb", at(3, 1))
	require.NoError(t, err)

	require.NoError(t, sim.Xid(all[0], 79, nil, nil))
	require.Equal(t, xidOf(all[0], 79), <-l.events)
	zero := 0
	require.NoError(t, sim.Xid(all[1], 94, &i.ID, &zero))
	require.Equal(t, gpu.Event{GPU: all[1], Xid: 94, GPUInstance: i.ID, ComputeInstance: 0}, <-l.events)
	require.NoError(t, sim.ECCErrors(all[2], 1))
	require.Equal(t, xidOf(all[2], 0), <-l.events)
}

// The driver takes whoever listens for a user of the board, also its own session.
func TestToggleWhileListening(t *testing.T) {
	sim := simulate(t, "2xH100-SXM5-80GB")
	all := uuids(t, sim)
	l := listen(t, sim)
	l.awaitRegistered(all...)
	for range 3 {
		for _, on := range []bool{true, false} {
			require.NoError(t, l.SetMIGMode(t.Context(), all[0], on))
			l.awaitRegistered(all[0])
			require.NoError(t, sim.Xid(all[0], 48, nil, nil))
			require.Equal(t, xidOf(all[0], 48), <-l.events)
		}
	}
	// The other board was listened to all the while.
	require.NoError(t, sim.Xid(all[1], 46, nil, nil))
	require.Equal(t, xidOf(all[1], 46), <-l.events)

	// A toggle that fails leaves no deaf board.
	require.NoError(t, sim.AddClient(all[0], nvmlsim.Client{PID: 9, Process: true}))
	require.ErrorIs(t, l.SetMIGMode(t.Context(), all[0], true), gpu.ErrInUse)
	l.awaitRegistered(all[0])
}

// What was reported just before the ear was closed is heard all the same.
func TestNothingIsLostWhenTheEarIsClosed(t *testing.T) {
	sim := simulate(t, "1xA10G")
	a := open(t, sim.Interface())
	b := a.session.boards[0]
	opened, err := call(t.Context(), a, b, opRegisterEvents, func(h nvml.Device) (bool, error) { return a.openEar(b, h) })
	require.NoError(t, err)
	require.True(t, opened)
	require.NoError(t, sim.Xid("0", 48, nil, nil))
	require.NoError(t, sim.Xid("0", 64, nil, nil))
	b.ear.close()
	b.ear.close()
	events, ret := b.ear.wait()
	require.Equal(t, nvml.ERROR_UNINITIALIZED, ret)
	require.Len(t, events, 2)
	events, _ = b.ear.wait()
	require.Empty(t, events)
}

func TestLostWhileListening(t *testing.T) {
	sim := simulate(t, "3xA10G")
	all := uuids(t, sim)
	l := listen(t, sim)
	l.awaitRegistered(all...)
	require.NoError(t, sim.Lose(all[1]))
	require.Equal(t, xidOf(all[1], 0), <-l.events, "the board that is lost is named")
	require.NoError(t, sim.Xid(all[2], 48, nil, nil))
	require.Equal(t, xidOf(all[2], 48), <-l.events, "the others are heard, and the lost one once")

	require.NoError(t, sim.Restore(all[1]))
	l.awaitRegistered(all[1])
	require.NoError(t, sim.Xid(all[1], 46, nil, nil))
	require.Equal(t, xidOf(all[1], 46), <-l.events)

	// A reset by somebody else, which the adapter notices when it next asks the board.
	require.NoError(t, sim.Reset(all[0]))
	_, err := l.GPU(t.Context(), all[0])
	require.NoError(t, err)
	l.awaitRegistered(all[0])
	require.NoError(t, sim.Xid(all[0], 79, nil, nil))
	require.Equal(t, xidOf(all[0], 79), <-l.events)
}

// faulty makes a node of those boards on which things go wrong.
func faulty(t *testing.T, boards, faults string) *nvmlsim.Node {
	t.Helper()
	path := filepath.Join(t.TempDir(), "faults.yaml")
	require.NoError(t, os.WriteFile(path, []byte(faults), 0o644))
	return simulate(t, boards+",faults="+path)
}

func TestABoardThatCannotBeListenedTo(t *testing.T) {
	sim := faulty(t, "2xH100-SXM5-80GB", "faults: [{name: a, operation: RegisterEvents, gpu: 0, times: 2, return: UNKNOWN}]")
	all := uuids(t, sim)
	l := listen(t, sim)
	l.awaitRegistered(all...) // The first at the third time.
	calls, err := sim.FaultCalls()
	require.NoError(t, err)
	require.Equal(t, 3, calls["a"])
}

func TestBoardsWithoutEvents(t *testing.T) {
	for _, operation := range []string{"GetSupportedEventTypes", "RegisterEvents"} {
		sim := faulty(t, "2xH100-SXM5-80GB", "faults: [{name: a, operation: "+operation+", forever: true, return: NOT_SUPPORTED}]")
		open(t, sim.Interface()).Watch(t.Context(), func(gpu.Event) {}) // It ends by itself.
	}
}

func TestHealth(t *testing.T) {
	sim := simulate(t, "3xH100-SXM5-80GB")
	a := open(t, sim.Interface())
	all := uuids(t, sim)
	zero, three := uint64(0), uint64(3)
	fine := func(uuid string) gpu.Health {
		return gpu.Health{GPU: uuid, Remapping: &gpu.RowRemapping{}, UncorrectedECC: &zero}
	}
	got, err := a.Health(t.Context())
	require.NoError(t, err)
	require.Equal(t, []gpu.Health{fine(all[0]), fine(all[1]), fine(all[2])}, got)

	require.NoError(t, sim.ECCErrors(all[0], 3))
	require.NoError(t, sim.RemapRows(all[0], true, true))
	require.NoError(t, a.SetMIGMode(t.Context(), all[1], true))
	_, err = a.CreateGPUInstance(t.Context(), all[1], "1g.10gb", at(0, 1))
	require.NoError(t, err)
	require.NoError(t, sim.Lose(all[2]))
	got, err = a.Health(t.Context())
	require.Equal(t, []gpu.Health{
		{GPU: all[0], Remapping: &gpu.RowRemapping{Pending: true, Failed: true}, UncorrectedECC: &three},
		{GPU: all[1], UncorrectedECC: &zero}, // A toggle of its own is no reset.
	}, got)
	var unread gpu.ReadErrors
	require.ErrorAs(t, err, &unread)
	require.Len(t, unread, 1)
	require.Equal(t, all[2], unread[0].UUID)
	require.ErrorIs(t, unread[0], gpu.ErrLost)

	require.NoError(t, sim.Restore(all[2]))
	require.NoError(t, sim.Reset(all[0]))
	got, err = a.Health(t.Context())
	require.NoError(t, err)
	require.Equal(t, gpu.Health{GPU: all[0], Remapping: &gpu.RowRemapping{Failed: true}, UncorrectedECC: &zero, Resets: 1}, got[0])
	require.Equal(t, fine(all[2]), got[2], "to be lost is not to be reset")
}

func TestHealthThatIsNotTold(t *testing.T) {
	sim := faulty(t, "1xA10G", "faults: [{name: a, operation: GetTotalEccErrors, forever: true, return: NOT_SUPPORTED}, {name: b, operation: GetRemappedRows, forever: true, return: NOT_SUPPORTED}]")
	got, err := open(t, sim.Interface()).Health(t.Context())
	require.NoError(t, err)
	require.Equal(t, []gpu.Health{{GPU: uuids(t, sim)[0]}}, got)

	sim = faulty(t, "1xA10G", "faults: [{name: a, operation: GetRemappedRows, return: UNKNOWN}]")
	_, err = open(t, sim.Interface()).Health(t.Context())
	require.ErrorIs(t, err, nvml.ERROR_UNKNOWN)
}

// old is a driver without row remapping: to call it would end the process.
type old struct{ nvml.Interface }

func (o old) Extensions() nvml.ExtendedInterface {
	return &mock.ExtendedInterface{LookupSymbolFunc: func(symbol string) error {
		if symbol == "nvmlDeviceGetRemappedRows" {
			return nvml.ERROR_FUNCTION_NOT_FOUND
		}
		return o.Interface.Extensions().LookupSymbol(symbol)
	}}
}

func TestHealthOfOldDrivers(t *testing.T) {
	sim := faulty(t, "1xA10G", "faults: [{name: a, operation: GetRemappedRows, crash: true}]")
	got, err := open(t, old{sim.Interface()}).Health(t.Context())
	require.NoError(t, err)
	require.Nil(t, got[0].Remapping)
}
