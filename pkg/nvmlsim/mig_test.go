package nvmlsim

import (
	"fmt"
	"testing"

	nvlib "github.com/NVIDIA/go-nvlib/pkg/nvlib/device"
	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

const (
	g1   = nvml.GPU_INSTANCE_PROFILE_1_SLICE
	g1me = nvml.GPU_INSTANCE_PROFILE_1_SLICE_REV1
	g1x2 = nvml.GPU_INSTANCE_PROFILE_1_SLICE_REV2
	g2   = nvml.GPU_INSTANCE_PROFILE_2_SLICE
	g3   = nvml.GPU_INSTANCE_PROFILE_3_SLICE
	g4   = nvml.GPU_INSTANCE_PROFILE_4_SLICE
	g7   = nvml.GPU_INSTANCE_PROFILE_7_SLICE
)

func TestCreationRules(t *testing.T) {
	type step struct {
		enum        int
		start, size uint32
		want        nvml.Return
	}
	const ok, full, invalid = nvml.SUCCESS, nvml.ERROR_INSUFFICIENT_RESOURCES, nvml.ERROR_INVALID_ARGUMENT
	for name, steps := range map[string][]step{
		"seven of one":            {{g1, 0, 1, ok}, {g1, 1, 1, ok}, {g1, 2, 1, ok}, {g1, 3, 1, ok}, {g1, 4, 1, ok}, {g1, 5, 1, ok}, {g1, 6, 1, ok}, {g1, 7, 1, invalid}},
		"exists already":          {{g1, 3, 1, ok}, {g1, 3, 1, full}},
		"overlap of two shapes":   {{g3, 0, 4, ok}, {g2, 2, 2, full}, {g4, 0, 4, full}, {g3, 4, 4, ok}},
		"3g and 4g":               {{g3, 4, 4, ok}, {g4, 0, 4, ok}, {g1, 6, 1, full}},
		"2g is never at 6":        {{g2, 6, 2, invalid}, {g2, 1, 2, invalid}, {g1x2, 6, 2, ok}},
		"size that is no profile": {{g2, 0, 1, invalid}, {g7, 0, 7, invalid}, {g7, 0, 8, ok}},
		"one set of media":        {{g1me, 0, 1, ok}, {g1me, 5, 1, full}, {g1, 5, 1, ok}, {g7, 0, 8, full}},
		"7g takes all":            {{g7, 0, 8, ok}, {g1, 0, 1, full}, {g1me, 6, 1, full}},
	} {
		for _, b := range migBoards() {
			t.Run(b.Name+"/"+name, func(t *testing.T) {
				d := handle(t, newNode(t, "1x"+b.Name+",mig=on"), 0)
				for i, s := range steps {
					gi, ret := d.CreateGpuInstanceWithPlacement(profile(t, d, s.enum), &nvml.GpuInstancePlacement{Start: s.start, Size: s.size})
					require.Equal(t, s.want, ret, "step %d", i)
					if ret == nvml.SUCCESS {
						info, ret := gi.GetInfo()
						require.Equal(t, nvml.SUCCESS, ret)
						require.Equal(t, nvml.GpuInstancePlacement{Start: s.start, Size: s.size}, info.Placement)
						require.Equal(t, profile(t, d, s.enum).Id, info.ProfileId)
					}
				}
			})
		}
	}
}

// The simulated driver refuses exactly what the model of boards calls a collision.
func TestCollisionsAreThoseOfTheModel(t *testing.T) {
	for _, b := range migBoards() {
		model := gpu.GPU{UUID: "g", Profiles: b.Profiles}
		device := func(p gpu.Placed) gpu.Device {
			return gpu.Device{Type: gpu.TypeMIG, GPU: "g", Profile: p.Profile.Name, Placement: p.Placement}
		}
		for _, first := range gpu.AllPlaced(b.Profiles) {
			for _, second := range gpu.AllPlaced(b.Profiles) {
				g := board{table: &b, MIG: true}
				_, ret := g.createInstance(first.Profile.ID, &first.Placement)
				require.Equal(t, nvml.SUCCESS, ret)
				_, ret = g.createInstance(second.Profile.ID, &second.Placement)
				require.Equal(t, model.Collide(device(first), device(second)), ret == nvml.ERROR_INSUFFICIENT_RESOURCES, "%s: %s, then %s", b.Name, device(first), device(second))
			}
		}
	}
}

func TestDriversChoiceFragments(t *testing.T) {
	d := handle(t, newNode(t, "1xA100-SXM4-40GB,mig=on"), 0)
	for _, enum := range []int{g1, g1, g2} {
		_, ret := d.CreateGpuInstance(profile(t, d, enum))
		require.Equal(t, nvml.SUCCESS, ret)
	}
	left, ret := d.GetGpuInstanceRemainingCapacity(profile(t, d, g3))
	require.Equal(t, nvml.SUCCESS, ret)
	require.Zero(t, left)
	_, ret = d.CreateGpuInstance(profile(t, d, g3))
	require.Equal(t, nvml.ERROR_INSUFFICIENT_RESOURCES, ret)
	left, ret = d.GetGpuInstanceRemainingCapacity(profile(t, d, g1))
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, 3, left)
}

func TestProfilesPerBoard(t *testing.T) {
	for _, b := range gpu.Boards() {
		t.Run(b.Name, func(t *testing.T) {
			// With MIG off: profiles and placements are told all the same.
			d := handle(t, newNode(t, "1x"+b.Name), 0)
			for _, enum := range []int{-1, nvml.GPU_INSTANCE_PROFILE_COUNT} {
				_, ret := d.GetGpuInstanceProfileInfo(enum)
				require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret)
			}
			var found []string
			for enum := range nvml.GPU_INSTANCE_PROFILE_COUNT {
				info, ret := d.GetGpuInstanceProfileInfo(enum)
				if ret == nvml.ERROR_NOT_SUPPORTED {
					continue
				}
				require.Equal(t, nvml.SUCCESS, ret)
				p, ok := profileByID(&b, int(info.Id))
				require.True(t, ok)
				places, ret := d.GetGpuInstancePossiblePlacements(&info)
				require.Equal(t, nvml.SUCCESS, ret)
				require.Len(t, places, len(p.Placements))
				_, ret = d.GetGpuInstances(&info)
				require.Equal(t, nvml.ERROR_NOT_SUPPORTED, ret, "MIG is off")
				_, ret = d.CreateGpuInstance(&info)
				require.Equal(t, nvml.ERROR_NOT_SUPPORTED, ret, "MIG is off")

				memory, ret := d.GetMemoryInfo()
				require.Equal(t, nvml.SUCCESS, ret)
				named, err := nvlib.New(handleLib(t)).NewMigProfile(enum, sliceEnum(p.ComputeSlices), 0, info.MemorySizeMB, memory.Total)
				require.NoError(t, err)
				require.Equal(t, p.Name, named.String(), "the library's name is the table's")
				found = append(found, p.Name)
			}
			require.Len(t, found, len(b.Profiles))
			if len(b.Profiles) == 0 {
				_, _, ret := d.GetMigMode()
				require.Equal(t, nvml.ERROR_NOT_SUPPORTED, ret)
				ret, _ = d.SetMigMode(nvml.DEVICE_MIG_ENABLE)
				require.Equal(t, nvml.ERROR_NOT_SUPPORTED, ret)
			}
			count, ret := d.GetMaxMigDeviceCount()
			require.Equal(t, nvml.SUCCESS, ret)
			require.Zero(t, count)
		})
	}
}

func handleLib(t *testing.T) nvml.Interface { return newNode(t, "1xA10G").Interface() }

func sliceEnum(slices int) int {
	return map[int]int{1: 0, 2: 1, 3: 2, 4: 3, 7: 4}[slices]
}

func TestComputeProfiles(t *testing.T) {
	type shape struct{ enum, slices, count int }
	rev1, nvl := nvml.COMPUTE_INSTANCE_PROFILE_1_SLICE_REV1, nvml.COMPUTE_INSTANCE_PROFILE_7_SLICE_NVL
	for enum, want := range map[int][]shape{
		g1: {{0, 1, 1}, {rev1, 1, 1}},
		g2: {{0, 1, 2}, {1, 2, 1}},
		g3: {{0, 1, 3}, {1, 2, 1}, {2, 3, 1}},
		g4: {{0, 1, 4}, {1, 2, 2}, {3, 4, 1}},
		g7: {{0, 1, 7}, {1, 2, 3}, {2, 3, 2}, {3, 4, 1}, {4, 7, 1}},
	} {
		for _, b := range migBoards() {
			t.Run(fmt.Sprintf("%s/%d", b.Name, enum), func(t *testing.T) {
				d := handle(t, newNode(t, "1x"+b.Name+",mig=on"), 0)
				gi, ret := d.CreateGpuInstance(profile(t, d, enum))
				require.Equal(t, nvml.SUCCESS, ret)
				want := want
				if enum == g7 && b.Architecture == "Hopper" {
					want = append(want[:len(want):len(want)], shape{nvl, 7, 1})
				}
				var got []shape
				for e := range nvml.COMPUTE_INSTANCE_PROFILE_COUNT {
					info, ret := gi.GetComputeInstanceProfileInfo(e, 0)
					if ret == nvml.ERROR_NOT_SUPPORTED {
						continue
					}
					require.Equal(t, nvml.SUCCESS, ret)
					got = append(got, shape{int(info.Id), int(info.SliceCount), int(info.InstanceCount)})
				}
				require.Equal(t, want, got)
				_, ret = gi.GetComputeInstanceProfileInfo(nvml.COMPUTE_INSTANCE_PROFILE_COUNT, 0)
				require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret)
				_, ret = gi.GetComputeInstanceProfileInfo(0, 1)
				require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret)
			})
		}
	}
}

func TestComputeInstances(t *testing.T) {
	d := handle(t, newNode(t, "1xH100-SXM5-80GB,mig=on"), 0)
	gi, ret := d.CreateGpuInstance(profile(t, d, g3))
	require.Equal(t, nvml.SUCCESS, ret)
	one, ret := gi.GetComputeInstanceProfileInfo(nvml.COMPUTE_INSTANCE_PROFILE_1_SLICE, 0)
	require.Equal(t, nvml.SUCCESS, ret)
	two, ret := gi.GetComputeInstanceProfileInfo(nvml.COMPUTE_INSTANCE_PROFILE_2_SLICE, 0)
	require.Equal(t, nvml.SUCCESS, ret)
	_, ret = gi.CreateComputeInstance(&nvml.ComputeInstanceProfileInfo{Id: nvml.COMPUTE_INSTANCE_PROFILE_4_SLICE})
	require.Equal(t, nvml.ERROR_NOT_SUPPORTED, ret)

	_, ret = gi.CreateComputeInstanceWithPlacement(&two, &nvml.ComputeInstancePlacement{Start: 0, Size: 2})
	require.Equal(t, nvml.SUCCESS, ret)
	_, ret = gi.CreateComputeInstanceWithPlacement(&one, &nvml.ComputeInstancePlacement{Start: 1, Size: 1})
	require.Equal(t, nvml.ERROR_INSUFFICIENT_RESOURCES, ret)
	_, ret = gi.CreateComputeInstanceWithPlacement(&two, &nvml.ComputeInstancePlacement{Start: 1, Size: 2})
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret)
	left, ret := gi.GetComputeInstanceRemainingCapacity(&one)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, 1, left)
	ci, ret := gi.CreateComputeInstance(&one)
	require.Equal(t, nvml.SUCCESS, ret)
	info, ret := ci.GetInfo()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.ComputeInstancePlacement{Start: 2, Size: 1}, info.Placement)
	require.Equal(t, uint32(1), info.Id)
	_, ret = gi.CreateComputeInstance(&one)
	require.Equal(t, nvml.ERROR_INSUFFICIENT_RESOURCES, ret)

	found, ret := gi.GetComputeInstances(&one)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Len(t, found, 1, "of one profile")
	mig, ret := d.GetMigDeviceHandleByIndex(1)
	require.Equal(t, nvml.SUCCESS, ret)
	attributes, ret := mig.GetAttributes()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, uint32(1), attributes.ComputeInstanceSliceCount)
	require.Equal(t, uint32(3), attributes.GpuInstanceSliceCount)
	require.Equal(t, uint32(20), attributes.MultiprocessorCount)
}

func TestDestroyRules(t *testing.T) {
	n := newNode(t, "1xH100-SXM5-80GB,mig=on")
	d := handle(t, n, 0)
	gi, ci := create(t, d, g2, 0)
	require.Equal(t, nvml.ERROR_IN_USE, gi.Destroy(), "it has a compute instance")

	require.NoError(t, n.AddClient("0", Client{PID: 77, Command: "python", GI: ptr(3), CI: ptr(0), Process: true}))
	require.Equal(t, nvml.ERROR_IN_USE, ci.Destroy(), "a process runs")
	for _, list := range []func() ([]nvml.ProcessInfo, nvml.Return){d.GetComputeRunningProcesses, func() ([]nvml.ProcessInfo, nvml.Return) {
		mig, ret := d.GetMigDeviceHandleByIndex(0)
		require.Equal(t, nvml.SUCCESS, ret)
		return mig.GetComputeRunningProcesses()
	}} {
		processes, ret := list()
		require.Equal(t, nvml.SUCCESS, ret)
		require.Len(t, processes, 1)
		require.Equal(t, uint32(77), processes[0].Pid)
		require.Equal(t, uint32(3), processes[0].GpuInstanceId)
		require.Equal(t, uint32(0), processes[0].ComputeInstanceId)
	}
	require.NoError(t, n.RemoveClient("0", 77))
	require.Equal(t, nvml.SUCCESS, ci.Destroy())

	// "CI gone, GI stuck": a leaked handle that no list knows.
	require.NoError(t, n.AddClient("0", Client{PID: 78, GI: ptr(3)}))
	processes, ret := d.GetComputeRunningProcesses()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Empty(t, processes)
	require.Equal(t, nvml.ERROR_IN_USE, gi.Destroy())
	require.NoError(t, n.RemoveClient("0", 78))
	require.Equal(t, nvml.SUCCESS, gi.Destroy())
	require.Empty(t, stateOf(t, n).GPUs[0].Instances)
}

func TestClientRules(t *testing.T) {
	n := newNode(t, "1xH100-SXM5-80GB,1xL40S,mig=on")
	_, err := n.CreateInstance("0", "1g.10gb", nil, false)
	require.NoError(t, err)
	require.NoError(t, n.AddClient("1", Client{PID: 5, Process: true}))
	for name, test := range map[string]struct {
		gpu    string
		client Client
		want   nvml.Return
	}{
		"CUDA on a board in MIG mode":       {"0", Client{PID: 1, Process: true}, nvml.ERROR_INVALID_ARGUMENT},
		"CUDA without a compute instance":   {"0", Client{PID: 1, GI: ptr(7), Process: true}, nvml.ERROR_INVALID_ARGUMENT},
		"compute instance that is not":      {"0", Client{PID: 1, GI: ptr(7), CI: ptr(0), Process: true}, nvml.ERROR_NOT_FOUND},
		"GPU instance that is not":          {"0", Client{PID: 1, GI: ptr(8)}, nvml.ERROR_NOT_FOUND},
		"compute instance of no instance":   {"0", Client{PID: 1, CI: ptr(0)}, nvml.ERROR_INVALID_ARGUMENT},
		"no PID":                            {"0", Client{}, nvml.ERROR_INVALID_ARGUMENT},
		"twice":                             {"1", Client{PID: 5}, nvml.ERROR_INVALID_ARGUMENT},
		"no such GPU":                       {"2", Client{PID: 1}, nvml.ERROR_NOT_FOUND},
		"no such GPU by name":               {"GPU-1", Client{PID: 1}, nvml.ERROR_NOT_FOUND},
		"a negative index is no GPU either": {"-1", Client{PID: 1}, nvml.ERROR_NOT_FOUND},
	} {
		require.ErrorIs(t, n.AddClient(test.gpu, test.client), test.want, name)
	}
	require.ErrorIs(t, n.RemoveClient("0", 5), nvml.ERROR_NOT_FOUND)
}
