package nvml

import (
	"context"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"k8s.io/klog/v2"

	"github.com/kerf-project/kerf/pkg/gpu"
)

const (
	// eventWait is how long a wait for events lasts. Nothing can cut it short, so a
	// change of the MIG mode is delayed by as much at the most.
	eventWait = 100 * time.Millisecond
	// unattributed is NVML's id of the instances of an event that concerns the whole board (nvml.h).
	unattributed = 0xFFFFFFFF
)

// ear is what listens to one board. An event set each, because a set cannot let
// go of a single board, and because "GPU is lost" does not say which one.
type ear struct {
	// mu is held while a wait is under way: a set must not be freed then. Whoever
	// has the board's turn may take it, and not the other way round.
	mu  sync.Mutex
	set nvml.EventSet
	// unheard came before the ear was closed.
	unheard []nvml.EventData
}

// Watch reports what happens to the boards until ctx ends. heard is called from
// a goroutine for each board, which hears nothing more until it returns. A board
// that cannot be listened to is tried again and again, and keeps no other away.
//
// A change of the MIG mode is possible meanwhile: the adapter stops listening to
// the board for it, because the driver would call it in use.
func (a *Adapter) Watch(ctx context.Context, heard func(gpu.Event)) {
	var listeners sync.WaitGroup
	for _, b := range a.session.boards {
		listeners.Go(func() { a.listen(ctx, b, heard) })
	}
	listeners.Wait()
}

func (a *Adapter) listen(ctx context.Context, b *board, heard func(gpu.Event)) {
	defer b.ear.close()
	failing := false
	for ctx.Err() == nil {
		events, ret := b.ear.wait()
		for _, e := range events {
			heard(eventOf(b, e))
		}
		switch ret {
		case nvml.SUCCESS, nvml.ERROR_TIMEOUT:
			continue
		case nvml.ERROR_UNINITIALIZED:
			supported, err := call(ctx, a, b, opRegisterEvents, func(h nvml.Device) (bool, error) { return a.openEar(b, h) })
			if err == nil && !supported {
				return
			}
			if err == nil {
				failing = false
				continue
			}
			if !failing && ctx.Err() == nil {
				klog.FromContext(ctx).Error(err, "The events of a GPU are not heard; it is tried again", "gpu", b.String())
			}
			failing = true
		default:
			// A lost board would answer so at once and always.
			b.ear.close()
			heard(eventOf(b, nvml.EventData{}))
		}
		pause(ctx, a.eventRetry)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func eventOf(b *board, data nvml.EventData) gpu.Event {
	e := gpu.Event{GPU: b.id(), GPUInstance: gpu.Whole, ComputeInstance: gpu.Whole}
	if data.EventType != nvml.EventTypeXidCriticalError {
		return e
	}
	e.Xid = data.EventData
	if data.GpuInstanceId != unattributed {
		e.GPUInstance = int(data.GpuInstanceId)
	}
	if data.ComputeInstanceId != unattributed {
		e.ComputeInstance = int(data.ComputeInstanceId)
	}
	return e
}

// openEar begins to listen, to all that the board can report of its health. It
// reports false for a board that reports nothing.
func (a *Adapter) openEar(b *board, h nvml.Device) (bool, error) {
	types, ret := h.GetSupportedEventTypes()
	if types &= nvml.EventTypeXidCriticalError | nvml.EventTypeDoubleBitEccError; ret == nvml.ERROR_NOT_SUPPORTED || ret == nvml.SUCCESS && types == 0 {
		return false, nil
	}
	if ret != nvml.SUCCESS {
		return false, failed("read the supported events", b, ret)
	}
	set, ret := a.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		return false, failed("create an event set", b, ret)
	}
	switch ret := h.RegisterEvents(types, set); ret {
	case nvml.SUCCESS:
	case nvml.ERROR_NOT_SUPPORTED:
		_ = set.Free()
		return false, nil
	default:
		_ = set.Free()
		return false, failed(opRegisterEvents, b, ret)
	}
	b.ear.mu.Lock()
	defer b.ear.mu.Unlock()
	b.ear.set = set
	return true, nil
}

// wait returns the events that came, those first that came before the ear was
// closed, and ERROR_UNINITIALIZED where it is closed.
func (e *ear) wait() ([]nvml.EventData, nvml.Return) {
	e.mu.Lock()
	defer e.mu.Unlock()
	events := e.unheard
	e.unheard = nil
	if e.set == nil {
		return events, nvml.ERROR_UNINITIALIZED
	}
	data, ret := e.set.Wait(uint32(eventWait.Milliseconds()))
	if ret == nvml.SUCCESS {
		events = append(events, data)
	}
	return events, ret
}

// close stops listening. When it returns the events hold the board no longer.
func (e *ear) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.set == nil {
		return
	}
	for {
		data, ret := e.set.Wait(0)
		if ret != nvml.SUCCESS {
			break
		}
		e.unheard = append(e.unheard, data)
	}
	// Where it fails the board is gone, and the set with it.
	_ = e.set.Free()
	e.set = nil
}
