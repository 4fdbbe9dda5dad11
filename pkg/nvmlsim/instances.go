package nvmlsim

import (
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// gpuInstance is a handle of a GPU instance. It is good whenever there is an
// instance with this id, be it another than at first.
type gpuInstance struct {
	*mock.GpuInstance
	parent *device
	id     int
}

// in finds the instance in a state, whatever has become of the parent's handle.
func (i *gpuInstance) in(st *state) (*board, *instance, nvml.Return) {
	g := &st.GPUs[i.parent.index]
	if g.Lost {
		return nil, nil, nvml.ERROR_GPU_IS_LOST
	}
	at := g.instance(i.id)
	if at == nil {
		return nil, nil, nvml.ERROR_INVALID_ARGUMENT
	}
	return g, at, nvml.SUCCESS
}

func (i *gpuInstance) look(op string) (*board, *instance, gpu.Profile, nvml.Return) {
	st, ret := i.parent.session.enter(op, i.parent.index)
	if ret != nvml.SUCCESS {
		return nil, nil, gpu.Profile{}, ret
	}
	g, at, ret := i.in(st)
	if ret != nvml.SUCCESS {
		return nil, nil, gpu.Profile{}, ret
	}
	p, _ := profileByID(g.table, at.Profile)
	return g, at, p, nvml.SUCCESS
}

func (i *gpuInstance) change(op string, f func(*board) nvml.Return) nvml.Return {
	s := i.parent.session
	if _, ret := s.enter(op, i.parent.index); ret != nvml.SUCCESS {
		return ret
	}
	ret, err := s.kernel.update(func(st *state) nvml.Return {
		if st.GPUs[i.parent.index].Lost {
			return nvml.ERROR_GPU_IS_LOST
		}
		return f(&st.GPUs[i.parent.index])
	})
	if err != nil {
		return s.broken(op, i.parent.index, err)
	}
	return s.done(op, i.parent.index, ret)
}

func (i *gpuInstance) GetInfo() (nvml.GpuInstanceInfo, nvml.Return) {
	g, at, _, ret := i.look("GpuInstanceGetInfo")
	if ret != nvml.SUCCESS {
		return nvml.GpuInstanceInfo{}, ret
	}
	return nvml.GpuInstanceInfo{
		Device: i.parent.session.device(i.parent.index, g.Generation), Id: uint32(at.ID), ProfileId: uint32(at.Profile),
		Placement: nvml.GpuInstancePlacement{Start: uint32(at.Placement.Start), Size: uint32(at.Placement.Size)},
	}, nvml.SUCCESS
}

func (i *gpuInstance) Destroy() nvml.Return {
	return i.change("GpuInstanceDestroy", func(g *board) nvml.Return { return g.destroyInstance(i.id) })
}

func (i *gpuInstance) GetComputeInstanceProfileInfo(enum, engine int) (nvml.ComputeInstanceProfileInfo, nvml.Return) {
	g, _, p, ret := i.look("GetComputeInstanceProfileInfo")
	if ret != nvml.SUCCESS {
		return nvml.ComputeInstanceProfileInfo{}, ret
	}
	if enum < 0 || enum >= nvml.COMPUTE_INSTANCE_PROFILE_COUNT || engine != nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED {
		return nvml.ComputeInstanceProfileInfo{}, nvml.ERROR_INVALID_ARGUMENT
	}
	c, ok := computeProfileByID(g.table, p, enum)
	if !ok {
		return nvml.ComputeInstanceProfileInfo{}, nvml.ERROR_NOT_SUPPORTED
	}
	return c.info(p), nvml.SUCCESS
}

// computeProfile finds a profile that a caller names by its id.
func (i *gpuInstance) computeProfile(op string, info *nvml.ComputeInstanceProfileInfo) (*instance, gpu.Profile, computeProfile, nvml.Return) {
	g, at, p, ret := i.look(op)
	if ret != nvml.SUCCESS {
		return nil, gpu.Profile{}, computeProfile{}, ret
	}
	if info == nil {
		return nil, gpu.Profile{}, computeProfile{}, nvml.ERROR_INVALID_ARGUMENT
	}
	c, ok := computeProfileByID(g.table, p, int(info.Id))
	if !ok {
		return nil, gpu.Profile{}, computeProfile{}, nvml.ERROR_NOT_SUPPORTED
	}
	return at, p, c, nvml.SUCCESS
}

func (i *gpuInstance) GetComputeInstancePossiblePlacements(info *nvml.ComputeInstanceProfileInfo) ([]nvml.ComputeInstancePlacement, nvml.Return) {
	_, p, c, ret := i.computeProfile("GetComputeInstancePossiblePlacements", info)
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	var all []nvml.ComputeInstancePlacement
	for _, at := range c.places(p) {
		all = append(all, nvml.ComputeInstancePlacement{Start: uint32(at.Start), Size: uint32(at.Size)})
	}
	return all, nvml.SUCCESS
}

func (i *gpuInstance) GetComputeInstanceRemainingCapacity(info *nvml.ComputeInstanceProfileInfo) (int, nvml.Return) {
	at, p, c, ret := i.computeProfile("GetComputeInstanceRemainingCapacity", info)
	if ret != nvml.SUCCESS {
		return 0, ret
	}
	free := 0
	for _, place := range c.places(p) {
		if !at.taken(place) {
			free++
		}
	}
	return free, nvml.SUCCESS
}

func (i *gpuInstance) CreateComputeInstance(info *nvml.ComputeInstanceProfileInfo) (nvml.ComputeInstance, nvml.Return) {
	return i.create("CreateComputeInstance", info, nil)
}

func (i *gpuInstance) CreateComputeInstanceWithPlacement(info *nvml.ComputeInstanceProfileInfo, at *nvml.ComputeInstancePlacement) (nvml.ComputeInstance, nvml.Return) {
	if at == nil {
		return nil, nvml.ERROR_INVALID_ARGUMENT
	}
	return i.create("CreateComputeInstanceWithPlacement", info, &gpu.Placement{Start: int(at.Start), Size: int(at.Size)})
}

func (i *gpuInstance) create(op string, info *nvml.ComputeInstanceProfileInfo, at *gpu.Placement) (nvml.ComputeInstance, nvml.Return) {
	if info == nil {
		return nil, nvml.ERROR_INVALID_ARGUMENT
	}
	var id int
	ret := i.change(op, func(g *board) nvml.Return {
		var ret nvml.Return
		id, ret = g.createCompute(i.id, int(info.Id), at)
		return ret
	})
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	return i.compute(id), nvml.SUCCESS
}

func (i *gpuInstance) compute(id int) *computeInstance {
	return &computeInstance{ComputeInstance: i.parent.session.unset.compute, parent: i, id: id}
}

func (i *gpuInstance) GetComputeInstances(info *nvml.ComputeInstanceProfileInfo) ([]nvml.ComputeInstance, nvml.Return) {
	at, _, shape, ret := i.computeProfile("GetComputeInstances", info)
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	all := []nvml.ComputeInstance{}
	for _, c := range at.Compute {
		if c.Profile == shape.id {
			all = append(all, i.compute(c.ID))
		}
	}
	return all, nvml.SUCCESS
}

func (i *gpuInstance) GetComputeInstanceById(id int) (nvml.ComputeInstance, nvml.Return) { //nolint:revive // NVML's name
	_, at, _, ret := i.look("GetComputeInstanceById")
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	if at.compute(id) == nil {
		return nil, nvml.ERROR_NOT_FOUND
	}
	return i.compute(id), nvml.SUCCESS
}

// computeInstance is a handle of a compute instance, as good as its ids.
type computeInstance struct {
	*mock.ComputeInstance
	parent *gpuInstance
	id     int
}

func (c *computeInstance) GetInfo() (nvml.ComputeInstanceInfo, nvml.Return) {
	g, at, _, ret := c.parent.look("ComputeInstanceGetInfo")
	if ret != nvml.SUCCESS {
		return nvml.ComputeInstanceInfo{}, ret
	}
	is := at.compute(c.id)
	if is == nil {
		return nvml.ComputeInstanceInfo{}, nvml.ERROR_INVALID_ARGUMENT
	}
	d := c.parent.parent
	return nvml.ComputeInstanceInfo{
		Device: d.session.device(d.index, g.Generation), GpuInstance: c.parent, Id: uint32(is.ID), ProfileId: uint32(is.Profile),
		Placement: nvml.ComputeInstancePlacement{Start: uint32(is.Start), Size: uint32(is.Size)},
	}, nvml.SUCCESS
}

func (c *computeInstance) Destroy() nvml.Return {
	return c.parent.change("ComputeInstanceDestroy", func(g *board) nvml.Return { return g.destroyCompute(c.parent.id, c.id) })
}

// name is the MIG device's name as nvidia-smi shows it: "1g.10gb", "1c.3g.40gb".
func (at found) name() string {
	if at.compute.Size == at.profile.ComputeSlices {
		return at.profile.Name
	}
	return fmt.Sprintf("%dc.%s", at.compute.Size, at.profile.Name)
}
