package nvml

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

func TestToggleAtOnce(t *testing.T) {
	sim := simulate(t, "2xH100-SXM5-80GB")
	a := open(t, sim.Interface())
	before, err := a.Node(t.Context())
	require.NoError(t, err)
	uuid := before.GPUs[0].UUID

	require.NoError(t, a.SetMIGMode(t.Context(), uuid, true))
	on, err := a.GPU(t.Context(), uuid)
	require.NoError(t, err)
	require.Equal(t, gpu.MIGMode{Capable: true, Current: true, Pending: true}, on.MIG)
	require.NotEqual(t, before.GPUs[0].Minor, on.Minor, "the simulated driver is expected to give another minor")
	require.NoError(t, a.SetMIGMode(t.Context(), uuid, true), "it is on already")
	same, err := a.GPU(t.Context(), uuid)
	require.NoError(t, err)
	require.Equal(t, on, same)

	require.NoError(t, a.SetMIGMode(t.Context(), uuid, false))
	off, err := a.GPU(t.Context(), uuid)
	require.NoError(t, err)
	require.Equal(t, gpu.MIGMode{Capable: true}, off.MIG)
	other, err := a.GPU(t.Context(), before.GPUs[1].UUID)
	require.NoError(t, err)
	require.Equal(t, before.GPUs[1], other)
}

func TestToggleNeedsReset(t *testing.T) {
	sim := simulate(t, "1xA100-SXM4-40GB")
	a := open(t, sim.Interface())
	uuid := uuids(t, sim)[0]
	err := a.SetMIGMode(t.Context(), uuid, true)
	require.ErrorIs(t, err, gpu.ErrResetRequired)
	require.ErrorContains(t, err, uuid)
	g, err := a.GPU(t.Context(), uuid)
	require.NoError(t, err)
	require.Equal(t, gpu.MIGMode{Capable: true, Pending: true}, g.MIG, "the request waits for the reset")
	require.ErrorIs(t, a.SetMIGMode(t.Context(), uuid, true), gpu.ErrResetRequired, "and is no success the second time")

	require.NoError(t, sim.Reset(uuid))
	g, err = a.GPU(t.Context(), uuid)
	require.NoError(t, err, "the handle went stale with the reset")
	require.True(t, g.MIG.Current)
	require.NoError(t, a.SetMIGMode(t.Context(), uuid, true))
}

func TestToggleInUse(t *testing.T) {
	sim := simulate(t, "1xH200-SXM-141GB")
	host := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(host, "proc/77"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(host, "proc/77/comm"), []byte("nv-hostengine\n"), 0o644))
	a := open(t, sim.Interface(), WithHostRoot(host))
	uuid := uuids(t, sim)[0]
	require.NoError(t, sim.AddClient(uuid, nvmlsim.Client{PID: 77, Command: "nv-hostengine", Process: true}))

	require.ErrorIs(t, a.SetMIGMode(t.Context(), uuid, true), gpu.ErrInUse)
	g, err := a.GPU(t.Context(), uuid)
	require.NoError(t, err)
	require.Equal(t, gpu.MIGMode{Capable: true}, g.MIG, "nothing is left pending for some later reset")
	processes, err := a.Processes(t.Context(), uuid)
	require.NoError(t, err)
	require.Equal(t, []gpu.Process{{PID: 77, Command: "nv-hostengine", GPUInstance: -1}}, processes)

	pod := "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-2.scope\n"
	require.NoError(t, os.WriteFile(filepath.Join(host, "proc/77/cgroup"), []byte(pod), 0o644))
	processes, err = a.Processes(t.Context(), uuid)
	require.NoError(t, err)
	require.True(t, processes[0].InPod)

	require.NoError(t, sim.RemoveClient(uuid, 77))
	require.NoError(t, a.SetMIGMode(t.Context(), uuid, true))
}

func TestToggleNotSupported(t *testing.T) {
	sim := simulate(t, "1xL40S")
	a := open(t, sim.Interface())
	require.ErrorIs(t, a.SetMIGMode(t.Context(), uuids(t, sim)[0], true), gpu.ErrNotSupported)
}

// Somebody else changes the mode or resets the board beside us.
func TestToggleByOthers(t *testing.T) {
	sim := simulate(t, "2xH100-PCIe-80GB")
	a := open(t, sim.Interface())
	node, err := a.Node(t.Context())
	require.NoError(t, err)
	uuid := node.GPUs[0].UUID
	require.NoError(t, a.SetMIGMode(t.Context(), uuid, true))
	i, err := a.CreateGPUInstance(t.Context(), uuid, "1g.10gb", at(0, 1))
	require.NoError(t, err)
	require.NoError(t, sim.Reset(uuid))
	g, err := a.GPU(t.Context(), uuid)
	require.NoError(t, err)
	require.False(t, g.MIG.Current)
	require.Empty(t, g.Instances)
	require.ErrorIs(t, a.DestroyGPUInstance(t.Context(), i), gpu.ErrNotFound)
}

// fabric is a library that tells a fabric state of our choice.
type fabric struct {
	nvml.Interface
	tell func() (nvml.GpuFabricInfo, nvml.Return)
}

type fabricDevice struct {
	nvml.Device
	fabric fabric
}

func (d fabricDevice) GetGpuFabricInfo() (nvml.GpuFabricInfo, nvml.Return) { return d.fabric.tell() }

func (f fabric) DeviceGetHandleByIndex(n int) (nvml.Device, nvml.Return) {
	h, ret := f.Interface.DeviceGetHandleByIndex(n)
	return fabricDevice{h, f}, ret
}

func (f fabric) DeviceGetHandleByPciBusId(id string) (nvml.Device, nvml.Return) {
	h, ret := f.Interface.DeviceGetHandleByPciBusId(id)
	return fabricDevice{h, f}, ret
}

func TestFabric(t *testing.T) {
	sim := simulate(t, "1xH100-SXM5-80GB,mig=on")
	uuid := uuids(t, sim)[0]
	asked := 0
	var answers []nvml.GpuFabricInfo
	ret := nvml.SUCCESS
	a := open(t, fabric{sim.Interface(), func() (nvml.GpuFabricInfo, nvml.Return) {
		asked++
		return answers[min(asked, len(answers))-1], ret
	}})
	off := func(ctx context.Context, r nvml.Return, a1 ...nvml.GpuFabricInfo) error {
		require.NoError(t, a.SetMIGMode(t.Context(), uuid, true))
		asked, answers, ret = 0, a1, r
		return a.SetMIGMode(ctx, uuid, false)
	}
	progress := nvml.GpuFabricInfo{State: nvml.GPU_FABRIC_STATE_IN_PROGRESS}
	completed := nvml.GpuFabricInfo{State: nvml.GPU_FABRIC_STATE_COMPLETED}
	broken := nvml.GpuFabricInfo{State: nvml.GPU_FABRIC_STATE_COMPLETED, Status: uint32(nvml.ERROR_INVALID_STATE)}

	require.NoError(t, off(t.Context(), nvml.SUCCESS, progress, completed))
	require.Equal(t, 2, asked)
	require.NoError(t, off(t.Context(), nvml.ERROR_NOT_SUPPORTED, nvml.GpuFabricInfo{}))
	require.NoError(t, off(t.Context(), nvml.SUCCESS, nvml.GpuFabricInfo{State: nvml.GPU_FABRIC_STATE_NOT_SUPPORTED}))
	require.ErrorIs(t, off(t.Context(), nvml.SUCCESS, broken), nvml.ERROR_INVALID_STATE)

	// It never comes: the wait ends with the context, and says that MIG is off.
	ctx, cancel := context.WithCancel(t.Context())
	answers = nil
	require.NoError(t, a.SetMIGMode(t.Context(), uuid, true))
	asked, answers, ret = 0, []nvml.GpuFabricInfo{progress}, nvml.SUCCESS
	a.observe = func(op, _ string, _ time.Duration, _ error) {
		if op == opFabricState && asked == 2 {
			cancel()
		}
	}
	err := a.SetMIGMode(ctx, uuid, false)
	require.ErrorIs(t, err, gpu.ErrDeadline)
	g, err := a.GPU(t.Context(), uuid)
	require.NoError(t, err)
	require.False(t, g.MIG.Current)
}
