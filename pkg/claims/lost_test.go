package claims_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// damage makes all records of a kind unreadable, or removes them.
func (w *world) damage(t *testing.T, kind string, remove bool) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(w.dir, kind, "*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, f := range files {
		if remove {
			require.NoError(t, os.Remove(f))
		} else {
			require.NoError(t, os.WriteFile(f, []byte(`{"version":1,"uid":`), 0o600))
		}
	}
}

// A record that is lost while its pod runs is written again: the instance is not
// touched, and the claim's end destroys it.
func TestLostRecordsAreWrittenAgain(t *testing.T) {
	c := claim("x", mig("GPU-a", "1g.10gb", 6, 1), mig("GPU-b", "3g.40gb", 4, 4))
	for name, damage := range map[string]func(*testing.T, *world){
		"claim damaged":     func(t *testing.T, w *world) { w.damage(t, "claims", false) },
		"claim removed":     func(t *testing.T, w *world) { w.damage(t, "claims", true) },
		"instances damaged": func(t *testing.T, w *world) { w.damage(t, "instances", false) },
		"instances removed": func(t *testing.T, w *world) { w.damage(t, "instances", true) },
		"all damaged":       func(t *testing.T, w *world) { w.damage(t, "claims", false); w.damage(t, "instances", false) },
		"all removed":       func(t *testing.T, w *world) { w.damage(t, "claims", true); w.damage(t, "instances", true) },
	} {
		for next, call := range map[string]func(*claims.Engine) error{
			"recovery": func(e *claims.Engine) error {
				_ = e.Recover(t.Context()) // It reports what it found damaged, once.
				return e.Recover(t.Context())
			},
			"the kubelet asks again": func(e *claims.Engine) error { _, err := e.Prepare(t.Context(), c); return err },
		} {
			t.Run(name+", then "+next, func(t *testing.T) {
				w := newWorld(t)
				first, err := w.engine(t).Prepare(t.Context(), c)
				require.NoError(t, err)
				damage(t, w)
				w.steps = nil
				require.NoError(t, call(w.engine(t)))
				for _, step := range []string{"CreateGPUInstance", "DestroyComputeInstance", "DestroyGPUInstance", "RemoveSpec"} {
					require.Zero(t, steps(w, step), step)
				}
				again, err := w.engine(t).Prepare(t.Context(), c)
				require.NoError(t, err)
				require.Equal(t, first, again)
				require.NoError(t, w.engine(t).Unprepare(t.Context(), c.UID))
				requireClean(t, w)
			})
		}
	}
}

func TestAReleaseBlockedByAThirdPartyIsFinishedLater(t *testing.T) {
	w := newWorld(t)
	got, err := w.engine(t).Prepare(t.Context(), claim("x", mig("GPU-a", "1g.10gb", 6, 1)))
	require.NoError(t, err)

	w.holder["GPU-a"] = []gpu.Process{{PID: 7, Command: "python", GPUInstance: got[0].Instance.ID, InPod: true}}
	err = w.engine(t).Unprepare(t.Context(), "x")
	var blocked *claims.BlockedError
	require.ErrorIs(t, err, gpu.ErrInUse)
	require.NotErrorAs(t, err, &blocked, "the tenant itself is the kubelet's to end")
	require.ErrorContains(t, err, "own pod has not ended")

	w.holder["GPU-a"] = []gpu.Process{{PID: 8, Command: "nv-hostengine", GPUInstance: -1}}
	err = w.engine(t).Unprepare(t.Context(), "x")
	require.ErrorAs(t, err, &blocked)
	require.Contains(t, blocked.Claim.Blocked, "pid 8 (nv-hostengine)")
	require.Equal(t, mig("GPU-a", "1g.10gb", 6, 1), blocked.Claim.Devices[0].Device)

	// Nobody gets the place, also not through another process, until it is free.
	_, err = w.engine(t).Prepare(t.Context(), claim("next", mig("GPU-a", "1g.10gb", 6, 1)))
	require.ErrorContains(t, err, "team/x")
	require.ErrorAs(t, w.engine(t).Recover(t.Context()), &blocked)
	w.holder = nil
	require.NoError(t, w.engine(t).Recover(t.Context()))
	requireClean(t, w)
}

// The pod of a lost GPU ends, and its instance goes when the GPU is back. Not so while the pod still has another GPU.
func TestAReleaseOnALostGPUIsFinishedLater(t *testing.T) {
	w := newWorld(t)
	got, err := w.engine(t).Prepare(t.Context(), claim("x", mig("GPU-a", "1g.10gb", 6, 1), mig("GPU-b", "3g.40gb", 4, 4)))
	require.NoError(t, err)
	w.lost = "GPU-a"
	w.holder["GPU-b"] = []gpu.Process{{PID: 7, Command: "python", GPUInstance: got[1].Instance.ID, InPod: true}}
	var blocked *claims.BlockedError
	require.NotErrorAs(t, w.engine(t).Unprepare(t.Context(), "x"), &blocked)

	w.holder = nil
	require.ErrorAs(t, w.engine(t).Unprepare(t.Context(), "x"), &blocked)
	require.ErrorIs(t, blocked, gpu.ErrLost)
	require.Empty(t, w.boards["GPU-b"].Instances)
	require.ErrorAs(t, w.engine(t).Recover(t.Context()), &blocked)
	w.lost = ""
	require.NoError(t, w.engine(t).Recover(t.Context()))
	requireClean(t, w)
}

func TestAdminAccessChangesNothing(t *testing.T) {
	w := newWorld(t)
	watch := claim("watch", mig("GPU-a", "1g.10gb", 6, 1), gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-a"})
	for i := range watch.Devices {
		watch.Devices[i].AdminAccess = true
	}
	_, err := w.engine(t).Prepare(t.Context(), watch)
	require.ErrorIs(t, err, gpu.ErrNotFound)
	require.ErrorContains(t, err, "admin access creates none")
	requireClean(t, w)

	work := claim("work", mig("GPU-a", "1g.10gb", 6, 1))
	first, err := w.engine(t).Prepare(t.Context(), work)
	require.NoError(t, err)
	seen, err := w.engine(t).Prepare(t.Context(), watch)
	require.NoError(t, err)
	require.Equal(t, first[0].Instance, seen[0].Instance)

	// It is in nobody's way, and its end takes nothing away.
	require.NoError(t, w.engine(t).Unprepare(t.Context(), "watch"))
	require.Len(t, w.boards["GPU-a"].Instances, 1)
	watch.Devices = watch.Devices[1:]
	_, err = w.engine(t).Prepare(t.Context(), watch)
	require.NoError(t, err)
	require.NoError(t, w.engine(t).Unprepare(t.Context(), "work"))
	_, err = w.engine(t).Prepare(t.Context(), claim("whole", gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-a"}))
	require.NoError(t, err)
}

// Who keeps a board from changing its mode and is in no list is told of all the same.
func TestAModeChangeThatSomebodyUnseenBlocks(t *testing.T) {
	w := newWorld(t)
	w.opened = true
	_, err := w.engine(t).Prepare(t.Context(), claim("x", mig("GPU-a", "1g.10gb", 6, 1)))
	require.ErrorIs(t, err, gpu.ErrInUse)
	require.ErrorContains(t, err, "during an update, the other plugin")
	requireClean(t, w)
}
