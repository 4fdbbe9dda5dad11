// Package nvml turns an NVML library, real or simulated, into the plain values
// of package gpu: one long session with the driver, whole-GPU reads, and the few
// changes that kerf makes (instances, the MIG mode and the time slice).
//
// It owns the session, the handles and the patience: a call into NVML cannot be
// cancelled, so every call has a goroutine of its own and holds its GPU's turn
// until the driver answers. It decides no policy: it never chooses a placement,
// retries, or destroys what it was not told to.
package nvml

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/NVIDIA/go-nvlib/pkg/nvlib/device"
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Observer is told of every call that reached the driver, when the driver has
// answered, however late. The operation is one of a fixed few; the uuid is empty
// where the GPU was not yet known.
type Observer func(op, uuid string, took time.Duration, err error)

// Option changes what New makes.
type Option func(*Adapter)

// WithHostRoot sets where the host's file system is seen, for /proc and /sys. The default is "/".
func WithHostRoot(root string) Option { return func(a *Adapter) { a.hostRoot = root } }

// WithObserver adds an observer, for metrics.
func WithObserver(o Observer) Option { return func(a *Adapter) { a.observe = o } }

// Adapter is a session with the driver. Open it before all else; after that its
// methods may be called from many goroutines.
type Adapter struct {
	lib      nvml.Interface
	lookup   device.Interface
	hostRoot string
	smi      smi
	observe  Observer
	// eventRetry is for how long a board that cannot be listened to is left alone.
	eventRetry time.Duration
	session    session
}

// session is what one Init found. NVML numbers the boards when it is
// initialized, so an index means the same board until Close.
type session struct {
	driver, nvml string
	cuda         gpu.Version
	boards       []*board
}

// New makes an adapter. It touches nothing.
func New(lib nvml.Interface, options ...Option) *Adapter {
	a := &Adapter{
		lib:        lib,
		lookup:     device.New(lib),
		hostRoot:   "/",
		smi:        smi{driverRoot: "/"},
		eventRetry: 5 * time.Second,
		observe:    func(string, string, time.Duration, error) {},
	}
	for _, o := range options {
		o(a)
	}
	return a
}

// Open begins the session. Its errors are one line that can end a program.
func (a *Adapter) Open(ctx context.Context) error {
	opened := make(chan error, 1)
	var found session
	go func() {
		var err error
		found, err = a.open()
		opened <- err
	}()
	select {
	case err := <-opened:
		if err == nil {
			a.session = found
		}
		return err
	case <-ctx.Done():
		return fmt.Errorf("initialize NVML: %w: %w", gpu.ErrDeadline, context.Cause(ctx))
	}
}

func (a *Adapter) open() (session, error) {
	switch ret := a.lib.Init(); ret {
	case nvml.SUCCESS:
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return session{}, fmt.Errorf("initialize NVML: libnvidia-ml.so.1 cannot be loaded: install the NVIDIA driver on this node or name the library with --nvml=real:PATH; "+
			"to run without a GPU, simulate one: --nvml=sim:8xH100-SXM5-80GB,state=DIR: %w", ret)
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return session{}, fmt.Errorf("initialize NVML: libnvidia-ml.so.1 is there but the NVIDIA kernel driver is not loaded: load it (modprobe nvidia) and look at dmesg: %w", ret)
	default:
		return session{}, fmt.Errorf("initialize NVML: %w", ret)
	}
	s, err := a.survey()
	if err != nil {
		return session{}, errors.Join(err, a.shutdown())
	}
	return s, nil
}

// survey reads what holds for the whole session. It looks at no board: a sick one must not keep the others away.
func (a *Adapter) survey() (session, error) {
	var s session
	var ret nvml.Return
	if s.driver, ret = a.lib.SystemGetDriverVersion(); ret != nvml.SUCCESS {
		return s, fmt.Errorf("read the driver version: %w", ret)
	}
	if s.nvml, ret = a.lib.SystemGetNVMLVersion(); ret != nvml.SUCCESS {
		return s, fmt.Errorf("read the NVML version: %w", ret)
	}
	cuda, ret := a.lib.SystemGetCudaDriverVersion()
	if ret != nvml.SUCCESS {
		return s, fmt.Errorf("read the CUDA version: %w", ret)
	}
	// NVML packs 12.4 as 12040 (CUDA_VERSION of cuda.h).
	s.cuda = gpu.Version{Major: cuda / 1000, Minor: cuda % 1000 / 10}
	count, ret := a.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return s, fmt.Errorf("count the GPUs: %w", ret)
	}
	for i := range count {
		s.boards = append(s.boards, &board{index: i, turn: make(chan struct{}, 1)})
	}
	return s, nil
}

// Close ends the session. It refuses while a call is past its deadline, because NVML would block here too.
func (a *Adapter) Close() error {
	for _, b := range a.session.boards {
		if r := b.running.Load(); r.late() {
			return fmt.Errorf("close NVML: %q on %s: %w", r.op, b, gpu.ErrDeadline)
		}
	}
	for _, b := range a.session.boards {
		select {
		case b.turn <- struct{}{}:
			b.forgetSamples(gpu.Whole)
			<-b.turn
		default: // A call is still under way. They are memory, which ends with the process.
		}
	}
	return a.shutdown()
}

func (a *Adapter) shutdown() error {
	if ret := a.lib.Shutdown(); ret != nvml.SUCCESS {
		return fmt.Errorf("close NVML: %w", ret)
	}
	return nil
}

// board is one GPU of the session and what is remembered of it.
type board struct {
	index int
	// turn holds one token: who has put it there may talk to the driver about this board.
	turn    chan struct{}
	running atomic.Pointer[running]
	// uuid and last outlive a lost board; both are read without the turn.
	uuid atomic.Pointer[string]
	last atomic.Pointer[gpu.GPU]
	// ear has a lock of its own.
	ear ear

	// All below belongs to who has the turn.

	handle nvml.Device
	// constant is what cannot change in a session, nil until it is read.
	constant *constant
	// migDevices are kept because walking the MIG devices of a busy board takes
	// seconds, and a MIG UUID depends on (board, GPU instance id, compute
	// instance id) alone: another instance with the same ids has the same UUID.
	// Its index is only where it was.
	migDevices map[computeID]migDevice
	// samples are the last ones of Usage, by GPU instance id.
	samples map[int]*sample
	// resets is gpu.Health's.
	resets int
}

type computeID struct{ gi, ci int }

type migDevice struct {
	index int
	uuid  string
}

// forget drops what a change of the MIG mode or a reset of the board invalidates.
func (b *board) forget() {
	b.ear.close()
	b.handle = nil
	b.migDevices = nil
	b.forgetSamples(gpu.Whole)
}

// stale forgets a handle that no longer is the board's. Unless the board is lost
// or does not answer, somebody else has reset it, or changed its MIG mode, which
// may reset it (nvml.h).
func (b *board) stale(ret nvml.Return) {
	if ret == nvml.SUCCESS || ret == nvml.ERROR_INVALID_ARGUMENT {
		b.resets++
	}
	b.forget()
}

// id is the board's UUID, empty until it was read once.
func (b *board) id() string {
	if u := b.uuid.Load(); u != nil {
		return *u
	}
	return ""
}

func (b *board) String() string {
	if id := b.id(); id != "" {
		return id
	}
	return fmt.Sprintf("the GPU with index %d", b.index)
}
