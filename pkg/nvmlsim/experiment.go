package nvmlsim

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// hangPoll is how often a hanging call looks whether its fault was removed.
const hangPoll = 10 * time.Millisecond

// experiment is what a process' calls are put through before they have their
// effect, and after it: the driver's lock, its latencies, and faults.
type experiment struct {
	kernel  *kernel
	logger  klog.Logger
	trace   func(op string, gpu int)
	sleep   func(time.Duration)
	latency Latency
	lock    Lock
	boards  int

	mu sync.Mutex
	// faults is nil without a file.
	faults *faultsFile
}

// newExperiment is what a specification asks for; without one it is nothing.
func newExperiment(k *kernel, spec *Spec, o options) (*experiment, error) {
	e := &experiment{kernel: k, logger: o.logger, trace: o.trace, sleep: o.sleep}
	if spec == nil {
		return e, nil
	}
	e.latency, e.lock, e.boards = spec.Latency, spec.Lock, len(spec.Boards)
	if spec.Faults == "" {
		return e, nil
	}
	e.faults = &faultsFile{path: spec.Faults, boards: e.boards}
	// Later the file may go, and with it the faults. Now that would be a mistake in its name.
	if _, err := os.Stat(spec.Faults); err != nil {
		return nil, fmt.Errorf("faults: %w", err)
	}
	_, err := e.faults.read()
	return e, err
}

// outcome is what a call answers instead of what it would.
type outcome struct{ ret, activation nvml.Return }

// idle reports whether all calls pass as they are.
func (e *experiment) idle() bool {
	return e.faults == nil && e.latency != LatencyTypical && e.trace == nil
}

// before is what a call goes through before it has its effect.
func (e *experiment) before(op string, gpu int) (outcome, error) {
	if e.idle() {
		return outcome{}, nil
	}
	if e.trace != nil {
		e.trace(op, gpu)
	}
	unlock, err := e.driverLock(gpu)
	if err != nil {
		return outcome{}, err
	}
	defer unlock()
	if e.latency == LatencyTypical {
		if took := typical(op); took > 0 {
			e.sleep(took)
		}
	}
	return e.suffer(op, gpu, false)
}

// after is what a call goes through that has had its effect.
func (e *experiment) after(op string, gpu int) (outcome, error) {
	if e.faults == nil {
		return outcome{}, nil
	}
	unlock, err := e.driverLock(gpu)
	if err != nil {
		return outcome{}, err
	}
	defer unlock()
	return e.suffer(op, gpu, true)
}

// driverLock takes the lock that the driver holds during a call. It is a file
// lock, because the driver has it for all processes. A call that concerns no
// board takes none, unless there is one for all.
func (e *experiment) driverLock(gpu int) (unlock func(), err error) {
	name := fmt.Sprint(gpu)
	switch {
	case e.lock == LockGlobal:
		name = "all"
	case gpu < 0:
		return func() {}, nil
	}
	path := filepath.Join(e.kernel.dir, "locks", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := flock(file, unix.LOCK_EX); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return func() { file.Close() }, nil
}

// suffer makes the faults happen that are due, in the order of their file.
func (e *experiment) suffer(op string, gpu int, after bool) (outcome, error) {
	all, err := e.read()
	if err != nil {
		return outcome{}, err
	}
	var matching, due []fault
	for _, f := range all {
		if f.matches(op, gpu, after) {
			matching = append(matching, f)
		}
	}
	if len(matching) == 0 {
		return outcome{}, nil
	}
	// The counts are in the state, so they go on over restarts and are common to
	// all processes: a process that was killed by a fault comes back without it.
	var failed *fault
	ret, err := e.kernel.update(func(s *state) nvml.Return {
		for i, f := range matching {
			s.count(f.Name)
			if f.kinds() == 0 || !f.due(s.FaultCalls[f.Name]) {
				continue
			}
			due = append(due, f)
			if gpu < 0 {
				continue
			}
			if ret := f.happen(s, &s.GPUs[gpu]); ret != nvml.SUCCESS {
				failed = &matching[i]
				return ret
			}
		}
		return nvml.SUCCESS
	})
	if err != nil {
		return outcome{}, err
	}
	if failed != nil {
		return outcome{}, fmt.Errorf("fault %q cannot happen on GPU %d: %w", failed.Name, gpu, ret)
	}
	var o outcome
	for _, f := range due {
		e.logger.Info("A fault happens", "fault", f.Name, "call", op, "gpu", gpu, "after", after)
		switch {
		case f.Delay != "":
			e.sleep(f.delay)
		case f.Hang:
			if err := e.hang(f.Name); err != nil {
				return outcome{}, err
			}
		case f.Crash:
			// As the kernel's OOM killer does it: nothing is cleaned up.
			if err := unix.Kill(unix.Getpid(), unix.SIGKILL); err != nil {
				return outcome{}, err
			}
			select {}
		case f.Return != "" && o.ret == nvml.SUCCESS:
			o.ret = f.ret
		case f.Activation != "" && o.activation == nvml.SUCCESS:
			o.activation = f.activation
		}
	}
	return o, nil
}

// hang returns when the fault of that name is removed from the file.
func (e *experiment) hang(name string) error {
	for {
		all, err := e.read()
		if err != nil {
			return err
		}
		there := false
		for _, f := range all {
			there = there || f.Name == name && f.Hang
		}
		if !there {
			return nil
		}
		e.sleep(hangPoll)
	}
}

func (e *experiment) read() ([]fault, error) {
	if e.faults == nil {
		return nil, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.faults.read()
}

// FaultCalls tells how many calls each fault has counted so far, by its name, in
// all processes of the node. Those of faults that were removed are among them.
func (n *Node) FaultCalls() (map[string]int, error) {
	s, err := n.kernel.view()
	if err != nil {
		return nil, err
	}
	return maps.Clone(s.FaultCalls), nil
}
