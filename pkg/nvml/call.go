package nvml

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// running is the call that has a board's turn.
type running struct {
	op string
	// over is closed when the caller has stopped waiting.
	over <-chan struct{}
}

// late reports whether the driver has kept a caller waiting for longer than it would.
func (r *running) late() bool {
	if r == nil {
		return false
	}
	select {
	case <-r.over:
		return true
	default:
		return false
	}
}

// acquire waits for the board's turn. Nothing has happened when it fails. It
// fails at once, with ErrDeadline, when the call that has the turn is past its
// own deadline: nobody knows when the driver will answer.
func (b *board) acquire(ctx context.Context, op string) error {
	for {
		if ctx.Err() != nil {
			return fmt.Errorf("%s on %s: not begun: %w", op, b, context.Cause(ctx))
		}
		r := b.running.Load()
		if r.late() {
			if b.running.Load() == r {
				return fmt.Errorf("%s on %s: not begun, because %q still waits for the driver: %w", op, b, r.op, gpu.ErrDeadline)
			}
			continue
		}
		var over <-chan struct{}
		if r != nil {
			over = r.over
		}
		select {
		case b.turn <- struct{}{}:
			b.running.Store(&running{op: op, over: ctx.Done()})
			return nil
		case <-over:
		case <-ctx.Done():
		}
	}
}

func (b *board) release() {
	b.running.Store(nil)
	<-b.turn
}

// call runs work, which may talk to the driver about the board, and waits for
// it no longer than ctx allows. What work does after that is done all the same;
// until it returns the board is taken, and other boards are not concerned.
func call[T any](ctx context.Context, a *Adapter, b *board, op string, work func(nvml.Device) (T, error)) (T, error) {
	var zero T
	if err := b.acquire(ctx, op); err != nil {
		return zero, err
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		began := time.Now()
		var r result
		h, err := a.device(b)
		if err == nil {
			r.value, r.err = work(h)
		} else {
			r.err = fmt.Errorf("%s: %w", op, err)
		}
		a.observe(op, b.id(), time.Since(began), r.err)
		b.release()
		done <- r
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.value, r.err
	default:
		return zero, fmt.Errorf("%s on %s: %w: %w", op, b, gpu.ErrDeadline, context.Cause(ctx))
	}
}

// onGPU is call for the board with that UUID.
func onGPU[T any](ctx context.Context, a *Adapter, uuid, op string, work func(*board, nvml.Device) (T, error)) (T, error) {
	b, err := a.find(ctx, uuid)
	if err != nil {
		var zero T
		return zero, fmt.Errorf("%s: %w", op, err)
	}
	return call(ctx, a, b, op, func(h nvml.Device) (T, error) { return work(b, h) })
}

// find returns the board with that UUID. Boards that were never read are asked
// for their UUID, all at once, and the one that is looked for is not kept
// waiting by another that hangs.
func (a *Adapter) find(ctx context.Context, uuid string) (*board, error) {
	known := func() *board {
		for _, b := range a.session.boards {
			if b.id() == uuid {
				return b
			}
		}
		return nil
	}
	if b := known(); b != nil {
		return b, nil
	}
	answered := make(chan error, len(a.session.boards))
	unknown := 0
	for _, b := range a.session.boards {
		if b.id() != "" {
			continue
		}
		unknown++
		go func() { answered <- a.identify(ctx, b) }()
	}
	silent := false
	for range unknown {
		select {
		case err := <-answered:
			silent = silent || errors.Is(err, gpu.ErrDeadline)
		case <-ctx.Done():
			return nil, fmt.Errorf("look for GPU %s: %w: %w", uuid, gpu.ErrDeadline, context.Cause(ctx))
		}
		if b := known(); b != nil {
			return b, nil
		}
	}
	if silent {
		return nil, fmt.Errorf("GPU %s is none of those that say who they are, and not all do: %w", uuid, gpu.ErrDeadline)
	}
	return nil, fmt.Errorf("GPU %s: %w among the %d of this node", uuid, gpu.ErrNotFound, len(a.session.boards))
}

// identify asks a board for its UUID. It has the deadline of who looks for a
// board, and goes on when that one has found another: a call that is cut off
// would make the board pass for one that does not answer.
func (a *Adapter) identify(ctx context.Context, b *board) error {
	asking := context.WithoutCancel(ctx)
	if deadline, ok := ctx.Deadline(); ok {
		var cancel func()
		asking, cancel = context.WithDeadline(asking, deadline)
		defer cancel()
	}
	_, err := call(asking, a, b, opIdentify, func(nvml.Device) (struct{}, error) { return struct{}{}, nil })
	return err
}

// looks is how often a board is looked at when somebody changes it meanwhile.
const looks = 3

// steady looks at a board. If somebody resets it or changes its mode meanwhile,
// the handle goes stale, and with a stale handle everything looks as if it were
// not there: then it looks again.
func steady[T any](a *Adapter, b *board, h nvml.Device, op string, look func(nvml.Device) (T, error)) (T, error) {
	var zero T
	for range looks {
		seen, err := look(h)
		uuid, ret := h.GetUUID()
		if ret == nvml.SUCCESS && uuid == b.id() {
			return seen, err
		}
		b.stale(ret)
		if h, err = a.device(b); err != nil {
			return zero, fmt.Errorf("%s: %w", op, err)
		}
	}
	return zero, fmt.Errorf("%s on %s: it was reset or changed its MIG mode meanwhile, %d times: %w", op, b, looks, gpu.ErrInUse)
}

// device returns a handle that was just seen to be that board's. A handle can go
// stale when somebody else resets the board or changes its MIG mode, and NVML
// may then use it for another device. It is looked up anew by PCI bus id:
// looking up by UUID walks all boards and takes seconds on a busy node.
func (a *Adapter) device(b *board) (nvml.Device, error) {
	if b.handle != nil {
		uuid, ret := b.handle.GetUUID()
		if ret == nvml.SUCCESS && uuid == b.id() {
			return b.handle, nil
		}
		b.stale(ret)
	}
	h, uuid, err := a.lookUp(b)
	// Stale again already: it is just being reset or changing its mode.
	for n := 1; n < looks && errors.Is(err, nvml.ERROR_INVALID_ARGUMENT); n++ {
		h, uuid, err = a.lookUp(b)
	}
	if err != nil {
		return nil, err
	}
	if id := b.id(); id != "" && id != uuid {
		return nil, fmt.Errorf("look up the handle of %s: %w: its place is taken by %s", b, gpu.ErrNotFound, uuid)
	}
	b.uuid.Store(&uuid)
	b.handle = h
	return h, nil
}

// lookUp asks for the handle of what is in the board's place, and for its UUID.
func (a *Adapter) lookUp(b *board) (nvml.Device, string, error) {
	h, ret := nvml.Device(nil), nvml.ERROR_NOT_FOUND
	if g := b.last.Load(); g != nil {
		h, ret = a.lib.DeviceGetHandleByPciBusId(g.PCIBusID)
	}
	if ret == nvml.ERROR_NOT_FOUND {
		h, ret = a.lib.DeviceGetHandleByIndex(b.index)
	}
	if ret != nvml.SUCCESS {
		return nil, "", failed("look up the handle", b, ret)
	}
	uuid, ret := h.GetUUID()
	if ret != nvml.SUCCESS {
		return nil, "", failed("read the UUID", b, ret)
	}
	return h, uuid, nil
}
