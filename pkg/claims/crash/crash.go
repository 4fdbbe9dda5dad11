// Package crash kills the process at a chosen operation of the engine, for the
// sweep that proves that a claim is never half done. It decorates what the engine
// works on and counts every operation that changes something: of the hardware,
// of the journal and of the CDI specs. Dying at a read is the same as dying before
// the change that comes next, so reads are not counted.
//
// The package reads no environment and is part of no ordinary build: only
// cmd/kerf uses it, with the build tag "sweep". It can also break the engine in
// ways that the sweep has to notice; see Break.
package crash

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// pause is how long an operation is held up with "pause". What is proven does not
// depend on it, only how often two processes really meet.
const pause = 400 * time.Millisecond

// Options say what is to happen.
type Options struct {
	// At is "before:N" or "after:N", where the process is killed with SIGKILL, or
	// "pause:N", where it waits a while before the operation. N counts operations
	// from 0 since the process began. Empty: nothing happens.
	At string
	// Log is a file to which the name of every operation is appended, before it begins.
	Log string
	// Break is how the engine is broken, empty for not at all.
	Break Break
}

// Instrument decorates what the engine works on.
func Instrument(o Options, h claims.Hardware, j claims.Journal, s claims.Specs) (claims.Hardware, claims.Journal, claims.Specs, error) {
	p := &points{at: -1, die: die, sleep: func() { time.Sleep(pause) }}
	if o.At != "" {
		when, n, _ := strings.Cut(o.At, ":")
		at, err := strconv.Atoi(n)
		if err != nil || at < 0 || when != "before" && when != "after" && when != "pause" {
			return nil, nil, nil, fmt.Errorf("crash at %q: expected before:N, after:N or pause:N", o.At)
		}
		p.when, p.at = when, at
	}
	if o.Log != "" {
		log, err := os.OpenFile(o.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, nil, nil, err
		}
		p.log = log
	}
	return broken(o.Break, hardware{h, p}, records{j, p}, specs{s, p})
}

// die ends the process as kill -9 does, and does not return.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// points counts the operations.
type points struct {
	when  string
	at    int
	log   *os.File
	die   func()
	sleep func()

	mu   sync.Mutex
	next int
}

func (p *points) pass(name string, effect func() error) error {
	n := p.begin(name)
	if n != p.at {
		return effect()
	}
	switch p.when {
	case "before":
		p.die()
	case "pause":
		p.sleep()
	}
	err := effect()
	if p.when == "after" {
		p.die()
	}
	return err
}

func (p *points) begin(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.next
	p.next++
	if p.log != nil {
		fmt.Fprintln(p.log, name)
	}
	return n
}

func place(i gpu.Instance) string { return fmt.Sprintf("%s %s@%s", i.GPU, i.Profile, i.Placement) }

type hardware struct {
	claims.Hardware
	*points
}

func (h hardware) CreateGPUInstance(ctx context.Context, uuid, profile string, at gpu.Placement) (made gpu.Instance, err error) {
	err = h.pass("CreateGPUInstance "+place(gpu.Instance{GPU: uuid, Profile: profile, Placement: at}), func() (err error) {
		made, err = h.Hardware.CreateGPUInstance(ctx, uuid, profile, at)
		return err
	})
	return made, err
}

func (h hardware) CreateComputeInstance(ctx context.Context, i gpu.Instance) (made gpu.Instance, err error) {
	err = h.pass("CreateComputeInstance "+place(i), func() (err error) {
		made, err = h.Hardware.CreateComputeInstance(ctx, i)
		return err
	})
	return made, err
}

func (h hardware) DestroyComputeInstance(ctx context.Context, i gpu.Instance) (left gpu.Instance, err error) {
	err = h.pass("DestroyComputeInstance "+place(i), func() (err error) {
		left, err = h.Hardware.DestroyComputeInstance(ctx, i)
		return err
	})
	return left, err
}

func (h hardware) DestroyGPUInstance(ctx context.Context, i gpu.Instance) error {
	return h.pass("DestroyGPUInstance "+place(i), func() error { return h.Hardware.DestroyGPUInstance(ctx, i) })
}

func (h hardware) SetMIGMode(ctx context.Context, uuid string, on bool) error {
	return h.pass(fmt.Sprintf("SetMIGMode %s %t", uuid, on), func() error { return h.Hardware.SetMIGMode(ctx, uuid, on) })
}

func (h hardware) SetTimeSlice(ctx context.Context, uuid string, slice gpu.TimeSlice) error {
	return h.pass(fmt.Sprintf("SetTimeSlice %s %s", uuid, slice), func() error { return h.Hardware.SetTimeSlice(ctx, uuid, slice) })
}

type records struct {
	claims.Journal
	*points
}

func (r records) PutClaim(c *journal.Claim) error {
	return r.pass(fmt.Sprintf("PutClaim %s %s", c.UID, c.State), func() error { return r.Journal.PutClaim(c) })
}

func (r records) DeleteClaim(uid string) error {
	return r.pass("DeleteClaim "+uid, func() error { return r.Journal.DeleteClaim(uid) })
}

func (r records) PutInstance(i *journal.Instance) error {
	state := string(i.State)
	if !i.Identified {
		state = "intent"
	}
	return r.pass(fmt.Sprintf("PutInstance %s %s", place(i.Instance), state), func() error { return r.Journal.PutInstance(i) })
}

func (r records) DeleteInstance(at gpu.Instance) error {
	return r.pass("DeleteInstance "+place(at), func() error { return r.Journal.DeleteInstance(at) })
}

type specs struct {
	claims.Specs
	*points
}

func (s specs) Write(ctx context.Context, uid, note string, devices []cdispec.Device) (ids map[string]string, err error) {
	err = s.pass("WriteSpec "+uid, func() (err error) {
		ids, err = s.Specs.Write(ctx, uid, note, devices)
		return err
	})
	return ids, err
}

func (s specs) Remove(uid string) error {
	return s.pass("RemoveSpec "+uid, func() error { return s.Specs.Remove(uid) })
}
