package nvml

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// migNode is a node of one H100 in MIG mode.
func migNode(t testing.TB) (*nvmlsim.Node, *Adapter, string) {
	t.Helper()
	sim := simulate(t, "1xH100-SXM5-80GB,mig=on")
	return sim, open(t, sim.Interface()), uuids(t, sim)[0]
}

func at(start, size int) gpu.Placement { return gpu.Placement{Start: start, Size: size} }

// instances are those that the outside world sees.
func instances(t testing.TB, sim *nvmlsim.Node) []gpu.Instance {
	t.Helper()
	boards, err := sim.Boards()
	require.NoError(t, err)
	return boards[0].Instances
}

func TestLifeOfAnInstance(t *testing.T) {
	sim, a, uuid := migNode(t)
	// Every profile at every placement, one after the other.
	board, err := gpu.BoardByName("H100-SXM5-80GB")
	require.NoError(t, err)
	for _, p := range gpu.AllPlaced(board.Profiles) {
		made, err := a.CreateGPUInstance(t.Context(), uuid, p.Profile.Name, p.Placement)
		require.NoError(t, err)
		require.Equal(t, gpu.Instance{GPU: uuid, Profile: p.Profile.Name, Placement: p.Placement, ID: made.ID}, made)

		// One without a compute instance is no MIG device, and is seen all the same.
		g, err := a.GPU(t.Context(), uuid)
		require.NoError(t, err)
		require.Equal(t, []gpu.Instance{made}, g.Instances)
		require.Equal(t, instances(t, sim), g.Instances)

		whole, err := a.CreateComputeInstance(t.Context(), made)
		require.NoError(t, err)
		require.True(t, whole.Usable())
		require.Equal(t, instances(t, sim), []gpu.Instance{whole})
		g, err = a.GPU(t.Context(), uuid)
		require.NoError(t, err)
		require.Equal(t, []gpu.Instance{whole}, g.Instances)

		left, err := a.DestroyComputeInstance(t.Context(), whole)
		require.NoError(t, err)
		require.True(t, left.Same(made))
		require.NoError(t, a.DestroyGPUInstance(t.Context(), left))
		require.Empty(t, instances(t, sim))
	}
}

func TestRefusedCreations(t *testing.T) {
	sim, a, uuid := migNode(t)
	taken, err := sim.CreateInstance(uuid, "3g.40gb", &gpu.Placement{Start: 0, Size: 4}, true)
	require.NoError(t, err)
	for name, test := range map[string]struct {
		profile string
		at      gpu.Placement
		want    error
	}{
		"overlap":              {"1g.10gb", at(2, 1), gpu.ErrInsufficientResources},
		"the same again":       {"3g.40gb", at(0, 4), gpu.ErrInsufficientResources},
		"no such profile":      {"5g.50gb", at(4, 4), gpu.ErrNotFound},
		"no such placement":    {"2g.20gb", at(5, 2), gpu.ErrNotFound},
		"another board's name": {"1g.5gb", at(4, 1), gpu.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := a.CreateGPUInstance(t.Context(), uuid, test.profile, test.at)
			require.ErrorIs(t, err, test.want)
			for _, part := range []string{uuid, test.profile, test.at.String()} {
				require.ErrorContains(t, err, part)
			}
			require.Equal(t, []gpu.Instance{taken}, instances(t, sim))
		})
	}
	_, err = a.CreateComputeInstance(t.Context(), taken)
	require.ErrorIs(t, err, gpu.ErrInsufficientResources)
	require.Equal(t, []gpu.Instance{taken}, instances(t, sim))
}

// The driver gives ids and UUIDs again. What bears them now is not destroyed.
func TestReusedIdentity(t *testing.T) {
	sim, a, uuid := migNode(t)
	recreate := func(profile string, place gpu.Placement) gpu.Instance {
		i, err := sim.CreateInstance(uuid, profile, &place, true)
		require.NoError(t, err)
		return i
	}
	old := recreate("3g.40gb", at(0, 4))
	for name, replace := range map[string]func() gpu.Instance{
		"another placement": func() gpu.Instance { return recreate("3g.40gb", at(4, 4)) },
		"another profile":   func() gpu.Instance { return recreate("4g.40gb", at(0, 4)) },
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, sim.DestroyInstance(uuid, old.ID))
			now := replace()
			require.Equal(t, old.ID, now.ID, "the simulated driver is expected to reuse the id")
			require.Equal(t, old.Compute, now.Compute, "and the UUID")

			_, err := a.DestroyComputeInstance(t.Context(), old)
			require.ErrorIs(t, err, gpu.ErrNotFound)
			require.ErrorIs(t, a.DestroyGPUInstance(t.Context(), old), gpu.ErrNotFound)
			bare := old
			bare.Compute = nil
			require.ErrorIs(t, a.DestroyGPUInstance(t.Context(), bare), gpu.ErrNotFound)
			_, err = a.CreateComputeInstance(t.Context(), bare)
			require.ErrorIs(t, err, gpu.ErrNotFound)
			require.Equal(t, []gpu.Instance{now}, instances(t, sim))
		})
	}

	require.NoError(t, sim.DestroyInstance(uuid, old.ID))
	require.ErrorIs(t, a.DestroyGPUInstance(t.Context(), old), gpu.ErrNotFound, "gone altogether")
	require.NoError(t, a.SetMIGMode(t.Context(), uuid, false))
	require.ErrorIs(t, a.DestroyGPUInstance(t.Context(), old), gpu.ErrNotFound, "and with MIG off")
}

func TestInUse(t *testing.T) {
	sim, a, uuid := migNode(t)
	i, err := sim.CreateInstance(uuid, "2g.20gb", &gpu.Placement{Start: 2, Size: 2}, true)
	require.NoError(t, err)
	require.NoError(t, sim.AddClient(uuid, nvmlsim.Client{PID: 4711, Command: "python", GI: &i.ID, CI: &i.Compute[0].ID, Process: true}))

	require.ErrorIs(t, a.DestroyGPUInstance(t.Context(), i), gpu.ErrInUse, "it has a compute instance")
	left, err := a.DestroyComputeInstance(t.Context(), i)
	require.ErrorIs(t, err, gpu.ErrInUse)
	require.True(t, left.Same(i), "what is left must be told")
	require.Equal(t, []gpu.Instance{i}, instances(t, sim))

	processes, err := a.Processes(t.Context(), uuid)
	require.NoError(t, err)
	require.Equal(t, []gpu.Process{{PID: 4711, GPUInstance: i.ID}}, processes)

	require.NoError(t, sim.RemoveClient(uuid, 4711))
	processes, err = a.Processes(t.Context(), uuid)
	require.NoError(t, err)
	require.Empty(t, processes)
	left, err = a.DestroyComputeInstance(t.Context(), i)
	require.NoError(t, err)

	// A leaked handle: the compute instance is gone and the GPU instance is stuck.
	require.NoError(t, sim.AddClient(uuid, nvmlsim.Client{PID: 4712, GI: &i.ID}))
	require.ErrorIs(t, a.DestroyGPUInstance(t.Context(), left), gpu.ErrInUse)
	require.NoError(t, sim.RemoveClient(uuid, 4712))
	require.NoError(t, a.DestroyGPUInstance(t.Context(), left))
}

// Many instances at once, whose MIG devices have holes in their indices.
func TestManyInstances(t *testing.T) {
	sim, a, uuid := migNode(t)
	for start := range 7 {
		i, err := a.CreateGPUInstance(t.Context(), uuid, "1g.10gb", at(start, 1))
		require.NoError(t, err)
		if start != 3 {
			_, err = a.CreateComputeInstance(t.Context(), i)
			require.NoError(t, err)
		}
	}
	all := instances(t, sim)
	require.NoError(t, sim.DestroyInstance(uuid, all[0].ID))
	// A process that starts now learns all of it from the hardware.
	g, err := open(t, sim.Interface()).GPU(t.Context(), uuid)
	require.NoError(t, err)
	require.Equal(t, all[1:], g.Instances)
	g, err = a.GPU(t.Context(), uuid)
	require.NoError(t, err)
	require.Equal(t, all[1:], g.Instances)
}

func BenchmarkNode(b *testing.B) {
	sim := simulate(b, "8xH100-SXM5-80GB,mig=on")
	for _, uuid := range uuids(b, sim) {
		for start := range 7 {
			_, err := sim.CreateInstance(uuid, "1g.10gb", &gpu.Placement{Start: start, Size: 1}, true)
			require.NoError(b, err)
		}
	}
	a := open(b, sim.Interface())
	for b.Loop() {
		if _, err := a.Node(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
