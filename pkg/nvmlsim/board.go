package nvmlsim

import (
	"slices"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// profileEnum is the constant of nvml.h that a profile is asked for with.
func profileEnum(p gpu.Profile) int {
	switch {
	case p.ComputeSlices == 1 && p.MediaExtensions:
		return nvml.GPU_INSTANCE_PROFILE_1_SLICE_REV1
	case p.ComputeSlices == 1 && p.Placements[0].Size == 2:
		return nvml.GPU_INSTANCE_PROFILE_1_SLICE_REV2
	case p.ComputeSlices == 1:
		return nvml.GPU_INSTANCE_PROFILE_1_SLICE
	case p.ComputeSlices == 2:
		return nvml.GPU_INSTANCE_PROFILE_2_SLICE
	case p.ComputeSlices == 3:
		return nvml.GPU_INSTANCE_PROFILE_3_SLICE
	case p.ComputeSlices == 4:
		return nvml.GPU_INSTANCE_PROFILE_4_SLICE
	default:
		return nvml.GPU_INSTANCE_PROFILE_7_SLICE
	}
}

func profileByEnum(b *gpu.Board, enum int) (gpu.Profile, bool) {
	n := slices.IndexFunc(b.Profiles, func(p gpu.Profile) bool { return profileEnum(p) == enum })
	if n < 0 {
		return gpu.Profile{}, false
	}
	return b.Profiles[n], true
}

func profileByID(b *gpu.Board, id int) (gpu.Profile, bool) {
	n := slices.IndexFunc(b.Profiles, func(p gpu.Profile) bool { return p.ID == id })
	if n < 0 {
		return gpu.Profile{}, false
	}
	return b.Profiles[n], true
}

// holdsMedia reports whether a profile takes the board's one set of media engines.
func holdsMedia(p gpu.Profile) bool { return p.MediaExtensions || p.ComputeSlices == 7 }

// profileInfo is a profile in NVML's terms.
func profileInfo(p gpu.Profile) nvml.GpuInstanceProfileInfo {
	count := len(p.Placements)
	if p.MediaExtensions {
		count = 1
	}
	return nvml.GpuInstanceProfileInfo{
		Id: uint32(p.ID), SliceCount: uint32(p.ComputeSlices), InstanceCount: uint32(count),
		MultiprocessorCount: uint32(p.Multiprocessors), CopyEngineCount: uint32(p.CopyEngines),
		DecoderCount: uint32(p.Decoders), EncoderCount: uint32(p.Encoders), JpegCount: uint32(p.JPEGEngines),
		OfaCount: uint32(p.OFAEngines), MemorySizeMB: p.MemoryMiB,
	}
}

// computeProfile is a shape of compute instance. Its id on the simulated boards
// is the constant of nvml.h, as in published listings.
type computeProfile struct {
	id, slices int
}

// computeProfiles are those that a GPU instance offers (MIG guide: 1c and 2c of
// 3g, 1c and 2c of 4g, 1c to 4c of 7g, and the whole in each). The whole comes
// twice at 1g and, from Hopper on, at 7g: REV1 and NVL are variants.
func computeProfiles(b *gpu.Board, p gpu.Profile) []computeProfile {
	plain := map[int][]int{1: {1}, 2: {1, 2}, 3: {1, 2, 3}, 4: {1, 2, 4}, 7: {1, 2, 3, 4, 7}}
	enum := map[int]int{
		1: nvml.COMPUTE_INSTANCE_PROFILE_1_SLICE, 2: nvml.COMPUTE_INSTANCE_PROFILE_2_SLICE, 3: nvml.COMPUTE_INSTANCE_PROFILE_3_SLICE,
		4: nvml.COMPUTE_INSTANCE_PROFILE_4_SLICE, 7: nvml.COMPUTE_INSTANCE_PROFILE_7_SLICE,
	}
	var all []computeProfile
	for _, n := range plain[p.ComputeSlices] {
		all = append(all, computeProfile{enum[n], n})
	}
	switch {
	case p.ComputeSlices == 1:
		all = append(all, computeProfile{nvml.COMPUTE_INSTANCE_PROFILE_1_SLICE_REV1, 1})
	case p.ComputeSlices == 7 && b.Architecture == "Hopper":
		all = append(all, computeProfile{nvml.COMPUTE_INSTANCE_PROFILE_7_SLICE_NVL, 7})
	}
	return all
}

func computeProfileByID(b *gpu.Board, p gpu.Profile, id int) (computeProfile, bool) {
	all := computeProfiles(b, p)
	n := slices.IndexFunc(all, func(c computeProfile) bool { return c.id == id })
	if n < 0 {
		return computeProfile{}, false
	}
	return all[n], true
}

// info is a compute instance profile of a GPU instance in NVML's terms. All
// engines but the multiprocessors are shared by the compute instances.
func (c computeProfile) info(p gpu.Profile) nvml.ComputeInstanceProfileInfo {
	return nvml.ComputeInstanceProfileInfo{
		Id: uint32(c.id), SliceCount: uint32(c.slices), InstanceCount: uint32(p.ComputeSlices / c.slices),
		// [inferred]: multiprocessors are split evenly, odd ones stay unused.
		MultiprocessorCount:   uint32(p.Multiprocessors * c.slices / p.ComputeSlices),
		SharedCopyEngineCount: uint32(p.CopyEngines), SharedDecoderCount: uint32(p.Decoders), SharedEncoderCount: uint32(p.Encoders),
		SharedJpegCount: uint32(p.JPEGEngines), SharedOfaCount: uint32(p.OFAEngines),
	}
}

// places are where a compute instance can lie within a GPU instance, in compute slices [inferred].
func (c computeProfile) places(p gpu.Profile) []gpu.Placement {
	var all []gpu.Placement
	for start := 0; start+c.slices <= p.ComputeSlices; start += c.slices {
		all = append(all, gpu.Placement{Start: start, Size: c.slices})
	}
	return all
}

// instanceIDs are the ids that the driver gives to GPU instances of a profile,
// the lowest free one first. In published listings larger profiles have lower
// ids, and the id of one profile says nothing of its place; the ranges are
// those of a binary tree over the memory slices [inferred].
func instanceIDs(p gpu.Profile) []int {
	switch p.Placements[0].Size {
	case 8:
		return []int{0}
	case 4:
		return []int{1, 2}
	case 2:
		return []int{3, 4, 5, 6}
	default:
		return []int{7, 8, 9, 10, 11, 12, 13, 14}
	}
}
