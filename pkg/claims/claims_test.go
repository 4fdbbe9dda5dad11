package claims_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

func replica(uuid string, n int) gpu.Device {
	return gpu.Device{Type: gpu.TypeTimeSlice, GPU: uuid, Replica: n}
}

func mig(uuid, profile string, start, size int) gpu.Device {
	return gpu.Device{Type: gpu.TypeMIG, GPU: uuid, Profile: profile, Placement: gpu.Placement{Start: start, Size: size}}
}

// slicing is a claim for the device, with the time slice that its parameters ask for.
func slicing(uid string, slice gpu.TimeSlice, devices ...gpu.Device) claims.Claim {
	c := claim(uid, devices...)
	for i := range c.Devices {
		c.Devices[i].TimeSlice.Wanted = slice
	}
	return c
}

func claim(uid string, devices ...gpu.Device) claims.Claim {
	c := claims.Claim{UID: uid, Namespace: "team", Name: uid}
	for i, d := range devices {
		c.Devices = append(c.Devices, journal.ClaimDevice{Request: fmt.Sprintf("r%d", i), Pool: "node", Name: fmt.Sprintf("%s-%d", d.GPU, i), Device: d})
	}
	return c
}

// shapes are claims that take every path through Prepare.
func shapes() map[string]claims.Claim {
	return map[string]claims.Claim{
		"1g":                          claim("1g", mig("GPU-a", "1g.10gb", 6, 1)),
		"whole with a mode change":    claim("whole", gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-b"}),
		"replica":                     claim("replica", gpu.Device{Type: gpu.TypeTimeSlice, GPU: "GPU-a", Replica: 2}),
		"replica with a time slice":   slicing("short", gpu.TimeSliceShort, replica("GPU-a", 1)),
		"whole with a time slice":     slicing("long", gpu.TimeSliceLong, gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-b"}),
		"replicas beside an instance": slicing("beside", gpu.TimeSliceMedium, replica("GPU-a", 1), replica("GPU-a", 2), mig("GPU-b", "1g.10gb", 6, 1)),
		"three devices on two GPUs":   claim("three", mig("GPU-a", "1g.10gb", 6, 1), mig("GPU-a", "3g.40gb", 0, 4), mig("GPU-b", "2g.20gb", 4, 2)),
		"an instance and a whole GPU": claim("both", mig("GPU-a", "1g.10gb", 6, 1), gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-b"}),
	}
}

// prepareWorld is a world in which GPU-b has to change its mode for a whole GPU.
func prepareWorld(t *testing.T) *world {
	w := newWorld(t)
	w.boards["GPU-b"].MIG.Current = true
	return w
}

func requireClean(t *testing.T, w *world) {
	t.Helper()
	j, err := journal.Open(w.dir)
	require.NoError(t, err)
	recorded, err := j.Claims()
	require.NoError(t, err)
	require.Empty(t, recorded, "claim records")
	instances, err := j.Instances()
	require.NoError(t, err)
	require.Empty(t, instances, "instance records")
	require.Empty(t, w.specs, "CDI specs")
	for uuid, b := range w.boards {
		require.Empty(t, b.Instances, "instances on %s", uuid)
		require.Contains(t, []gpu.TimeSlice{"", gpu.TimeSliceDefault}, w.slices[uuid], "time slice of %s", uuid)
	}
}

func TestPrepareAndUnprepare(t *testing.T) {
	for name, c := range shapes() {
		t.Run(name, func(t *testing.T) {
			w := prepareWorld(t)
			first, err := w.engine(t).Prepare(t.Context(), c)
			require.NoError(t, err)
			require.Len(t, first, len(c.Devices))
			for i, d := range first {
				require.Equal(t, c.Devices[i].Request, d.Request)
				require.Equal(t, "kerf.dev/claim="+c.UID+"-"+d.Name, d.CDI)
				require.Equal(t, d.Device.Type == gpu.TypeMIG, w.boards[d.Device.GPU].MIG.Current)
				if d.Device.Type == gpu.TypeMIG {
					require.True(t, d.Instance.Usable())
					require.Equal(t, d.Device.Placement, d.Instance.Placement)
				}
			}
			require.Len(t, w.specs[c.UID], len(c.Devices))

			// Asked again, by another process, it is the same.
			delete(w.specs, c.UID)
			second, err := w.engine(t).Prepare(t.Context(), c)
			require.NoError(t, err)
			require.Equal(t, first, second)
			require.Len(t, w.specs[c.UID], len(c.Devices))

			for range 2 {
				require.NoError(t, w.engine(t).Unprepare(t.Context(), c.UID))
				requireClean(t, w)
			}
		})
	}
}

// Each step of Prepare and Unprepare fails once, before and after its effect.
// The call undoes all, or a repetition does; a killed process leaves it to Recover.
func TestEveryStepCanFail(t *testing.T) {
	for name, c := range shapes() {
		prepare := func(e *claims.Engine) error { _, err := e.Prepare(context.Background(), c); return err }
		unprepare := func(e *claims.Engine) error { return e.Unprepare(context.Background(), c.UID) }

		w := prepareWorld(t)
		require.NoError(t, prepare(w.engine(t)))
		prepareSteps := len(w.steps)
		w.steps = nil
		require.NoError(t, unprepare(w.engine(t)))
		unprepareSteps := len(w.steps)
		require.NotZero(t, prepareSteps)
		require.NotZero(t, unprepareSteps)

		for _, late := range []bool{false, true} {
			for _, dead := range []bool{false, true} {
				how := fmt.Sprintf("%s/late=%t,killed=%t", name, late, dead)
				for n := range prepareSteps {
					t.Run(fmt.Sprintf("prepare/%s/%d", how, n), func(t *testing.T) {
						w := prepareWorld(t)
						w.failAt, w.late, w.dead = n, late, dead
						require.ErrorIs(t, prepare(w.engine(t)), errInjected)
						w.failAt = -1
						if dead {
							require.NoError(t, w.engine(t).Recover(t.Context()))
							if _, kept := w.specs[c.UID]; kept {
								require.NoError(t, unprepare(w.engine(t))) // It had got as far as prepared.
							}
						}
						// A step that failed after its effect is unknown to the call that it failed in,
						// as a creation that timed out is; what it left has a record and is found.
						require.NoError(t, w.engine(t).Recover(t.Context()))
						requireClean(t, w)
						require.NoError(t, prepare(w.engine(t)), "the next claim for the same place succeeds")
					})
				}
				for n := range unprepareSteps {
					t.Run(fmt.Sprintf("unprepare/%s/%d", how, n), func(t *testing.T) {
						w := prepareWorld(t)
						require.NoError(t, prepare(w.engine(t)))
						w.steps, w.failAt, w.late, w.dead = nil, n, late, dead
						require.ErrorIs(t, unprepare(w.engine(t)), errInjected)
						w.failAt = -1
						require.NoError(t, unprepare(w.engine(t)), "the kubelet's next try succeeds")
						requireClean(t, w)
					})
				}
			}
		}
	}
}

// What fails before its effect is undone by the very call.
func TestAFailedCallLeavesNothing(t *testing.T) {
	for name, c := range shapes() {
		w := prepareWorld(t)
		_, err := w.engine(t).Prepare(t.Context(), c)
		require.NoError(t, err)
		for n := range len(w.steps) {
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				w := prepareWorld(t)
				w.failAt = n
				_, err := w.engine(t).Prepare(t.Context(), c)
				require.ErrorIs(t, err, errInjected)
				requireClean(t, w)
			})
		}
	}
}

func TestACancelledCallTouchesNoHardware(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := w.engine(t).Prepare(ctx, claim("x", mig("GPU-a", "1g.10gb", 6, 1)))
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, w.boards["GPU-a"].MIG.Current)
	requireClean(t, w)
}

func TestCollisionsNameTheHolder(t *testing.T) {
	w := newWorld(t)
	_, err := w.engine(t).Prepare(t.Context(), claim("holder", mig("GPU-a", "3g.40gb", 4, 4)))
	require.NoError(t, err)
	for name, d := range map[string]gpu.Device{
		"the same placement": mig("GPU-a", "3g.40gb", 4, 4),
		"an overlap":         mig("GPU-a", "1g.10gb", 6, 1),
		"the whole GPU":      {Type: gpu.TypeGPU, GPU: "GPU-a"},
		"a replica":          {Type: gpu.TypeTimeSlice, GPU: "GPU-a"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.engine(t).Prepare(t.Context(), claim("late", d))
			var collision *claims.CollisionError
			require.ErrorAs(t, err, &collision)
			require.ErrorContains(t, err, "team/holder")
		})
	}
	_, err = w.engine(t).Prepare(t.Context(), claim("beside", mig("GPU-a", "3g.40gb", 0, 4)))
	require.NoError(t, err)
	_, err = w.engine(t).Prepare(t.Context(), claim("twice", mig("GPU-b", "1g.10gb", 4, 1), mig("GPU-b", "3g.40gb", 4, 4)))
	require.ErrorContains(t, err, "of the claim itself is in the way")
}

// A GPU has one set of media engines: whoever has it keeps others from it at every placement.
func TestMediaEnginesCollideAnywhere(t *testing.T) {
	refused := func(t *testing.T, w *world, holder string) {
		t.Helper()
		_, err := w.engine(t).Prepare(t.Context(), claim("late", mig("GPU-a", "1g.10gb+me", 2, 1)))
		var collision *claims.CollisionError
		require.ErrorAs(t, err, &collision)
		require.ErrorContains(t, err, holder)
		require.ErrorContains(t, err, "media engines")
		for name, d := range map[string]gpu.Device{"plain": mig("GPU-a", "1g.10gb", 2, 1), "other GPU": mig("GPU-b", "1g.10gb+me", 2, 1)} {
			_, err = w.engine(t).Prepare(t.Context(), claim(name, d))
			require.NoError(t, err, name)
		}
	}
	t.Run("claim", func(t *testing.T) {
		w := newWorld(t)
		_, err := w.engine(t).Prepare(t.Context(), claim("holder", mig("GPU-a", "1g.10gb+me", 6, 1)))
		require.NoError(t, err)
		refused(t, w, "team/holder")
	})
	t.Run("foreign instance", func(t *testing.T) {
		w := newWorld(t)
		w.boards["GPU-a"].MIG.Current = true
		w.boards["GPU-a"].Instances = []gpu.Instance{{GPU: "GPU-a", Profile: "1g.10gb+me", Placement: gpu.Placement{Start: 6, Size: 1}, ID: 77}}
		refused(t, w, "foreign 1g.10gb+me")
	})
}

func TestForeignInstancesAreUsedAndNeverDestroyed(t *testing.T) {
	w := newWorld(t)
	w.boards["GPU-a"].MIG.Current = true
	foreign := gpu.Instance{GPU: "GPU-a", Profile: "3g.40gb", Placement: gpu.Placement{Start: 4, Size: 4}, ID: 77, Compute: []gpu.ComputeInstance{{UUID: "MIG-foreign", Whole: true}}}
	w.boards["GPU-a"].Instances = []gpu.Instance{foreign}

	_, err := w.engine(t).Prepare(t.Context(), claim("overlap", mig("GPU-a", "1g.10gb", 6, 1)))
	require.ErrorContains(t, err, "foreign 3g.40gb")
	_, err = w.engine(t).Prepare(t.Context(), claim("whole", gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-a"}))
	require.ErrorIs(t, err, gpu.ErrInUse)

	got, err := w.engine(t).Prepare(t.Context(), claim("exact", mig("GPU-a", "3g.40gb", 4, 4)))
	require.NoError(t, err)
	require.Equal(t, foreign, *got[0].Instance)
	require.NoError(t, w.engine(t).Unprepare(t.Context(), "exact"))
	require.Equal(t, []gpu.Instance{foreign}, w.boards["GPU-a"].Instances)
}

// The place of a prepared claim's instance was taken by another instance while nobody looked.
func TestAnotherInstanceInTheSamePlaceIsNotDestroyed(t *testing.T) {
	w := newWorld(t)
	_, err := w.engine(t).Prepare(t.Context(), claim("x", mig("GPU-a", "1g.10gb", 6, 1)))
	require.NoError(t, err)
	w.boards["GPU-a"].Instances[0].ID = 99

	require.ErrorContains(t, w.engine(t).Recover(t.Context()), "is lost")
	_, err = w.engine(t).Prepare(t.Context(), claim("x", mig("GPU-a", "1g.10gb", 6, 1)))
	require.ErrorContains(t, err, "vanished")
	require.NoError(t, w.engine(t).Unprepare(t.Context(), "x"))
	require.Len(t, w.boards["GPU-a"].Instances, 1, "it is somebody else's")
}

func TestAModeChangeNamesWhoBlocksIt(t *testing.T) {
	w := newWorld(t)
	w.holder["GPU-a"] = []gpu.Process{{PID: 42, Command: "nv-hostengine"}}
	_, err := w.engine(t).Prepare(t.Context(), claim("x", mig("GPU-a", "1g.10gb", 6, 1)))
	require.ErrorIs(t, err, gpu.ErrInUse)
	require.ErrorContains(t, err, "pid 42 (nv-hostengine)")

	w.holder = nil
	w.boards["GPU-a"].ToggleNeedsReset = true
	_, err = w.engine(t).Prepare(t.Context(), claim("x", mig("GPU-a", "1g.10gb", 6, 1)))
	require.ErrorIs(t, err, gpu.ErrResetRequired)
	requireClean(t, w)
}

func TestAReleaseThatIsBlockedNamesTheHolderAndCanBeRepeated(t *testing.T) {
	w := newWorld(t)
	_, err := w.engine(t).Prepare(t.Context(), claim("x", mig("GPU-a", "1g.10gb", 6, 1)))
	require.NoError(t, err)
	w.holder["GPU-a"] = []gpu.Process{{PID: 7, Command: "python"}}
	err = w.engine(t).Unprepare(t.Context(), "x")
	require.ErrorIs(t, err, gpu.ErrInUse)
	require.ErrorContains(t, err, "pid 7 (python)")
	require.Empty(t, w.specs, "no container can start with it any more")

	w.holder = nil
	require.NoError(t, w.engine(t).Unprepare(t.Context(), "x"))
	requireClean(t, w)
}
