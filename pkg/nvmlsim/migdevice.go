package nvmlsim

import (
	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// migDevice is a handle of a MIG device. It is good whenever there is a compute
// instance with these ids, be it another than at first (nvml.h: handles may be reused).
type migDevice struct {
	*mock.Device
	parent *device
	gi, ci int
}

// found is what a MIG device is made of.
type found struct {
	board   *board
	profile gpu.Profile
	compute compute
}

func (m *migDevice) look(op string) (found, nvml.Return) {
	st, ret := m.parent.session.enter(op, m.parent.index)
	if ret != nvml.SUCCESS {
		return found{}, ret
	}
	g := &st.GPUs[m.parent.index]
	if g.Lost {
		return found{}, nvml.ERROR_GPU_IS_LOST
	}
	i := g.instance(m.gi)
	if i == nil || i.compute(m.ci) == nil {
		return found{}, nvml.ERROR_INVALID_ARGUMENT
	}
	p, _ := profileByID(g.table, i.Profile)
	return found{board: g, profile: p, compute: *i.compute(m.ci)}, nvml.SUCCESS
}

func readMIG[T any](m *migDevice, op string, f func(found) T) (T, nvml.Return) {
	at, ret := m.look(op)
	if ret != nvml.SUCCESS {
		var zero T
		return zero, ret
	}
	return f(at), nvml.SUCCESS
}

func (m *migDevice) IsMigDeviceHandle() (bool, nvml.Return) {
	return readMIG(m, "IsMigDeviceHandle", func(found) bool { return true })
}

func (m *migDevice) GetDeviceHandleFromMigDeviceHandle() (nvml.Device, nvml.Return) {
	return readMIG(m, "GetDeviceHandleFromMigDeviceHandle", func(at found) nvml.Device {
		return m.parent.session.device(m.parent.index, at.board.Generation)
	})
}

func (m *migDevice) GetUUID() (string, nvml.Return) {
	return readMIG(m, "GetUUID", func(at found) string { return at.board.migUUID(m.gi, m.ci) })
}

func (m *migDevice) GetIndex() (int, nvml.Return) {
	return readMIG(m, "GetIndex", func(at found) int { return at.compute.Index })
}

func (m *migDevice) GetGpuInstanceId() (int, nvml.Return) { //nolint:revive // NVML's name
	return readMIG(m, "GetGpuInstanceId", func(found) int { return m.gi })
}

func (m *migDevice) GetComputeInstanceId() (int, nvml.Return) { //nolint:revive // NVML's name
	return readMIG(m, "GetComputeInstanceId", func(found) int { return m.ci })
}

func (m *migDevice) GetAttributes() (nvml.DeviceAttributes, nvml.Return) {
	return readMIG(m, "GetAttributes", func(at found) nvml.DeviceAttributes {
		return attributes(at.profile, at.profile.Multiprocessors*at.compute.Size/at.profile.ComputeSlices, at.compute.Size)
	})
}

func (m *migDevice) mine(c Client) bool {
	return c.GI != nil && *c.GI == m.gi && c.CI != nil && *c.CI == m.ci
}

func (m *migDevice) GetMemoryInfo() (nvml.Memory, nvml.Return) {
	return readMIG(m, "GetMemoryInfo", func(at found) nvml.Memory {
		return memory(liveMemoryMiB(at.profile)*mib, len(at.board.processes(m.mine)), at.board.instance(m.gi).Load.MemoryMiB)
	})
}

func (m *migDevice) GetComputeRunningProcesses() ([]nvml.ProcessInfo, nvml.Return) {
	return readMIG(m, "GetComputeRunningProcesses", func(at found) []nvml.ProcessInfo { return at.board.processes(m.mine) })
}

func (m *migDevice) GetGraphicsRunningProcesses() ([]nvml.ProcessInfo, nvml.Return) {
	return readMIG(m, "GetGraphicsRunningProcesses", func(found) []nvml.ProcessInfo { return nil })
}

// GetName is the board's name and the shape, as nvidia-smi -L shows them apart.
func (m *migDevice) GetName() (string, nvml.Return) {
	return readMIG(m, "GetName", func(at found) string { return at.board.table.ProductName + " MIG " + at.name() })
}

func (m *migDevice) GetCudaComputeCapability() (int, int, nvml.Return) {
	v, ret := readMIG(m, "GetCudaComputeCapability", func(at found) gpu.Version { return at.board.table.ComputeCapability })
	return v.Major, v.Minor, ret
}
