package crash

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// board is hardware with one place, and specs, that write down what reaches them.
type board struct {
	claims.Hardware
	claims.Specs
	there *gpu.Instance
	done  []string
}

var errBoard = errors.New("the board says no")

func (b *board) GPU(context.Context, string) (gpu.GPU, error) {
	g := gpu.GPU{UUID: "GPU-1"}
	if b.there != nil {
		g.Instances = []gpu.Instance{*b.there}
	}
	return g, nil
}

func (b *board) SetMIGMode(context.Context, string, bool) error {
	b.done = append(b.done, "mode")
	return errBoard
}

func (b *board) SetTimeSlice(context.Context, string, gpu.TimeSlice) error {
	b.done = append(b.done, "time slice")
	return errBoard
}

func (b *board) CreateGPUInstance(context.Context, string, string, gpu.Placement) (gpu.Instance, error) {
	b.done = append(b.done, "create")
	return *b.there, nil
}

func (b *board) CreateComputeInstance(_ context.Context, i gpu.Instance) (gpu.Instance, error) {
	b.done = append(b.done, "create compute")
	return i, nil
}

func (b *board) DestroyComputeInstance(_ context.Context, i gpu.Instance) (gpu.Instance, error) {
	b.done = append(b.done, "destroy compute")
	if !i.Same(*b.there) {
		return i, gpu.ErrNotFound
	}
	i.Compute, b.there.Compute = nil, nil
	return i, nil
}

func (b *board) DestroyGPUInstance(_ context.Context, i gpu.Instance) error {
	b.done = append(b.done, "destroy")
	if !i.Same(*b.there) {
		return gpu.ErrNotFound
	}
	b.there = nil
	return nil
}

func (b *board) Write(context.Context, string, string, []cdispec.Device) (map[string]string, error) {
	b.done = append(b.done, "write")
	return map[string]string{"d": "id"}, nil
}

func (b *board) Remove(string) error {
	b.done = append(b.done, "remove")
	return nil
}

func instance(id int) gpu.Instance {
	return gpu.Instance{GPU: "GPU-1", Profile: "1g.10gb", Placement: gpu.Placement{Start: 6, Size: 1}, ID: id, Compute: []gpu.ComputeInstance{{UUID: "MIG-1", Whole: true}}}
}

func newBoard(t *testing.T) (*board, *journal.Journal) {
	t.Helper()
	j, err := journal.Open(t.TempDir())
	require.NoError(t, err)
	there := instance(7)
	return &board{there: &there}, j
}

// everything does each operation once.
func everything(t *testing.T, h claims.Hardware, j claims.Journal, s claims.Specs) {
	t.Helper()
	ctx, i := t.Context(), instance(7)
	_, err := h.CreateGPUInstance(ctx, i.GPU, i.Profile, i.Placement)
	require.NoError(t, err)
	_, err = h.CreateComputeInstance(ctx, i)
	require.NoError(t, err)
	bare, err := h.DestroyComputeInstance(ctx, i)
	require.NoError(t, err)
	require.Empty(t, bare.Compute)
	require.NoError(t, h.DestroyGPUInstance(ctx, bare))
	require.ErrorIs(t, h.SetMIGMode(ctx, i.GPU, true), errBoard)
	require.ErrorIs(t, h.SetTimeSlice(ctx, i.GPU, gpu.TimeSliceLong), errBoard)
	require.NoError(t, j.PutClaim(&journal.Claim{UID: "c", State: journal.ClaimIntent}))
	require.NoError(t, j.DeleteClaim("c"))
	require.NoError(t, j.PutInstance(&journal.Instance{State: journal.InstanceClaimed, Instance: i}))
	require.NoError(t, j.PutInstance(&journal.Instance{State: journal.InstanceClaimed, Identified: true, Instance: i}))
	require.NoError(t, j.DeleteInstance(i))
	ids, err := s.Write(ctx, "c", "", nil)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"d": "id"}, ids)
	require.NoError(t, s.Remove("c"))
}

func TestEveryChangeIsCountedAndReachesWhatIsBelow(t *testing.T) {
	b, j := newBoard(t)
	log := filepath.Join(t.TempDir(), "log")
	h, records, s, err := Instrument(Options{Log: log}, b, j, b)
	require.NoError(t, err)
	everything(t, h, records, s)
	require.Equal(t, []string{"create", "create compute", "destroy compute", "destroy", "mode", "time slice", "write", "remove"}, b.done)
	text, err := os.ReadFile(log)
	require.NoError(t, err)
	require.Equal(t, []string{
		"CreateGPUInstance GPU-1 1g.10gb@6:1", "CreateComputeInstance GPU-1 1g.10gb@6:1",
		"DestroyComputeInstance GPU-1 1g.10gb@6:1", "DestroyGPUInstance GPU-1 1g.10gb@6:1", "SetMIGMode GPU-1 true", "SetTimeSlice GPU-1 Long",
		"PutClaim c intent", "DeleteClaim c", "PutInstance GPU-1 1g.10gb@6:1 intent", "PutInstance GPU-1 1g.10gb@6:1 claimed",
		"DeleteInstance GPU-1 1g.10gb@6:1", "WriteSpec c", "RemoveSpec c",
	}, strings.Split(strings.TrimSpace(string(text)), "\n"))
}

func TestWhatHappensAtAPoint(t *testing.T) {
	for when, want := range map[string][]string{
		"before": {"effect 0", "die", "effect 1", "effect 2"},
		"after":  {"effect 0", "effect 1", "die", "effect 2"},
		"pause":  {"effect 0", "sleep", "effect 1", "effect 2"},
		"":       {"effect 0", "effect 1", "effect 2"},
	} {
		t.Run(when, func(t *testing.T) {
			var happened []string
			note := func(what string) func() { return func() { happened = append(happened, what) } }
			p := &points{when: when, at: 1, die: note("die"), sleep: note("sleep")}
			for _, what := range []string{"effect 0", "effect 1", "effect 2"} {
				require.ErrorIs(t, p.pass(what, func() error { note(what)(); return errBoard }), errBoard)
			}
			require.Equal(t, want, happened)
		})
	}
}

func TestOptionsAreChecked(t *testing.T) {
	b, j := newBoard(t)
	for _, o := range []Options{{At: "before"}, {At: "before:-1"}, {At: "between:1"}, {At: "after:x"}, {Break: "everything"}, {Log: "/nonexistent/log"}} {
		_, _, _, err := Instrument(o, b, j, b)
		require.Error(t, err, "%+v", o)
	}
	for _, at := range []string{"", "before:0", "after:12", "pause:3"} {
		_, _, _, err := Instrument(Options{At: at}, b, j, b)
		require.NoError(t, err)
	}
}

func TestBreaks(t *testing.T) {
	breakIt := func(t *testing.T, how Break) (*board, *journal.Journal, claims.Hardware, claims.Journal) {
		b, j := newBoard(t)
		h, records, _, err := Instrument(Options{Break: how}, b, j, b)
		require.NoError(t, err)
		return b, j, h, records
	}
	record := func(i gpu.Instance) *journal.Instance {
		return &journal.Instance{State: journal.InstanceClaimed, Claim: "c", Identified: true, Instance: i}
	}
	t.Run(string(NoIntent), func(t *testing.T) {
		_, below, _, j := breakIt(t, NoIntent)
		require.NoError(t, j.PutClaim(&journal.Claim{UID: "c", State: journal.ClaimIntent}))
		require.NoError(t, j.PutInstance(&journal.Instance{State: journal.InstanceClaimed, Instance: instance(7)}))
		_, err := below.Claim("c")
		require.ErrorIs(t, err, journal.ErrNotFound)
		_, err = below.Instance(instance(7))
		require.ErrorIs(t, err, journal.ErrNotFound)
		require.NoError(t, j.PutInstance(record(instance(7))))
		_, err = below.Instance(instance(7))
		require.NoError(t, err)
	})
	t.Run(string(NoUndo), func(t *testing.T) {
		b, below, h, j := breakIt(t, NoUndo)
		require.NoError(t, below.PutInstance(record(instance(7))))
		require.NoError(t, below.PutClaim(&journal.Claim{UID: "c", State: journal.ClaimIntent}))
		// It is read, as recovery does, and then is being released.
		_, err := j.Claim("c")
		require.NoError(t, err)
		require.NoError(t, j.PutClaim(&journal.Claim{UID: "c", State: journal.ClaimReleasing}))
		bare, err := h.DestroyComputeInstance(t.Context(), instance(7))
		require.NoError(t, err)
		require.NoError(t, h.DestroyGPUInstance(t.Context(), bare))
		require.Empty(t, b.done)
		// What was prepared to its end is destroyed as ever.
		require.NoError(t, j.PutClaim(&journal.Claim{UID: "c", State: journal.ClaimPrepared}))
		_, err = h.DestroyComputeInstance(t.Context(), instance(7))
		require.NoError(t, err)
		require.Equal(t, []string{"destroy compute"}, b.done)
	})
	t.Run(string(NoLock), func(t *testing.T) {
		_, below, _, j := breakIt(t, NoLock)
		unlock, err := below.LockClaim(t.Context(), "c")
		require.NoError(t, err)
		defer unlock()
		_, err = below.TryLockClaim("c")
		require.ErrorIs(t, err, journal.ErrLocked)
		_, err = j.TryLockClaim("c")
		require.NoError(t, err)
	})
	t.Run(string(NoVerify), func(t *testing.T) {
		b, below, h, _ := breakIt(t, NoVerify)
		require.NoError(t, below.PutInstance(record(instance(3))))
		seen, err := h.GPU(t.Context(), "GPU-1")
		require.NoError(t, err)
		require.Equal(t, []gpu.Instance{instance(3)}, seen.Instances, "7 is there, 3 is recorded")
		bare, err := h.DestroyComputeInstance(t.Context(), instance(3))
		require.NoError(t, err)
		require.NoError(t, h.DestroyGPUInstance(t.Context(), bare))
		require.Nil(t, b.there)
	})
}
