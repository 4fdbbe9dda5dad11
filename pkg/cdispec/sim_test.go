package cdispec

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// simulated makes a node and a writer on it.
func simulated(t *testing.T, boards string) (*nvmlsim.Node, *Writer) {
	t.Helper()
	spec, err := nvmlsim.Parse(boards + ",state=" + t.TempDir())
	require.NoError(t, err)
	sim, err := nvmlsim.Open(spec)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sim.Close()) })
	w, err := New(Options{
		Lib: sim.Interface(), CDIRoot: t.TempDir(), HostRoot: sim.HostRoot(), DriverRoot: sim.DriverRoot(), HostDriverRoot: "/host/side/driver",
		HookPath: "/opt/nvidia-cdi-hook", ExtraMounts: sim.ExtraMounts("/host/side/driver"),
	})
	require.NoError(t, err)
	return sim, w
}

func simulatedBoard(t *testing.T, sim *nvmlsim.Node, index int) gpu.GPU {
	t.Helper()
	boards, err := sim.Boards()
	require.NoError(t, err)
	return gpu.GPU{UUID: boards[index].UUID, Index: index, Minor: boards[index].Minor, PCIBusID: boards[index].PCIBusID}
}

// A board that has fallen off the bus costs its own claims only. NVML finds no
// board by its UUID any more that comes after it.
func TestBesideALostBoard(t *testing.T) {
	sim, w := simulated(t, "3xH100-SXM5-80GB")
	require.NoError(t, sim.SetMIGMode("2", true))
	i, err := sim.CreateInstance("2", "1g.10gb", &gpu.Placement{Start: 4, Size: 1}, true)
	require.NoError(t, err)
	require.NoError(t, sim.Lose("0"))
	lib := sim.Interface()
	require.Equal(t, nvml.SUCCESS, lib.Init())
	_, ret := lib.DeviceGetHandleByUUID(simulatedBoard(t, sim, 1).UUID)
	require.Equal(t, nvml.ERROR_GPU_IS_LOST, ret, "else this test shows nothing")

	instance := mig(simulatedBoard(t, sim, 2), "small", i.Placement, i.ID)
	instance.Instance = &i
	for _, d := range []Device{whole(simulatedBoard(t, sim, 1), "big"), replica(simulatedBoard(t, sim, 1), "share", 1), instance} {
		_, err = w.Write(t.Context(), claim, "note", []Device{d})
		require.NoError(t, err, d.Name)
		w.Invalidate()
	}
	_, err = w.Write(t.Context(), claim, "note", []Device{whole(simulatedBoard(t, sim, 0), "lost")})
	require.ErrorContains(t, err, nvml.ERROR_GPU_IS_LOST.Error())
}

// The whole way on a simulated node: a board changes its mode, and with it its
// minor; an instance is made; the container gets the nodes that the driver has now.
func TestOnASimulatedNode(t *testing.T) {
	sim, w := simulated(t, "2xH100-SXM5-80GB,1xL40S")
	board := func(index int) gpu.GPU { return simulatedBoard(t, sim, index) }
	first, last := board(0), board(2)
	nodes := func(devices ...Device) (numbers map[string][2]int64, container *oci.Spec) {
		ids, err := w.Write(t.Context(), claim, "note", devices)
		require.NoError(t, err)
		runtime, err := cdi.NewCache(cdi.WithSpecDirs(w.options.CDIRoot), cdi.WithAutoRefresh(false))
		require.NoError(t, err)
		container = &oci.Spec{Process: &oci.Process{}}
		for _, d := range devices {
			_, err = runtime.InjectDevices(container, ids[d.Name])
			require.NoError(t, err)
		}
		numbers = map[string][2]int64{}
		for _, n := range container.Linux.Devices {
			if boardNode.MatchString(n.Path) || strings.HasPrefix(n.Path, "/dev/nvidia-caps/") {
				numbers[n.Path] = [2]int64{n.Major, n.Minor}
			}
		}
		return numbers, container
	}
	majorOf := func(name string) int64 {
		major, ok, err := w.host.major(name)
		require.NoError(t, err)
		require.True(t, ok, name)
		return major
	}
	boards, caps := majorOf("nvidia"), majorOf("nvidia-caps")

	got, container := nodes(whole(first, "r"))
	require.Equal(t, map[string][2]int64{"/dev/nvidia0": {boards, 0}}, got)
	for _, m := range container.Mounts {
		require.True(t, strings.HasPrefix(m.Source, "/host/side/driver/"), m.Source)
		_, err := os.Stat(filepath.Join(sim.DriverRoot(), strings.TrimPrefix(m.Source, "/host/side/driver/")))
		require.NoError(t, err, "what is mounted is there")
	}
	require.NotContains(t, container.Process.Env, "", "no empty variables")

	require.NoError(t, sim.SetMIGMode(first.UUID, true))
	w.Invalidate()
	first = board(0)
	require.Equal(t, 3, first.Minor)
	i, err := sim.CreateInstance(first.UUID, "1g.10gb", &gpu.Placement{Start: 6, Size: 1}, true)
	require.NoError(t, err)
	d := mig(first, "r", i.Placement, i.ID)
	d.Instance = &i

	got, container = nodes(d, whole(last, "other"))
	want := map[string][2]int64{"/dev/nvidia3": {boards, 3}, "/dev/nvidia2": {boards, 2}}
	capabilities, err := filepath.Glob(filepath.Join(sim.HostRoot(), "dev/nvidia-caps/nvidia-cap*"))
	require.NoError(t, err)
	require.Len(t, capabilities, 4, "the instance's two, config and monitor")
	for path := range got {
		if strings.HasPrefix(path, "/dev/nvidia-caps/") {
			require.FileExists(t, filepath.Join(sim.HostRoot(), path))
			want[path] = [2]int64{caps, got[path][1]}
		}
	}
	require.Len(t, want, 4)
	require.Equal(t, want, got)
	require.Contains(t, container.Process.Env, "KERF_R_"+variablePart(d.Name)+"_UUID="+i.Compute[0].UUID)
	require.Contains(t, container.Process.Env, "KERF_OTHER_"+variablePart(whole(last, "other").Name)+"_UUID="+last.UUID)
}
