package nvml

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// What the adapter reads of a board is what the table says of it: names,
// memory, profiles and placements, all through NVML.
func TestEveryBoard(t *testing.T) {
	for _, board := range gpu.Boards() {
		t.Run(board.Name, func(t *testing.T) {
			sim := simulate(t, "2x"+board.Name)
			a := open(t, sim.Interface())
			node, err := a.Node(t.Context())
			require.NoError(t, err)
			require.Equal(t, "580.95.05", node.DriverVersion)
			require.Equal(t, gpu.Version{Major: 13, Minor: 0}, node.CUDADriverVersion)
			require.Len(t, node.GPUs, 2)
			require.NotEqual(t, node.GPUs[0].UUID, node.GPUs[1].UUID)

			outside, err := sim.Boards()
			require.NoError(t, err)
			for i, g := range node.GPUs {
				require.Equal(t, outside[i].UUID, g.UUID)
				require.Equal(t, outside[i].PCIBusID, g.PCIBusID)
				require.Equal(t, outside[i].Index, g.Index)
				require.Equal(t, outside[i].Minor, g.Minor)
				require.Equal(t, board.ProductName, g.ProductName)
				require.Equal(t, board.Brand, g.Brand)
				require.Equal(t, board.Architecture, g.Architecture)
				require.Equal(t, board.ComputeCapability, g.ComputeCapability)
				require.Equal(t, board.MemoryMiB<<20, g.MemoryBytes)
				require.Equal(t, board.ToggleNeedsReset, g.ToggleNeedsReset)
				require.Equal(t, gpu.MIGMode{Capable: len(board.Profiles) > 0}, g.MIG)
				require.ElementsMatch(t, board.Profiles, g.Profiles)
				require.Empty(t, g.Instances)

				alone, err := a.GPU(t.Context(), g.UUID)
				require.NoError(t, err)
				require.Equal(t, g, alone)
			}
		})
	}
}

func TestOrderOfMixedNodes(t *testing.T) {
	a := open(t, simulate(t, "2xH200-SXM-141GB,1xL40S").Interface())
	node, err := a.Node(t.Context())
	require.NoError(t, err)
	require.True(t, slices.IsSortedFunc(node.GPUs, func(x, y gpu.GPU) int { return strings.Compare(x.PCIBusID, y.PCIBusID) }))
	require.Len(t, node.GPUs, 3)
}

func TestUnknownGPU(t *testing.T) {
	a := open(t, simulate(t, "1xL40S").Interface())
	_, err := a.GPU(t.Context(), "GPU-of-another-node")
	require.ErrorIs(t, err, gpu.ErrNotFound)
	require.ErrorContains(t, err, "GPU-of-another-node")
	require.ErrorIs(t, a.SetMIGMode(t.Context(), "GPU-of-another-node", true), gpu.ErrNotFound)
}

// A board falls off the bus: it is reported and still there as it was last seen.
func TestLostBoard(t *testing.T) {
	sim := simulate(t, "3xA10G")
	a := open(t, sim.Interface())
	before, err := a.Node(t.Context())
	require.NoError(t, err)
	lost := before.GPUs[1].UUID
	require.NoError(t, sim.Lose(lost))

	node, err := a.Node(t.Context())
	require.Equal(t, before, node)
	var bad gpu.ReadErrors
	require.ErrorAs(t, err, &bad)
	require.Len(t, bad, 1)
	require.Equal(t, lost, bad[0].UUID)
	require.ErrorIs(t, bad[0], gpu.ErrLost)
	require.ErrorIs(t, err, gpu.ErrLost)
	_, err = a.GPU(t.Context(), lost)
	require.ErrorIs(t, err, gpu.ErrLost)

	// A process that starts now never saw it: the others are there all the same.
	node, err = open(t, sim.Interface()).Node(t.Context())
	require.ErrorIs(t, err, gpu.ErrLost)
	require.Len(t, node.GPUs, 2)

	require.NoError(t, sim.Restore(lost))
	node, err = a.Node(t.Context())
	require.NoError(t, err)
	require.Equal(t, before, node)
}

func TestTopology(t *testing.T) {
	sim := simulate(t, "2xL40S")
	boards, err := sim.Boards()
	require.NoError(t, err)
	host := t.TempDir()
	devices := filepath.Join(host, "sys/bus/pci/devices")
	place := filepath.Join(host, "sys/devices/pci0000:17/0000:17:01.0", boards[0].PCIBusID)
	require.NoError(t, os.MkdirAll(place, 0o755))
	require.NoError(t, os.MkdirAll(devices, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(place, "numa_node"), []byte("1\n"), 0o644))
	require.NoError(t, os.Symlink("../../../devices/pci0000:17/0000:17:01.0/"+boards[0].PCIBusID, filepath.Join(devices, boards[0].PCIBusID)))

	node, err := open(t, sim.Interface(), WithHostRoot(host)).Node(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, node.GPUs[0].NUMANode)
	require.Equal(t, "pci0000:17", node.GPUs[0].PCIeRoot)
	require.Equal(t, -1, node.GPUs[1].NUMANode)
	require.Empty(t, node.GPUs[1].PCIeRoot)
}

func TestObserver(t *testing.T) {
	sim := simulate(t, "1xH100-PCIe-80GB")
	uuid := uuids(t, sim)[0]
	var mu sync.Mutex
	seen := map[string]error{}
	a := open(t, sim.Interface(), WithObserver(func(op, of string, took time.Duration, err error) {
		mu.Lock()
		defer mu.Unlock()
		if of != uuid || took < 0 {
			t.Errorf("%s of %q took %s", op, of, took)
		}
		seen[op] = err
	}))
	_, err := a.GPU(t.Context(), uuid)
	require.NoError(t, err)
	_, err = a.CreateGPUInstance(t.Context(), uuid, "1g.10gb", gpu.Placement{Start: 0, Size: 1})
	require.ErrorIs(t, err, gpu.ErrNotSupported)
	mu.Lock()
	defer mu.Unlock()
	require.NoError(t, seen[opRead])
	require.ErrorIs(t, seen[opCreateGPU], gpu.ErrNotSupported)
}
