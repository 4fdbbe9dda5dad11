//go:build sweep

package sweep

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/claims/crash"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// shape is a claim and the node that it comes to.
type shape struct {
	name string
	// inMIG are the boards that are in MIG mode before.
	inMIG []int
	// idle are the instances that are kept for nobody before.
	idle    []device
	devices []device
	// toggles: a board has to change its MIG mode.
	toggles bool
	// filler is where an instance of the first device's profile can be made beside it.
	filler gpu.Placement
}

func shapes() []shape {
	small := mig(0, "1g.10gb", 6, 1)
	return []shape{
		{name: "1g", inMIG: []int{0}, devices: []device{small}, filler: gpu.Placement{Start: 5, Size: 1}},
		{name: "whole GPU, mode change", toggles: true, inMIG: []int{0}, devices: []device{{board: 0, kind: gpu.TypeGPU}}},
		{name: "replica", devices: []device{{board: 0, kind: gpu.TypeTimeSlice}}},
		{
			name: "three devices on two GPUs", toggles: true, inMIG: []int{0}, filler: gpu.Placement{Start: 5, Size: 1},
			devices: []device{small, mig(0, "3g.40gb", 0, 4), mig(1, "2g.20gb", 4, 2)},
		},
		{name: "idle instance reused", inMIG: []int{0}, idle: []device{small}, devices: []device{small}, filler: gpu.Placement{Start: 5, Size: 1}},
		{name: "idle instance evicted", inMIG: []int{0}, idle: []device{mig(0, "1g.10gb", 0, 1)}, devices: []device{mig(0, "2g.20gb", 0, 2)}, filler: gpu.Placement{Start: 4, Size: 2}},
		{name: "idle instance evicted for a mode change", toggles: true, inMIG: []int{0}, idle: []device{small}, devices: []device{{board: 0, kind: gpu.TypeGPU}}},
	}
}

// newNode is a node of the shape, before any process has run.
func (s shape) newNode(t *testing.T) *node {
	return newNode(t, s.inMIG, 4*min(1, len(s.idle)))
}

// settle has a process make the idle instances.
func (s shape) settle(ctx context.Context, n *node, p *process) error {
	for i, d := range s.idle {
		c := &claim{uid: fmt.Sprintf("earlier-%d", i), devices: []device{d}}
		n.allocate(c)
		if err := prepare(ctx, p, c.uid); err != nil {
			return err
		}
		if err := unprepare(ctx, p, c.uid); err != nil {
			return err
		}
		n.api.forget(c.uid)
	}
	return nil
}

// operations are those of a shape's claim, in the order in which a process does them.
type operations struct {
	all []string
	// prepare and unprepare are the indices of their first operations.
	prepare, unprepare int
}

// enumerate has one process go through it all, undisturbed.
func enumerate(t *testing.T, s shape, b crash.Break) operations {
	n := s.newNode(t)
	p := n.start("a", crash.Options{Log: n.path("operations"), Break: b})
	defer p.kill()
	c := &claim{uid: "claim", devices: s.devices}
	n.allocate(c)
	var o operations
	require.NoError(t, s.settle(t.Context(), n, p))
	o.prepare = len(n.operations())
	require.NoError(t, prepare(t.Context(), p, c.uid))
	o.unprepare = len(n.operations())
	require.NoError(t, unprepare(t.Context(), p, c.uid))
	o.all = n.named()
	require.Less(t, o.prepare, o.unprepare)
	require.Less(t, o.unprepare, len(o.all))
	return o
}

// enumerateBeside has a process prepare the claim of a shape that toggles while
// another process is there. Whoever has a board open keeps all others from changing
// its mode, so the preparation is refused, and undone.
func enumerateBeside(t *testing.T, s shape, b crash.Break) operations {
	n := s.newNode(t)
	p, other := n.start("a", crash.Options{Log: n.path("operations"), Break: b}), n.start("b", crash.Options{Break: b})
	defer p.kill()
	defer other.kill()
	require.NoError(t, ready(t.Context(), other))
	c := &claim{uid: "claim", devices: s.devices}
	n.allocate(c)
	var o operations
	require.NoError(t, s.settle(t.Context(), n, p))
	o.prepare = len(n.operations())
	require.ErrorContains(t, prepare(t.Context(), p, c.uid), refusal)
	o.all = n.named()
	o.unprepare = len(o.all)
	n.api.forget(c.uid)
	require.Empty(t, n.observe().violations())
	return o
}

// refusal is what a claim is told that needs another mode of a board that somebody has open.
const refusal = "change the MIG mode"

// named are the operations that have begun, with the boards by index.
func (n *node) named() []string {
	all := n.operations()
	for i := range all {
		for board, uuid := range n.uuids {
			all[i] = strings.ReplaceAll(all[i], uuid, fmt.Sprintf("GPU %d", board))
		}
	}
	return all
}

// operations are those that have begun.
func (n *node) operations() []string {
	text, err := os.ReadFile(n.path("operations"))
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(n.t, err)
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// swappable reports whether, after the first so many operations, the first
// device's instance is there and a record says which it is. Before that record
// nothing can tell it from another that somebody makes in the same place.
func (o operations) swappable(d device, count int) bool {
	place := fmt.Sprintf("GPU %d %s@%s", d.board, d.profile, d.at)
	made, known := false, false
	for _, name := range o.all[:count] {
		switch {
		case name == "CreateGPUInstance "+place:
			made = true
		case strings.HasPrefix(name, "PutInstance "+place) && made:
			known = true
		case name == "DestroyGPUInstance "+place, name == "DeleteInstance "+place:
			made, known = false, false
		}
	}
	return known
}

// aftermath is what comes after the crash.
type aftermath string

const (
	retried  aftermath = "restarted and asked again"
	released aftermath = "restarted and never asked again"
	second   aftermath = "a second process is asked"
	paused   aftermath = "held up, and a second process is asked"
	swapped  aftermath = "restarted when another instance is in the place"
)

// scenario is one case of the sweep.
type scenario struct {
	shape shape
	// unprepare: it dies in Unprepare, else in Prepare.
	unprepare bool
	// at is the operation, counted from the start of the process, and name what it is.
	at   int
	name string
	// late: it dies after the operation, else before.
	late  bool
	after aftermath
	// broken is how the engine is broken.
	broken crash.Break
}

// beside reports whether a second process is there all the time.
func (s scenario) beside() bool { return s.after == second || s.after == paused }

// refused reports whether two processes keep each other from preparing the claim.
func (s scenario) refused() bool { return s.beside() && s.shape.toggles && !s.unprepare }

func (s scenario) operation() call {
	if s.unprepare {
		return unprepare
	}
	return prepare
}

func (s scenario) String() string {
	when := "before"
	if s.late {
		when = "after"
	}
	return fmt.Sprintf("%s %d %s", when, s.at, s.name)
}

func (s scenario) options(n *node) crash.Options {
	when := "before"
	switch {
	case s.after == paused:
		when = "pause"
	case s.late:
		when = "after"
	}
	return crash.Options{At: fmt.Sprintf("%s:%d", when, s.at), Log: n.path("operations"), Break: s.broken}
}

// run is the whole story. It returns what was wrong at the first step at which anything was.
func (s scenario) run(t *testing.T) []string {
	n, ctx := s.shape.newNode(t), t.Context()
	c := &claim{uid: "claim", devices: s.shape.devices}
	next := &claim{uid: "next", devices: s.shape.devices}
	n.allocate(c)
	a := n.start("a", s.options(n))
	rest := crash.Options{Break: s.broken}
	require.NoError(t, s.shape.settle(ctx, n, a))
	if s.unprepare {
		require.NoError(t, prepare(ctx, a, c.uid))
	}
	var b, on *process // on is the process that goes on after the crash.
	if s.beside() {
		b = n.start("b", rest)
		require.NoError(t, ready(ctx, b))
	}
	answered := true // Whether the operation has succeeded in the end.

	wrong := one(s.strike(ctx, n, a, b, c))
	for _, step := range []func() []string{
		func() []string {
			switch s.after {
			case second:
				on = b
				return one(s.operation()(ctx, b, c.uid))
			case paused:
				on = b
				return nil
			case released:
				n.api.forget(c.uid)
				on = n.start("a", rest, "--recover-every=100ms", "--stale-after=200ms")
				return n.settled(func() []string { return n.observe().violations() })
			case swapped:
				if err := n.swap(s.shape.devices[0], s.shape.filler); err != nil {
					return one(err)
				}
				on = n.start("a", rest)
				// A claim whose instance was taken cannot be prepared any more; its release must succeed.
				err := s.operation()(ctx, on, c.uid)
				answered = err == nil
				if s.unprepare {
					return one(err)
				}
				return nil
			default:
				on = n.start("a", rest)
				return one(s.operation()(ctx, on, c.uid))
			}
		},
		func() []string {
			if s.unprepare || s.after == released || !answered {
				return nil
			}
			return n.observe(c).violations()
		},
		func() []string {
			if s.unprepare || s.after == released {
				return nil
			}
			return one(unprepare(ctx, on, c.uid))
		},
		func() []string {
			n.api.forget(c.uid)
			return n.observe().violations()
		},
		func() []string {
			n.allocate(next)
			return one(prepare(ctx, on, next.uid))
		},
		func() []string { return n.observe(next).violations() },
		func() []string { return one(unprepare(ctx, on, next.uid)) },
		func() []string {
			n.api.forget(next.uid)
			return n.observe().violations()
		},
	} {
		if len(wrong) > 0 {
			break
		}
		wrong = step()
	}
	return wrong
}

// strike has process a called, and killed or held up in it.
func (s scenario) strike(ctx context.Context, n *node, a, b *process, c *claim) error {
	if s.after != paused {
		if err := s.operation()(ctx, a, c.uid); err == nil {
			return fmt.Errorf("it was not killed")
		}
		return a.died()
	}
	first := make(chan error, 1)
	go func() { first <- s.operation()(ctx, a, c.uid) }()
	for len(n.operations()) <= s.at && a.alive.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	errs := []error{s.operation()(ctx, b, c.uid), <-first}
	if !s.refused() {
		return errors.Join(errs...)
	}
	for _, err := range errs {
		if err == nil || !strings.Contains(err.Error(), refusal) {
			return fmt.Errorf("expected to be refused for the other process: %w", err)
		}
	}
	// Nobody waits for ever: one of the two is to go.
	a.kill()
	return s.operation()(ctx, b, c.uid)
}

// settled waits until nothing is wrong, and returns what is in the end.
func (n *node) settled(look func() []string) []string {
	deadline := time.Now().Add(patience)
	for {
		wrong := look()
		if len(wrong) == 0 || time.Now().After(deadline) {
			return wrong
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func one(err error) []string {
	if err == nil {
		return nil
	}
	return []string{err.Error()}
}
