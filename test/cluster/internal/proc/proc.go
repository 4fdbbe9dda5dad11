// Package proc starts processes from a process that is pid 1 of its namespace, and reaps every child there, its own and
// those that others left to it.
//
// os/exec cannot be used beside it: a reaper that waits for any child takes the exit statuses that os/exec waits for.
package proc

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// Reaper waits for all children of this process.
type Reaper struct {
	mu       sync.Mutex
	children map[int]*Process
}

// Process is a child that Start started.
type Process struct {
	Pid    int
	done   chan struct{}
	status unix.WaitStatus
}

// NewReaper returns a reaper; Run makes it work.
func NewReaper() *Reaper { return &Reaper{children: map[int]*Process{}} }

// Run reaps until stop is closed.
func (r *Reaper) Run(stop <-chan struct{}) {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	defer signal.Stop(children)
	for {
		r.reap()
		select {
		case <-children:
		case <-stop:
			return
		}
	}
}

func (r *Reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if p, ok := r.children[pid]; ok {
			delete(r.children, pid)
			p.status = status
			close(p.done)
		}
	}
}

// Start starts a program. The lock keeps the reaper from taking the exit status of a child that is not yet known here.
func (r *Reaper) Start(path string, args []string, attr *os.ProcAttr) (*Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	started, err := os.StartProcess(path, append([]string{path}, args...), attr)
	if err != nil {
		return nil, fmt.Errorf("start a process: %w", err)
	}
	p := &Process{Pid: started.Pid, done: make(chan struct{})}
	r.children[p.Pid] = p
	// The reaper waits for it; this only lets go of the handle.
	if err := started.Release(); err != nil {
		return nil, fmt.Errorf("start a process: %w", err)
	}
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended, nil for exit code 0. Call it after Done.
func (p *Process) Err() error {
	switch {
	case p.status.Signaled():
		return fmt.Errorf("killed by signal %d (%s)", p.status.Signal(), unix.SignalName(p.status.Signal()))
	case p.status.ExitStatus() != 0:
		return fmt.Errorf("exit code %d", p.status.ExitStatus())
	}
	return nil
}
