package nvml

import (
	"fmt"
	"slices"
	"strings"

	"github.com/NVIDIA/go-nvlib/pkg/nvlib/device"
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// profile is a GPU instance profile together with what NVML wants to have back.
type profile struct {
	gpu.Profile
	info nvml.GpuInstanceProfileInfo
	// compute are the compute instance profiles that such an instance offers, one
	// that spans it among them. NVML tells them of an instance only, so they are
	// empty until there was one.
	compute []nvml.ComputeInstanceProfileInfo
}

// absent reports whether NVML says that a profile is not for this board.
func absent(ret nvml.Return) bool {
	return ret == nvml.ERROR_NOT_SUPPORTED || ret == nvml.ERROR_INVALID_ARGUMENT
}

// profiles reads the table of GPU instance profiles from the board.
func (a *Adapter) profiles(b *board, h nvml.Device, memory uint64) ([]profile, error) {
	var all []profile
	for n := range nvml.GPU_INSTANCE_PROFILE_COUNT {
		info, ret := h.GetGpuInstanceProfileInfo(n)
		if absent(ret) {
			continue
		}
		if ret != nvml.SUCCESS {
			return nil, failed(fmt.Sprintf("read GPU instance profile %d", n), b, ret)
		}
		compute, known := wholeCompute[info.SliceCount]
		if !known {
			continue
		}
		named, err := a.lookup.NewMigProfile(n, compute, nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED, info.MemorySizeMB, memory)
		if err != nil {
			// Newer than the library's tables: nobody could ask for it by name.
			continue
		}
		p := profile{info: info, Profile: gpu.Profile{
			Name: named.String(), ID: int(info.Id), ComputeSlices: int(info.SliceCount), MediaExtensions: mediaExtensions(named.GetInfo()),
			MemoryMiB: info.MemorySizeMB, Multiprocessors: int(info.MultiprocessorCount), CopyEngines: int(info.CopyEngineCount),
			Decoders: int(info.DecoderCount), Encoders: int(info.EncoderCount), JPEGEngines: int(info.JpegCount), OFAEngines: int(info.OfaCount),
		}}
		if slices.ContainsFunc(all, func(o profile) bool { return o.Name == p.Name || o.ID == p.ID }) {
			continue
		}
		places, ret := h.GetGpuInstancePossiblePlacements(&info)
		if absent(ret) {
			continue
		}
		if ret != nvml.SUCCESS {
			return nil, failed("read the placements of "+p.Name, b, ret)
		}
		for _, at := range places {
			p.Placements = append(p.Placements, gpu.Placement{Start: int(at.Start), Size: int(at.Size)})
		}
		slices.SortFunc(p.Placements, func(x, y gpu.Placement) int { return x.Start - y.Start })
		all = append(all, p)
	}
	return all, nil
}

// wholeCompute maps compute slices to NVML's number for the compute instance
// profile that has so many. It serves to name a GPU instance profile, which is
// "1g.10gb" where the compute instance spans it. There are two such profiles of
// one slice (REV1) and of seven (NVL); the plain ones exist on all boards.
var wholeCompute = map[uint32]int{
	1: nvml.COMPUTE_INSTANCE_PROFILE_1_SLICE,
	2: nvml.COMPUTE_INSTANCE_PROFILE_2_SLICE,
	3: nvml.COMPUTE_INSTANCE_PROFILE_3_SLICE,
	4: nvml.COMPUTE_INSTANCE_PROFILE_4_SLICE,
	6: nvml.COMPUTE_INSTANCE_PROFILE_6_SLICE,
	7: nvml.COMPUTE_INSTANCE_PROFILE_7_SLICE,
	8: nvml.COMPUTE_INSTANCE_PROFILE_8_SLICE,
}

func mediaExtensions(p device.MigProfileInfo) bool {
	return slices.ContainsFunc(p.Attributes, func(attribute string) bool {
		return strings.HasPrefix(attribute, device.AttributeMediaExtensions)
	})
}

// profile finds a profile of the board by name.
func (c *constant) profile(name string) (*profile, error) {
	for i := range c.profiles {
		if c.profiles[i].Name == name {
			return &c.profiles[i], nil
		}
	}
	return nil, fmt.Errorf("profile %s: %w on a board of model %s", name, gpu.ErrNotFound, c.gpu.ProductName)
}

// learnCompute reads the compute instance profiles that an instance of the
// profile offers, and remembers them from the first one that tells them all.
func (p *profile) learnCompute(b *board, gi nvml.GpuInstance) ([]nvml.ComputeInstanceProfileInfo, error) {
	if p.compute != nil {
		return p.compute, nil
	}
	var all []nvml.ComputeInstanceProfileInfo
	for n := range nvml.COMPUTE_INSTANCE_PROFILE_COUNT {
		info, ret := gi.GetComputeInstanceProfileInfo(n, nvml.COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED)
		if gone(ret) == nvml.ERROR_NOT_FOUND {
			continue
		}
		if ret != nvml.SUCCESS {
			return nil, failed(fmt.Sprintf("read compute instance profile %d of %s", n, p.Name), b, ret)
		}
		if !slices.ContainsFunc(all, func(o nvml.ComputeInstanceProfileInfo) bool { return o.Id == info.Id }) {
			all = append(all, info)
		}
	}
	// An instance that somebody destroys meanwhile offers ever less. The whole is
	// the last of the plain ones, so with it nothing of importance is missing.
	if slices.ContainsFunc(all, p.spans) {
		p.compute = all
	}
	return all, nil
}

// spans reports whether it is a compute instance over all of the GPU instance.
// There can be several such profiles: the first is the plain one.
func (p *profile) spans(c nvml.ComputeInstanceProfileInfo) bool {
	return c.SliceCount == p.info.SliceCount
}
