package claims_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

const (
	none, standard, short = gpu.TimeSlice(""), gpu.TimeSliceDefault, gpu.TimeSliceShort
	medium, long          = gpu.TimeSliceMedium, gpu.TimeSliceLong
)

func prepared(t *testing.T, w *world, c claims.Claim) claims.Prepared {
	t.Helper()
	got, err := w.engine(t).Prepare(t.Context(), c)
	require.NoError(t, err)
	return got[0]
}

func released(t *testing.T, w *world, uid string) {
	t.Helper()
	require.NoError(t, w.engine(t).Unprepare(t.Context(), uid))
}

// The first user's slice stays until the last user has gone.
func TestTheFirstUserSetsTheTimeSlice(t *testing.T) {
	w := newWorld(t)
	require.Empty(t, prepared(t, w, slicing("first", short, replica("GPU-a", 0))).Conditions)
	require.Equal(t, short, w.slices["GPU-a"])

	late := prepared(t, w, slicing("late", long, replica("GPU-a", 1)))
	require.Equal(t, short, w.slices["GPU-a"])
	require.Len(t, late.Conditions, 1)
	require.Equal(t, claims.TimeSliceNotApplied, late.Conditions[0].Type)
	for _, part := range []string{"time slice Long", "claim team/first used GPU GPU-a first", "stays Short"} {
		require.Contains(t, late.Conditions[0].Message, part)
	}
	require.Equal(t, late, prepared(t, w, slicing("late", long, replica("GPU-a", 1))), "asked again it is the same")
	require.Empty(t, prepared(t, w, slicing("same", short, replica("GPU-a", 2))).Conditions)
	require.Empty(t, prepared(t, w, claim("silent", replica("GPU-a", 3))).Conditions, "who asks for nothing misses nothing")
	require.Empty(t, prepared(t, w, slicing("elsewhere", medium, replica("GPU-b", 0))).Conditions)

	// The first user's end changes nothing for those that are left, and it is named on.
	released(t, w, "first")
	require.Equal(t, short, w.slices["GPU-a"])
	require.Contains(t, prepared(t, w, slicing("later", long, replica("GPU-a", 0))).Conditions[0].Message, "claim team/first")
	for _, uid := range []string{"late", "same", "silent"} {
		released(t, w, uid)
		require.Equal(t, short, w.slices["GPU-a"], uid)
	}
	released(t, w, "later")
	require.Equal(t, standard, w.slices["GPU-a"])
	require.Equal(t, medium, w.slices["GPU-b"])
	released(t, w, "elsewhere")
	requireClean(t, w)

	require.Empty(t, prepared(t, w, slicing("next", long, replica("GPU-a", 0))).Conditions)
	require.Equal(t, long, w.slices["GPU-a"])
}

func TestWhichTimeSliceIsSet(t *testing.T) {
	whole := gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-a"}
	for name, c := range map[string]struct {
		device       gpu.Device
		asked, node  gpu.TimeSlice
		during, then gpu.TimeSlice
	}{
		"a replica gets the default":           {device: replica("GPU-a", 0), during: standard, then: standard},
		"the node's for a replica":             {device: replica("GPU-a", 0), node: long, during: long, then: standard},
		"the claim's before the node's":        {device: replica("GPU-a", 0), asked: short, node: long, during: short, then: standard},
		"the default before the node's":        {device: replica("GPU-a", 0), asked: standard, node: long, during: standard, then: standard},
		"a whole GPU is left alone":            {device: whole, during: none, then: none},
		"the node's for a whole GPU":           {device: whole, node: medium, during: medium, then: standard},
		"the claim's for a whole GPU":          {device: whole, asked: short, during: short, then: standard},
		"an instance has none":                 {device: mig("GPU-a", "1g.10gb", 6, 1), node: long, during: none, then: none},
		"nor where somebody asks all the same": {device: mig("GPU-a", "1g.10gb", 6, 1), asked: short, during: none, then: none},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policy.TimeSlicing.Interval = c.node
			require.Empty(t, prepared(t, w, slicing("x", c.asked, c.device)).Conditions)
			require.Equal(t, c.during, w.slices["GPU-a"])
			released(t, w, "x")
			require.Equal(t, c.then, w.slices["GPU-a"])
		})
	}
}

// Devices of one claim on one GPU have one slice, and it is set and restored once.
func TestOneClaimAsksForSeveralTimeSlices(t *testing.T) {
	w := newWorld(t)
	c := slicing("x", short, replica("GPU-a", 0), replica("GPU-a", 1))
	c.Devices[1].TimeSlice.Wanted = long
	got, err := w.engine(t).Prepare(t.Context(), c)
	require.NoError(t, err)
	require.Empty(t, got[0].Conditions)
	require.Equal(t, claims.TimeSliceNotApplied, got[1].Conditions[0].Type)
	require.Equal(t, 1, steps(w, "SetTimeSlice"))
	released(t, w, "x")
	require.Equal(t, 2, steps(w, "SetTimeSlice"))
	requireClean(t, w)
}

func TestAdminAccessIsNoUserOfTheTimeSlice(t *testing.T) {
	w := newWorld(t)
	w.policy.TimeSlicing.Interval = long
	watch := slicing("watch", short, replica("GPU-a", 0), gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-a"})
	for i := range watch.Devices {
		watch.Devices[i].AdminAccess = true
	}
	prepared(t, w, watch)
	require.Empty(t, w.slices)
	require.Empty(t, prepared(t, w, slicing("work", medium, replica("GPU-a", 0))).Conditions)
	released(t, w, "work")
	require.Equal(t, standard, w.slices["GPU-a"])
	released(t, w, "watch")
}

// A claim that was cut off has no container: the next user need not follow it, and
// what is left of it takes nothing away from the next user when it is cleaned up.
func TestTheNextUserOfACutOffClaim(t *testing.T) {
	w := newWorld(t)
	w.failAt, w.dead = 3, true // intent, intent with the slice, slice; the record as prepared is not written.
	_, err := w.engine(t).Prepare(t.Context(), slicing("cut", short, replica("GPU-a", 0)))
	require.ErrorIs(t, err, errInjected)
	w.failAt = -1
	require.Equal(t, short, w.slices["GPU-a"])

	require.Empty(t, prepared(t, w, slicing("next", long, replica("GPU-a", 1))).Conditions)
	require.NoError(t, w.engine(t).Recover(t.Context()))
	require.Equal(t, long, w.slices["GPU-a"])
	released(t, w, "next")
	requireClean(t, w)

	// Or nobody comes, and Recover restores.
	w.steps, w.failAt = nil, 3
	_, err = w.engine(t).Prepare(t.Context(), slicing("cut", short, replica("GPU-a", 0)))
	require.ErrorIs(t, err, errInjected)
	w.failAt = -1
	require.Equal(t, short, w.slices["GPU-a"])
	require.NoError(t, w.engine(t).Recover(t.Context()))
	requireClean(t, w)
}

// A slice that cannot be restored keeps the claim recorded, and its replica from others, until it can.
func TestARestoreIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	prepared(t, w, slicing("x", short, replica("GPU-a", 0)))
	w.steps, w.failAt, w.dead = nil, 2, true // the record as releasing, the spec, the slice.
	require.ErrorIs(t, w.engine(t).Unprepare(t.Context(), "x"), errInjected)
	require.Equal(t, "SetTimeSlice", w.steps[2])
	w.failAt = -1
	_, err := w.engine(t).Prepare(t.Context(), claim("next", replica("GPU-a", 0)))
	require.ErrorContains(t, err, "team/x")
	require.NoError(t, w.engine(t).Recover(t.Context()))
	requireClean(t, w)
}

// Of a board that is lost, gone or in MIG mode there is nothing to restore, and nobody waits for it.
func TestNothingToRestore(t *testing.T) {
	for name, change := range map[string]func(*world){
		"lost":   func(w *world) { w.lost = "GPU-a" },
		"gone":   func(w *world) { delete(w.boards, "GPU-a") },
		"in MIG": func(w *world) { w.boards["GPU-a"].MIG.Current = true },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			prepared(t, w, slicing("x", short, replica("GPU-a", 0)))
			change(w)
			w.steps = nil
			released(t, w, "x")
			require.Zero(t, steps(w, "SetTimeSlice"))
		})
	}
}

// The record that says what to restore is written again from the spec.
func TestALostRecordOfATimeSlice(t *testing.T) {
	w := newWorld(t)
	first := prepared(t, w, slicing("x", short, replica("GPU-a", 0)))
	w.damage(t, "claims", true)
	require.Equal(t, first, prepared(t, w, slicing("x", short, replica("GPU-a", 0))))
	w.damage(t, "claims", true)
	released(t, w, "x")
	requireClean(t, w)
}

// Conditions that the claim brings along are kept beside the engine's own.
func TestConditionsOfTheParametersAreKept(t *testing.T) {
	w := newWorld(t)
	prepared(t, w, slicing("first", short, replica("GPU-a", 0)))
	c := slicing("x", long, replica("GPU-a", 1))
	c.Devices[0].Conditions = []journal.Condition{{Type: "Noted", Message: "m"}}
	require.Len(t, prepared(t, w, c).Conditions, 2)
	require.Len(t, c.Devices[0].Conditions, 1)
}
