package nvmlsim

import (
	"fmt"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// device is a handle of a board.
type device struct {
	*mock.Device
	session *session
	index   int
	// generation of the board that the handle is good for.
	generation int
}

// look begins every call on the handle and gives the board as it is now.
func (d *device) look(op string) (*state, *board, nvml.Return) {
	st, ret := d.session.enter(op, d.index)
	if ret != nvml.SUCCESS {
		return nil, nil, ret
	}
	g, ret := d.board(st)
	return st, g, ret
}

// board finds the handle's board in a state.
func (d *device) board(st *state) (*board, nvml.Return) {
	g := &st.GPUs[d.index]
	switch {
	case g.Lost:
		return nil, nvml.ERROR_GPU_IS_LOST
	case g.Generation != d.generation:
		// [inferred]: the board was unbound or reset since, and must be looked up again.
		return nil, nvml.ERROR_INVALID_ARGUMENT
	}
	return g, nvml.SUCCESS
}

// change is look for a call that changes the board.
func (d *device) change(op string, f func(*state, *board) nvml.Return) nvml.Return {
	if _, _, ret := d.look(op); ret != nvml.SUCCESS {
		return ret
	}
	return d.update(op, f)
}

// update is the second part of a call that changes the board.
func (d *device) update(op string, f func(*state, *board) nvml.Return) nvml.Return {
	ret, err := d.session.kernel.update(func(st *state) nvml.Return {
		g, ret := d.board(st)
		if ret != nvml.SUCCESS {
			return ret
		}
		return f(st, g)
	})
	if err != nil {
		return d.session.broken(op, d.index, err)
	}
	return d.session.done(op, d.index, ret)
}

// read is look for a call that has one result.
func read[T any](d *device, op string, f func(*board) T) (T, nvml.Return) {
	_, g, ret := d.look(op)
	if ret != nvml.SUCCESS {
		var zero T
		return zero, ret
	}
	return f(g), nvml.SUCCESS
}

func (d *device) GetMigMode() (int, int, nvml.Return) {
	_, g, ret := d.look("GetMigMode")
	if ret != nvml.SUCCESS {
		return 0, 0, ret
	}
	if len(g.table.Profiles) == 0 {
		return 0, 0, nvml.ERROR_NOT_SUPPORTED
	}
	return mode(g.MIG), mode(g.Pending), nvml.SUCCESS
}

func mode(on bool) int {
	if on {
		return nvml.DEVICE_MIG_ENABLE
	}
	return nvml.DEVICE_MIG_DISABLE
}

func (d *device) SetMigMode(mode int) (nvml.Return, nvml.Return) {
	if mode != nvml.DEVICE_MIG_ENABLE && mode != nvml.DEVICE_MIG_DISABLE {
		return nvml.ERROR_INVALID_ARGUMENT, nvml.ERROR_INVALID_ARGUMENT
	}
	_, fault := d.session.begin("SetMigMode", d.index)
	if fault.ret != nvml.SUCCESS {
		return fault.ret, fault.ret
	}
	activation := nvml.ERROR_UNKNOWN
	ret := d.update("SetMigMode", func(st *state, _ *board) nvml.Return {
		held, err := d.session.heldByOthers(d.index)
		if err != nil {
			return d.session.broken("SetMigMode", d.index, err)
		}
		var ret nvml.Return
		ret, activation = st.setMIGMode(d.index, mode == nvml.DEVICE_MIG_ENABLE, held, fault.activation)
		return ret
	})
	if ret != nvml.SUCCESS {
		return ret, ret
	}
	return nvml.SUCCESS, activation
}

func (d *device) GetGpuInstanceProfileInfo(enum int) (nvml.GpuInstanceProfileInfo, nvml.Return) {
	_, g, ret := d.look("GetGpuInstanceProfileInfo")
	if ret != nvml.SUCCESS {
		return nvml.GpuInstanceProfileInfo{}, ret
	}
	if enum < 0 || enum >= nvml.GPU_INSTANCE_PROFILE_COUNT {
		return nvml.GpuInstanceProfileInfo{}, nvml.ERROR_INVALID_ARGUMENT
	}
	p, ok := profileByEnum(g.table, enum)
	if !ok {
		return nvml.GpuInstanceProfileInfo{}, nvml.ERROR_NOT_SUPPORTED
	}
	return profileInfo(p), nvml.SUCCESS
}

// profile finds a profile that a caller names by its id: NVML looks at nothing else of the struct.
func (d *device) profile(op string, info *nvml.GpuInstanceProfileInfo) (*board, gpu.Profile, nvml.Return) {
	_, g, ret := d.look(op)
	if ret != nvml.SUCCESS {
		return nil, gpu.Profile{}, ret
	}
	if info == nil {
		return nil, gpu.Profile{}, nvml.ERROR_INVALID_ARGUMENT
	}
	p, ok := profileByID(g.table, int(info.Id))
	if !ok {
		return nil, gpu.Profile{}, nvml.ERROR_NOT_SUPPORTED
	}
	return g, p, nvml.SUCCESS
}

// GetGpuInstancePossiblePlacements answers whether MIG is on or off (nvml.h).
func (d *device) GetGpuInstancePossiblePlacements(info *nvml.GpuInstanceProfileInfo) ([]nvml.GpuInstancePlacement, nvml.Return) {
	_, p, ret := d.profile("GetGpuInstancePossiblePlacements", info)
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	var all []nvml.GpuInstancePlacement
	for _, at := range p.Placements {
		all = append(all, nvml.GpuInstancePlacement{Start: uint32(at.Start), Size: uint32(at.Size)})
	}
	return all, nvml.SUCCESS
}

func (d *device) GetGpuInstanceRemainingCapacity(info *nvml.GpuInstanceProfileInfo) (int, nvml.Return) {
	g, p, ret := d.profile("GetGpuInstanceRemainingCapacity", info)
	if ret != nvml.SUCCESS {
		return 0, ret
	}
	if !g.MIG {
		return 0, nvml.ERROR_NOT_SUPPORTED
	}
	// As many as could be created, one after the other.
	trial := state{GPUs: []board{*g}}
	left := &trial.clone().GPUs[0]
	for n := 0; ; n++ {
		if _, ret := left.createInstance(p.ID, nil); ret != nvml.SUCCESS {
			return n, nvml.SUCCESS
		}
	}
}

func (d *device) CreateGpuInstance(info *nvml.GpuInstanceProfileInfo) (nvml.GpuInstance, nvml.Return) {
	return d.create("CreateGpuInstance", info, nil)
}

func (d *device) CreateGpuInstanceWithPlacement(info *nvml.GpuInstanceProfileInfo, at *nvml.GpuInstancePlacement) (nvml.GpuInstance, nvml.Return) {
	if at == nil {
		return nil, nvml.ERROR_INVALID_ARGUMENT
	}
	return d.create("CreateGpuInstanceWithPlacement", info, &gpu.Placement{Start: int(at.Start), Size: int(at.Size)})
}

func (d *device) create(op string, info *nvml.GpuInstanceProfileInfo, at *gpu.Placement) (nvml.GpuInstance, nvml.Return) {
	if info == nil {
		return nil, nvml.ERROR_INVALID_ARGUMENT
	}
	var id int
	ret := d.change(op, func(_ *state, g *board) nvml.Return {
		var ret nvml.Return
		id, ret = g.createInstance(int(info.Id), at)
		return ret
	})
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	return d.instance(id), nvml.SUCCESS
}

func (d *device) instance(id int) *gpuInstance {
	return &gpuInstance{GpuInstance: d.session.unset.instance, parent: d, id: id}
}

func (d *device) GetGpuInstances(info *nvml.GpuInstanceProfileInfo) ([]nvml.GpuInstance, nvml.Return) {
	g, p, ret := d.profile("GetGpuInstances", info)
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	if !g.MIG {
		return nil, nvml.ERROR_NOT_SUPPORTED
	}
	all := []nvml.GpuInstance{}
	for _, i := range g.Instances {
		if i.Profile == p.ID {
			all = append(all, d.instance(i.ID))
		}
	}
	return all, nvml.SUCCESS
}

func (d *device) GetGpuInstanceById(id int) (nvml.GpuInstance, nvml.Return) { //nolint:revive // NVML's name
	_, g, ret := d.look("GetGpuInstanceById")
	switch {
	case ret != nvml.SUCCESS:
		return nil, ret
	case !g.MIG:
		return nil, nvml.ERROR_NOT_SUPPORTED
	case g.instance(id) == nil:
		return nil, nvml.ERROR_NOT_FOUND
	}
	return d.instance(id), nvml.SUCCESS
}

// GetMaxMigDeviceCount is zero where MIG is not supported or off (nvml.h).
func (d *device) GetMaxMigDeviceCount() (int, nvml.Return) {
	return read(d, "GetMaxMigDeviceCount", func(g *board) int {
		if g.MIG {
			return 7
		}
		return 0
	})
}

func (d *device) GetMigDeviceHandleByIndex(index int) (nvml.Device, nvml.Return) {
	_, g, ret := d.look("GetMigDeviceHandleByIndex")
	switch {
	case ret != nvml.SUCCESS:
		return nil, ret
	case index < 0:
		return nil, nvml.ERROR_INVALID_ARGUMENT
	case len(g.table.Profiles) == 0:
		return nil, nvml.ERROR_NOT_SUPPORTED
	}
	i, c := g.migDevice(index)
	if c == nil {
		return nil, nvml.ERROR_NOT_FOUND
	}
	return &migDevice{Device: d.session.unset.device, parent: d, gi: i.ID, ci: c.ID}, nvml.SUCCESS
}

func (d *device) IsMigDeviceHandle() (bool, nvml.Return) {
	return read(d, "IsMigDeviceHandle", func(*board) bool { return false })
}

func (d *device) GetComputeRunningProcesses() ([]nvml.ProcessInfo, nvml.Return) {
	return read(d, "GetComputeRunningProcesses", func(g *board) []nvml.ProcessInfo {
		return g.processes(func(Client) bool { return true })
	})
}

// GetGraphicsRunningProcesses is empty: nobody draws on these boards.
func (d *device) GetGraphicsRunningProcesses() ([]nvml.ProcessInfo, nvml.Return) {
	return read(d, "GetGraphicsRunningProcesses", func(*board) []nvml.ProcessInfo { return nil })
}

// processes lists the clients that run CUDA; bare handles are in no list.
func (g *board) processes(which func(Client) bool) []nvml.ProcessInfo {
	var all []nvml.ProcessInfo
	for _, c := range g.Clients {
		if c.Process && which(c) {
			p := nvml.ProcessInfo{Pid: uint32(c.PID), UsedGpuMemory: 512 << 20, GpuInstanceId: unattributed, ComputeInstanceId: unattributed}
			if c.GI != nil && c.CI != nil {
				p.GpuInstanceId, p.ComputeInstanceId = uint32(*c.GI), uint32(*c.CI)
			}
			all = append(all, p)
		}
	}
	return all
}

func (d *device) GetGpuFabricInfo() (nvml.GpuFabricInfo, nvml.Return) {
	_, g, ret := d.look("GetGpuFabricInfo")
	if ret != nvml.SUCCESS {
		return nvml.GpuFabricInfo{}, ret
	}
	if !g.onFabric() {
		return nvml.GpuFabricInfo{}, nvml.ERROR_NOT_SUPPORTED
	}
	// All boards of a node are in one cluster and clique.
	info := nvml.GpuFabricInfo{State: nvml.GPU_FABRIC_STATE_COMPLETED, CliqueId: 1}
	copy(info.ClusterUuid[:], "kerf simulated ")
	if g.FabricReads > 0 {
		info = nvml.GpuFabricInfo{State: nvml.GPU_FABRIC_STATE_IN_PROGRESS}
		ret = d.update("GetGpuFabricInfo", func(_ *state, g *board) nvml.Return {
			g.FabricReads = max(g.FabricReads-1, 0)
			return nvml.SUCCESS
		})
	}
	return info, ret
}

func (g *board) serial() string {
	digits := strings.ReplaceAll(strings.TrimPrefix(g.UUID, "GPU-"), "-", "")
	var n uint64
	fmt.Sscanf(digits[:8], "%x", &n) //nolint:errcheck // a serial of zero would do as well
	return fmt.Sprintf("165%010d", n)
}
