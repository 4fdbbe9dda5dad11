package nvml

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// errVanished is what describe wraps for a GPU instance that somebody destroyed while it was read.
var errVanished = fmt.Errorf("it vanished while it was read: %w", gpu.ErrNotFound)

// instances lists the GPU instances. Others create and destroy some meanwhile, so
// that what is found may be no state that the board ever was in: then it is
// listed again. What vanishes even from the last list is left out.
func (b *board) instances(h nvml.Device) ([]gpu.Instance, error) {
	for n := 1; ; n++ {
		all, moved, err := b.walk(h)
		if err != nil || !moved || n == looks {
			return all, err
		}
	}
}

// walk lists the GPU instances per profile, over all profiles: enumerating MIG
// devices would miss those without a compute instance. moved tells that somebody
// was seen to change them meanwhile.
func (b *board) walk(h nvml.Device) (all []gpu.Instance, moved bool, err error) {
	for n := range b.constant.profiles {
		p := &b.constant.profiles[n]
		found, ret := h.GetGpuInstances(&p.info)
		if gone(ret) == nvml.ERROR_NOT_FOUND {
			continue
		}
		if ret != nvml.SUCCESS {
			return nil, false, failed("list the GPU instances of "+p.Name, b, ret)
		}
		for _, gi := range found {
			i, err := b.describe(h, p, gi)
			if errors.Is(err, errVanished) {
				moved = true
				continue
			}
			if err != nil {
				return nil, false, err
			}
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(x, y gpu.Instance) int { return x.Placement.Start - y.Placement.Start })
	for n := 1; n < len(all); n++ {
		// One was read, and then another that was made in its place.
		moved = moved || all[n].Placement.Overlaps(all[n-1].Placement)
	}
	return all, moved, nil
}

// identify reads which GPU instance of a profile it is.
func (b *board) identify(p *profile, gi nvml.GpuInstance) (gpu.Instance, error) {
	info, ret := gi.GetInfo()
	if gone(ret) == nvml.ERROR_NOT_FOUND || ret == nvml.SUCCESS && int(info.ProfileId) != p.ID {
		return gpu.Instance{}, fmt.Errorf("a GPU instance of %s on %s: %w", p.Name, b, errVanished)
	}
	if ret != nvml.SUCCESS {
		return gpu.Instance{}, failed("read a GPU instance of "+p.Name, b, ret)
	}
	return gpu.Instance{
		GPU: b.id(), Profile: p.Name, ID: int(info.Id),
		Placement: gpu.Placement{Start: int(info.Placement.Start), Size: int(info.Placement.Size)},
	}, nil
}

// describe reads one GPU instance and its compute instances.
func (b *board) describe(h nvml.Device, p *profile, gi nvml.GpuInstance) (gpu.Instance, error) {
	i, err := b.identify(p, gi)
	if err != nil {
		return gpu.Instance{}, err
	}
	shapes, err := p.learnCompute(b, gi)
	if err != nil {
		return gpu.Instance{}, err
	}
	for _, c := range shapes {
		found, ret := gi.GetComputeInstances(&c)
		if gone(ret) == nvml.ERROR_NOT_FOUND {
			continue
		}
		if ret != nvml.SUCCESS {
			return gpu.Instance{}, failed(fmt.Sprintf("list the compute instances of GPU instance %d", i.ID), b, ret)
		}
		for _, ci := range found {
			info, ret := ci.GetInfo()
			if gone(ret) == nvml.ERROR_NOT_FOUND {
				continue
			}
			if ret != nvml.SUCCESS {
				return gpu.Instance{}, failed(fmt.Sprintf("read a compute instance of GPU instance %d", i.ID), b, ret)
			}
			uuid, err := b.migUUID(h, computeID{i.ID, int(info.Id)})
			if errors.Is(err, gpu.ErrNotFound) {
				if _, ret := ci.GetInfo(); gone(ret) == nvml.ERROR_NOT_FOUND {
					// Somebody destroyed it since it was listed.
					continue
				}
			}
			if err != nil {
				return gpu.Instance{}, err
			}
			i.Compute = append(i.Compute, gpu.ComputeInstance{ID: int(info.Id), UUID: uuid, Whole: p.spans(c)})
		}
	}
	slices.SortFunc(i.Compute, func(x, y gpu.ComputeInstance) int { return x.ID - y.ID })
	// If somebody destroyed it meanwhile, what has its id now is another.
	if still, err := b.identify(p, gi); err != nil {
		return gpu.Instance{}, err
	} else if still.ID != i.ID || still.Placement != i.Placement {
		return gpu.Instance{}, fmt.Errorf("a GPU instance of %s on %s: %w", p.Name, b, errVanished)
	}
	return i, nil
}

// migUUID is the UUID of a compute instance that exists. Only the MIG devices
// know it, so they are walked when it is not known yet. ErrNotFound means that
// the compute instance is gone.
func (b *board) migUUID(h nvml.Device, id computeID) (string, error) {
	if known, ok := b.migDevices[id]; ok {
		return known.uuid, nil
	}
	if ret := b.walkMIGDevices(h); ret != nvml.SUCCESS {
		return "", failed("walk the MIG devices", b, ret)
	}
	found, ok := b.migDevices[id]
	if !ok {
		return "", fmt.Errorf("MIG device of GPU instance %d and compute instance %d on %s: %w", id.gi, id.ci, b, gpu.ErrNotFound)
	}
	return found.uuid, nil
}

// migDevice is the handle of a MIG device, looked for where it was before the others.
func (b *board) migDevice(h nvml.Device, id computeID) (nvml.Device, nvml.Return) {
	at := func() (nvml.Device, nvml.Return) {
		known, ok := b.migDevices[id]
		if !ok {
			return nil, nvml.ERROR_NOT_FOUND
		}
		mig, ret := h.GetMigDeviceHandleByIndex(known.index)
		if ret != nvml.SUCCESS {
			return nil, gone(ret)
		}
		if is, ret := computeIDOf(mig); ret != nvml.SUCCESS || is != id {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return mig, nvml.SUCCESS
	}
	mig, ret := at()
	if ret != nvml.ERROR_NOT_FOUND {
		return mig, ret
	}
	if ret := b.walkMIGDevices(h); ret != nvml.SUCCESS {
		return nil, ret
	}
	return at()
}

// walkMIGDevices learns where the MIG devices of a board are. Their indices have holes.
func (b *board) walkMIGDevices(h nvml.Device) nvml.Return {
	count, ret := h.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return ret
	}
	if b.migDevices == nil {
		b.migDevices = map[computeID]migDevice{}
	}
	learn := func(index int) nvml.Return {
		mig, ret := h.GetMigDeviceHandleByIndex(index)
		if ret != nvml.SUCCESS {
			return ret
		}
		id, ret := computeIDOf(mig)
		if ret != nvml.SUCCESS {
			return ret
		}
		uuid, ret := mig.GetUUID()
		if ret == nvml.SUCCESS {
			b.migDevices[id] = migDevice{index, uuid}
		}
		return ret
	}
	for index := range count {
		if ret := learn(index); ret != nvml.SUCCESS && gone(ret) != nvml.ERROR_NOT_FOUND {
			return ret
		}
	}
	return nvml.SUCCESS
}

func computeIDOf(mig nvml.Device) (computeID, nvml.Return) {
	gi, ret := mig.GetGpuInstanceId()
	if ret != nvml.SUCCESS {
		return computeID{}, ret
	}
	ci, ret := mig.GetComputeInstanceId()
	return computeID{gi, ci}, ret
}

// gone makes one answer of the three that NVML has for an instance that is not
// there: by its id NOT_FOUND, by a stale handle INVALID_ARGUMENT, and with the
// MIG mode off NOT_SUPPORTED.
func gone(ret nvml.Return) nvml.Return {
	if absent(ret) {
		return nvml.ERROR_NOT_FOUND
	}
	return ret
}

// CreateGPUInstance makes a GPU instance exactly there: a placement of the
// driver's choice would fragment the board. ErrInsufficientResources means that
// something is in the way, ErrNotFound that the board has no such profile or
// placement, ErrNotSupported that its MIG mode is off.
func (a *Adapter) CreateGPUInstance(ctx context.Context, uuid, profile string, at gpu.Placement) (gpu.Instance, error) {
	return onGPU(ctx, a, uuid, opCreateGPU, func(b *board, h nvml.Device) (gpu.Instance, error) {
		op := fmt.Sprintf("%s %s at %s", opCreateGPU, profile, at)
		c, err := a.constantOf(b, h)
		if err != nil {
			return gpu.Instance{}, err
		}
		p, err := c.profile(profile)
		if err != nil {
			return gpu.Instance{}, fmt.Errorf("%s on %s: %w", op, b, err)
		}
		if !slices.Contains(p.Placements, at) {
			return gpu.Instance{}, fmt.Errorf("%s on %s: placement %w: possible are %v", op, b, gpu.ErrNotFound, p.Placements)
		}
		gi, ret := h.CreateGpuInstanceWithPlacement(&p.info, &nvml.GpuInstancePlacement{Start: uint32(at.Start), Size: uint32(at.Size)})
		if ret != nvml.SUCCESS {
			return gpu.Instance{}, failed(op, b, ret)
		}
		i, err := b.describe(h, p, gi)
		if err == nil && i.Placement != at {
			err = fmt.Errorf("%s on %s: the driver put it at %s", op, b, i.Placement)
		}
		if err != nil {
			// Nobody would know of it.
			return gpu.Instance{}, errors.Join(err, undo(op, b, gi.Destroy()))
		}
		return i, nil
	})
}

// CreateComputeInstance makes the compute instance over all of a GPU instance
// that has none, and returns the instance with it. ErrNotFound means that the
// GPU instance is not, or no longer, the one that is meant.
func (a *Adapter) CreateComputeInstance(ctx context.Context, i gpu.Instance) (gpu.Instance, error) {
	return onGPU(ctx, a, i.GPU, opCreateCompute, func(b *board, h nvml.Device) (gpu.Instance, error) {
		op := fmt.Sprintf("%s in GPU instance %d", opCreateCompute, i.ID)
		gi, p, err := a.verify(op, b, h, i)
		if err != nil {
			return gpu.Instance{}, err
		}
		whole := slices.IndexFunc(p.compute, p.spans)
		if whole < 0 {
			return gpu.Instance{}, fmt.Errorf("%s on %s: no compute instance spans a %s: %w", op, b, p.Name, gpu.ErrNotSupported)
		}
		ci, ret := gi.CreateComputeInstance(&p.compute[whole])
		if ret == nvml.ERROR_INVALID_ARGUMENT {
			// The arguments are the driver's own: the GPU instance is gone.
			ret = nvml.ERROR_NOT_FOUND
		}
		if ret != nvml.SUCCESS {
			return gpu.Instance{}, failed(op, b, ret)
		}
		made, err := b.describe(h, p, gi)
		if err == nil && !made.Usable() {
			err = fmt.Errorf("%s on %s: it has %d compute instances, not the one", op, b, len(made.Compute))
		}
		if err != nil {
			return gpu.Instance{}, errors.Join(err, undo(op, b, ci.Destroy()))
		}
		return made, nil
	})
}

// DestroyComputeInstance destroys the compute instances of an instance and
// returns it without them. It first makes sure that the whole identity is still
// what was given, else ErrNotFound. ErrInUse means that a process holds it.
func (a *Adapter) DestroyComputeInstance(ctx context.Context, i gpu.Instance) (gpu.Instance, error) {
	return onGPU(ctx, a, i.GPU, opDestroyCompute, func(b *board, h nvml.Device) (gpu.Instance, error) {
		op := fmt.Sprintf("%s of %s at %s (GPU instance %d)", opDestroyCompute, i.Profile, i.Placement, i.ID)
		gi, _, err := a.verify(op, b, h, i)
		if err != nil {
			return i, err
		}
		b.forgetSamples(i.ID)
		left := i
		for _, c := range i.Compute {
			ci, ret := gi.GetComputeInstanceById(c.ID)
			if ret == nvml.SUCCESS {
				ret = ci.Destroy()
			}
			if ret != nvml.SUCCESS {
				return left, failed(op, b, gone(ret))
			}
			left.Compute = left.Compute[1:]
		}
		left.Compute = nil
		return left, nil
	})
}

// DestroyGPUInstance destroys a GPU instance. It first makes sure that the whole
// identity is still what was given, else ErrNotFound. ErrInUse means that it has
// compute instances or that somebody holds a handle.
func (a *Adapter) DestroyGPUInstance(ctx context.Context, i gpu.Instance) error {
	_, err := onGPU(ctx, a, i.GPU, opDestroyGPU, func(b *board, h nvml.Device) (struct{}, error) {
		op := fmt.Sprintf("%s %s at %s (GPU instance %d)", opDestroyGPU, i.Profile, i.Placement, i.ID)
		gi, _, err := a.verify(op, b, h, i)
		if err != nil {
			return struct{}{}, err
		}
		b.forgetSamples(i.ID)
		if ret := gi.Destroy(); ret != nvml.SUCCESS {
			return struct{}{}, failed(op, b, gone(ret))
		}
		return struct{}{}, nil
	})
	return err
}

// verify finds the GPU instance by its id and makes sure that it is the very
// instance that is meant. The driver gives ids and UUIDs again, so what bears
// them now can be somebody else's.
func (a *Adapter) verify(op string, b *board, h nvml.Device, want gpu.Instance) (nvml.GpuInstance, *profile, error) {
	c, err := a.constantOf(b, h)
	if err != nil {
		return nil, nil, err
	}
	p, err := c.profile(want.Profile)
	if err != nil {
		return nil, nil, fmt.Errorf("%s on %s: %w", op, b, err)
	}
	gi, ret := h.GetGpuInstanceById(want.ID)
	var info nvml.GpuInstanceInfo
	if ret == nvml.SUCCESS {
		info, ret = gi.GetInfo()
	}
	if ret != nvml.SUCCESS {
		return nil, nil, failed(op, b, gone(ret))
	}
	if int(info.ProfileId) != p.ID {
		return nil, nil, fmt.Errorf("%s on %s: %w: GPU instance %d has another profile now (driver id %d)", op, b, gpu.ErrNotFound, want.ID, info.ProfileId)
	}
	is, err := b.describe(h, p, gi)
	if err != nil {
		return nil, nil, err
	}
	if !is.Same(want) {
		return nil, nil, fmt.Errorf("%s on %s: %w: GPU instance %d is at %s now, with compute instances %v", op, b, gpu.ErrNotFound, is.ID, is.Placement, is.Compute)
	}
	return gi, p, nil
}

func undo(op string, b *board, ret nvml.Return) error {
	if ret == nvml.SUCCESS {
		return nil
	}
	return failed("undo "+op, b, ret)
}
