package nvmlsim

import (
	"path/filepath"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"
	"k8s.io/klog/v2"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// newNode makes a node of the boards given in a directory of its own.
func newNode(t testing.TB, boards string) *Node {
	t.Helper()
	return openNode(t, boards+",state="+t.TempDir())
}

func openNode(t testing.TB, spec string) *Node {
	t.Helper()
	s, err := Parse(spec)
	require.NoError(t, err)
	n, err := Open(s, WithLogger(klog.Logger{}), withProc("testdata/proc-devices"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close()) })
	return n
}

// again opens a node a second time, as another process would.
func again(t testing.TB, n *Node) *Node {
	t.Helper()
	other, err := OpenExisting(n.kernel.dir, WithLogger(klog.Logger{}), withProc("testdata/proc-devices"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Close()) })
	return other
}

// handle initializes NVML and gets a board.
func handle(t testing.TB, n *Node, index int) nvml.Device {
	t.Helper()
	lib := n.Interface()
	require.Equal(t, nvml.SUCCESS, lib.Init())
	d, ret := lib.DeviceGetHandleByIndex(index)
	require.Equal(t, nvml.SUCCESS, ret)
	return d
}

func profile(t testing.TB, d nvml.Device, enum int) *nvml.GpuInstanceProfileInfo {
	t.Helper()
	info, ret := d.GetGpuInstanceProfileInfo(enum)
	require.Equal(t, nvml.SUCCESS, ret)
	return &info
}

// create makes a GPU instance with a compute instance over all of it.
func create(t testing.TB, d nvml.Device, enum int, start uint32) (nvml.GpuInstance, nvml.ComputeInstance) {
	t.Helper()
	info := profile(t, d, enum)
	places, ret := d.GetGpuInstancePossiblePlacements(info)
	require.Equal(t, nvml.SUCCESS, ret)
	gi, ret := d.CreateGpuInstanceWithPlacement(info, &nvml.GpuInstancePlacement{Start: start, Size: places[0].Size})
	require.Equal(t, nvml.SUCCESS, ret)
	whole := map[int]int{
		nvml.GPU_INSTANCE_PROFILE_2_SLICE: nvml.COMPUTE_INSTANCE_PROFILE_2_SLICE, nvml.GPU_INSTANCE_PROFILE_3_SLICE: nvml.COMPUTE_INSTANCE_PROFILE_3_SLICE,
		nvml.GPU_INSTANCE_PROFILE_4_SLICE: nvml.COMPUTE_INSTANCE_PROFILE_4_SLICE, nvml.GPU_INSTANCE_PROFILE_7_SLICE: nvml.COMPUTE_INSTANCE_PROFILE_7_SLICE,
	}
	shape, ret := gi.GetComputeInstanceProfileInfo(whole[enum], nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
	require.Equal(t, nvml.SUCCESS, ret)
	ci, ret := gi.CreateComputeInstance(&shape)
	require.Equal(t, nvml.SUCCESS, ret)
	return gi, ci
}

func uuidOf(t testing.TB, d nvml.Device) string {
	t.Helper()
	uuid, ret := d.GetUUID()
	require.Equal(t, nvml.SUCCESS, ret)
	return uuid
}

func stateOf(t testing.TB, n *Node) *state {
	t.Helper()
	s, err := n.kernel.view()
	require.NoError(t, err)
	return s
}

func ptr[T any](v T) *T { return &v }

// migBoards are the models with MIG.
func migBoards() []gpu.Board {
	var all []gpu.Board
	for _, b := range gpu.Boards() {
		if len(b.Profiles) > 0 {
			all = append(all, b)
		}
	}
	return all
}

// onDisk reads a file of the tree.
func onDisk(n *Node, path string) string { return filepath.Join(n.HostRoot(), path) }
