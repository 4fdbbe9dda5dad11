package claims_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// idleWorld keeps two instances a board.
func idleWorld(t *testing.T) *world {
	w := newWorld(t)
	n := 2
	w.policy.IdleInstances = configv1alpha1.IdleInstances{MaxPerGPU: &n, MaxAge: metav1.Duration{Duration: time.Hour}, Scope: configv1alpha1.IdleScopeNamespace}
	return w
}

func (w *world) cycle(t *testing.T, c claims.Claim) {
	t.Helper()
	_, err := w.engine(t).Prepare(t.Context(), c)
	require.NoError(t, err)
	require.NoError(t, w.engine(t).Unprepare(t.Context(), c.UID))
}

func (w *world) states(t *testing.T) map[string]journal.InstanceState {
	t.Helper()
	j, err := journal.Open(w.dir)
	require.NoError(t, err)
	all, err := j.Instances()
	require.NoError(t, err)
	states := map[string]journal.InstanceState{}
	for _, i := range all {
		states[i.Instance.Profile+"@"+i.Instance.Placement.String()] = i.State
	}
	return states
}

func steps(w *world, name string) int {
	n := 0
	for _, s := range w.steps {
		if s == name {
			n++
		}
	}
	return n
}

func TestTheNextClaimOfAShapeTakesTheIdleInstance(t *testing.T) {
	w := idleWorld(t)
	place := mig("GPU-a", "1g.10gb", 6, 1)
	w.cycle(t, claim("first", place))
	require.Equal(t, map[string]journal.InstanceState{"1g.10gb@6:1": journal.InstanceIdle}, w.states(t))
	require.Empty(t, w.specs)

	w.steps = nil
	got, err := w.engine(t).Prepare(t.Context(), claim("second", place))
	require.NoError(t, err)
	require.True(t, got[0].Made)
	require.Zero(t, steps(w, "CreateGPUInstance"))
	require.Equal(t, map[string]journal.InstanceState{"1g.10gb@6:1": journal.InstanceClaimed}, w.states(t))
	require.NoError(t, w.engine(t).Unprepare(t.Context(), "second"))
	require.Zero(t, steps(w, "DestroyGPUInstance"))
}

func TestAnIdleInstanceIsNotReusedAsItIs(t *testing.T) {
	place := mig("GPU-a", "1g.10gb", 6, 1)
	for name, c := range map[string]struct {
		change  func(*world)
		claim   func() claims.Claim
		created int
	}{
		"by another namespace": {func(*world) {}, func() claims.Claim {
			c := claim("second", place)
			c.Namespace = "other"
			return c
		}, 1},
		"where it is another now":  {func(w *world) { w.boards["GPU-a"].Instances[0].Compute[0].UUID = "MIG-other" }, func() claims.Claim { return claim("second", place) }, 0},
		"where it is not well":     {func(w *world) { w.unwell = place }, func() claims.Claim { return claim("second", place) }, 1},
		"where it overlaps":        {func(*world) {}, func() claims.Claim { return claim("second", mig("GPU-a", "3g.40gb", 4, 4)) }, 1},
		"for the GPU as a whole":   {func(*world) {}, func() claims.Claim { return claim("second", gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-a"}) }, 0},
		"for a share of the board": {func(*world) {}, func() claims.Claim { return claim("second", gpu.Device{Type: gpu.TypeTimeSlice, GPU: "GPU-a"}) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := idleWorld(t)
			w.cycle(t, claim("first", place))
			c.change(w)
			w.steps = nil
			_, err := w.engine(t).Prepare(t.Context(), c.claim())
			require.NoError(t, err)
			require.Equal(t, c.created, steps(w, "CreateGPUInstance"))
			if name != "where it is another now" {
				require.Equal(t, 1, steps(w, "DestroyGPUInstance"), "the idle one made room")
			} else {
				require.Zero(t, steps(w, "DestroyGPUInstance"), "the other one is somebody else's")
			}
		})
	}
}

func TestIdleInstancesAnywhereOnTheNode(t *testing.T) {
	w := idleWorld(t)
	w.policy.IdleInstances.Scope = configv1alpha1.IdleScopeNode
	w.cycle(t, claim("first", mig("GPU-a", "1g.10gb", 6, 1)))
	c := claim("second", mig("GPU-a", "1g.10gb", 6, 1))
	c.Namespace = "other"
	w.steps = nil
	w.cycle(t, c)
	require.Zero(t, steps(w, "CreateGPUInstance"))
}

func TestIdleInstancesAreBounded(t *testing.T) {
	w := idleWorld(t)
	for i, start := range []int{6, 4, 5} {
		w.cycle(t, claim(string(rune('a'+i)), mig("GPU-a", "1g.10gb", start, 1)))
		time.Sleep(time.Millisecond) // The clock orders them.
	}
	require.Equal(t, map[string]journal.InstanceState{"1g.10gb@4:1": journal.InstanceIdle, "1g.10gb@5:1": journal.InstanceIdle}, w.states(t), "the oldest went")
	require.Len(t, w.boards["GPU-a"].Instances, 2)

	w.policy.IdleInstances.MaxAge.Duration = 0
	require.NoError(t, w.engine(t).Recover(t.Context()))
	requireClean(t, w)
}

func TestWhatIsInDoubtIsNotKept(t *testing.T) {
	place := mig("GPU-a", "1g.10gb", 6, 1)
	t.Run("a process is on it", func(t *testing.T) {
		w := idleWorld(t)
		got, err := w.engine(t).Prepare(t.Context(), claim("x", place))
		require.NoError(t, err)
		w.holder["GPU-a"] = []gpu.Process{{PID: 7, Command: "python", GPUInstance: got[0].Instance.ID, InPod: true}}
		require.ErrorIs(t, w.engine(t).Unprepare(t.Context(), "x"), gpu.ErrInUse)
		w.holder = nil
		require.NoError(t, w.engine(t).Unprepare(t.Context(), "x"))
		requireClean(t, w)
	})
	t.Run("it is not well", func(t *testing.T) {
		w := idleWorld(t)
		_, err := w.engine(t).Prepare(t.Context(), claim("x", place))
		require.NoError(t, err)
		w.unwell = place
		require.NoError(t, w.engine(t).Unprepare(t.Context(), "x"))
		requireClean(t, w)
	})
	t.Run("it was never prepared to its end", func(t *testing.T) {
		w := idleWorld(t)
		w.failAt, w.dead = 5, true
		_, err := w.engine(t).Prepare(t.Context(), claim("x", place))
		require.Error(t, err)
		w.failAt = -1
		require.NoError(t, w.engine(t).Recover(t.Context()))
		requireClean(t, w)
	})
}

// A process that is killed at any step with idle instances about leaves nothing that has no owner.
func TestEveryStepCanFailWithIdleInstances(t *testing.T) {
	setUp := func(t *testing.T) *world {
		w := idleWorld(t)
		w.cycle(t, claim("a", mig("GPU-a", "1g.10gb", 6, 1)))
		w.cycle(t, claim("b", mig("GPU-a", "1g.10gb", 4, 1)))
		w.steps = nil
		return w
	}
	for name, c := range map[string]claims.Claim{
		"reuse":      claim("x", mig("GPU-a", "1g.10gb", 6, 1)),
		"evict one":  claim("x", mig("GPU-a", "2g.20gb", 4, 2)),
		"evict both": claim("x", gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-a"}),
	} {
		w := setUp(t)
		w.cycle(t, c)
		for n := range len(w.steps) {
			for _, late := range []bool{false, true} {
				w := setUp(t)
				w.failAt, w.late, w.dead = n, late, true
				_, err := w.engine(t).Prepare(t.Context(), c)
				if err == nil {
					err = w.engine(t).Unprepare(t.Context(), c.UID)
				}
				require.ErrorIs(t, err, errInjected, "%s at %d", name, n)
				w.failAt = -1
				require.NoError(t, w.engine(t).Recover(t.Context()), "%s at %d", name, n)
				_, err = w.engine(t).Prepare(t.Context(), c)
				require.NoError(t, err, "%s at %d", name, n)
				require.NoError(t, w.engine(t).Unprepare(t.Context(), c.UID))
				require.NoError(t, w.engine(t).Cleanup(t.Context()))
				requireClean(t, w)
			}
		}
	}
}

// A process was killed while it made room. Who comes next, in whatever process, goes on with it.
func TestAnEvictionThatWasCutOffIsInNobodysWay(t *testing.T) {
	for name, cut := range map[string]func(*world){
		"before the destroys": func(*world) {},
		"between them":        func(w *world) { w.boards["GPU-a"].Instances[0].Compute = nil },
		"after them":          func(w *world) { w.boards["GPU-a"].Instances = nil },
	} {
		t.Run(name, func(t *testing.T) {
			w := idleWorld(t)
			w.cycle(t, claim("first", mig("GPU-a", "1g.10gb", 0, 1)))
			j, err := journal.Open(w.dir)
			require.NoError(t, err)
			records, err := j.Instances()
			require.NoError(t, err)
			require.Len(t, records, 1)
			records[0].State = journal.InstanceReleasing
			require.NoError(t, j.PutInstance(records[0]))
			cut(w)

			_, err = w.engine(t).Prepare(t.Context(), claim("second", mig("GPU-a", "2g.20gb", 0, 2)))
			require.NoError(t, err)
			require.Equal(t, map[string]journal.InstanceState{"2g.20gb@0:2": journal.InstanceClaimed}, w.states(t))
		})
	}
}

func TestAnIdleInstanceThatIsGoneIsForgotten(t *testing.T) {
	w := idleWorld(t)
	w.cycle(t, claim("first", mig("GPU-a", "1g.10gb", 6, 1)))
	w.boards["GPU-a"].Instances[0].ID = 99
	require.NoError(t, w.engine(t).Recover(t.Context()))
	require.Empty(t, w.states(t))
	require.Len(t, w.boards["GPU-a"].Instances, 1, "it is somebody else's")
}
