package gpu_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

func h100(t *testing.T) gpu.Board {
	t.Helper()
	b, err := gpu.BoardByName("h100-sxm5-80gb")
	require.NoError(t, err)
	return b
}

func profile(t *testing.T, b gpu.Board, name string) gpu.Profile {
	t.Helper()
	g := gpu.GPU{Profiles: b.Profiles}
	p, ok := g.Profile(name)
	require.True(t, ok, "board %s has no profile %s", b.Name, name)
	return p
}

func TestLeastBlockingOrder(t *testing.T) {
	b := h100(t)
	for name, want := range map[string][]int{
		"1g.10gb":    {6, 4, 5, 0, 1, 2, 3},
		"1g.10gb+me": {6, 4, 5, 0, 1, 2, 3},
		"2g.20gb":    {4, 0, 2},
		"3g.40gb":    {4, 0},
		"4g.40gb":    {0},
		"7g.80gb":    {0},
	} {
		t.Run(name, func(t *testing.T) {
			var starts []int
			for _, at := range gpu.LeastBlocking(profile(t, b, name), b.Profiles) {
				starts = append(starts, at.Start)
			}
			require.Equal(t, want, starts)
		})
	}
}

func TestPlacementsOverlapAsTheirSlicesDo(t *testing.T) {
	for _, b := range gpu.Boards() {
		all := gpu.AllPlaced(b.Profiles)
		for _, x := range all {
			for _, y := range all {
				shared := false
				for s := range 8 {
					in := func(p gpu.Placement) bool { return s >= p.Start && s < p.Start+p.Size }
					shared = shared || in(x.Placement) && in(y.Placement)
				}
				require.Equal(t, shared, x.Placement.Overlaps(y.Placement), "%s and %s", x.Placement, y.Placement)
			}
		}
	}
}

func TestDevicesExcludeOneAnother(t *testing.T) {
	whole := gpu.Device{Type: gpu.TypeGPU, GPU: "a"}
	low := gpu.Device{Type: gpu.TypeMIG, GPU: "a", Profile: "3g.40gb", Placement: gpu.Placement{Start: 0, Size: 4}}
	high := gpu.Device{Type: gpu.TypeMIG, GPU: "a", Profile: "3g.40gb", Placement: gpu.Placement{Start: 4, Size: 4}}
	first := gpu.Device{Type: gpu.TypeTimeSlice, GPU: "a"}
	second := gpu.Device{Type: gpu.TypeTimeSlice, GPU: "a", Replica: 1}
	other := gpu.Device{Type: gpu.TypeGPU, GPU: "b"}

	for _, d := range []gpu.Device{whole, low, high, first, second} {
		require.True(t, d.Overlaps(d), "%s with itself", d)
		require.False(t, d.Overlaps(other), "%s with another GPU", d)
		if d != whole {
			require.True(t, whole.Overlaps(d), "the whole GPU with %s", d)
		}
	}
	require.False(t, low.Overlaps(high))
	require.False(t, first.Overlaps(second))
	require.True(t, low.Overlaps(first))
}

func TestMediaEnginesCollide(t *testing.T) {
	h100, err := gpu.BoardByName("H100-SXM5-80GB")
	require.NoError(t, err)
	g := gpu.GPU{UUID: "a", Profiles: h100.Profiles}
	device := func(profile string, start, size int) gpu.Device {
		return gpu.Device{Type: gpu.TypeMIG, GPU: "a", Profile: profile, Placement: gpu.Placement{Start: start, Size: size}}
	}
	elsewhere := device("1g.10gb+me", 6, 1)
	elsewhere.GPU = "b"
	for _, c := range []struct {
		a, b    gpu.Device
		collide bool
	}{
		{device("1g.10gb+me", 0, 1), device("1g.10gb+me", 6, 1), true},
		{device("1g.10gb+me", 0, 1), device("1g.10gb", 6, 1), false},
		{device("1g.10gb+me", 0, 1), device("1g.10gb", 0, 1), true},
		{device("1g.10gb+me", 6, 1), device("7g.80gb", 0, 8), true},
		{device("1g.10gb+me", 6, 1), gpu.Device{Type: gpu.TypeGPU, GPU: "a"}, true},
		{device("1g.10gb+me", 6, 1), gpu.Device{Type: gpu.TypeTimeSlice, GPU: "a"}, true},
		{device("3g.40gb", 0, 4), device("3g.40gb", 4, 4), false},
		{device("1g.10gb+me", 0, 1), elsewhere, false},
		{gpu.Device{Type: gpu.TypeTimeSlice, GPU: "a"}, gpu.Device{Type: gpu.TypeTimeSlice, GPU: "a", Replica: 1}, false},
	} {
		require.Equal(t, c.collide, g.Collide(c.a, c.b), "%s and %s", c.a, c.b)
		require.Equal(t, c.collide, g.Collide(c.b, c.a), "%s and %s", c.b, c.a)
	}

	g.Instances = []gpu.Instance{
		{GPU: "a", ID: 3, Profile: "2g.20gb", Placement: gpu.Placement{Start: 0, Size: 2}},
		{GPU: "a", ID: 7, Profile: "1g.10gb+me", Placement: gpu.Placement{Start: 2, Size: 1}},
	}
	for _, c := range []struct {
		device  gpu.Device
		blocker int
	}{
		{device("1g.10gb+me", 6, 1), 7}, {device("1g.10gb", 6, 1), 0}, {device("1g.10gb", 1, 1), 3}, {device("7g.80gb", 0, 8), 3},
	} {
		blocker, ok := g.Blocker(c.device)
		require.Equal(t, c.blocker != 0, ok, c.device)
		require.Equal(t, c.blocker, blocker.ID, c.device)
	}
}

func TestNamesAreStableAndDistinct(t *testing.T) {
	short := "GPU-3f2a91c4-0000-4000-8000-000000000001"
	twin := "GPU-3f2a91c4-0000-4000-8000-000000000002"
	other := "GPU-aa2a91c4-0000-4000-8000-000000000001"

	n := gpu.NewNames([]string{short, other})
	require.Equal(t, "gpu-3f2a91c4", n.GPU(short))
	require.Equal(t, "gpu-3f2a91c4-mig-1g10gb-4", n.Device(gpu.Device{Type: gpu.TypeMIG, GPU: short, Profile: "1g.10gb", Placement: gpu.Placement{Start: 4, Size: 1}}))
	require.Equal(t, "gpu-3f2a91c4-mig-1g10gb-me-4", n.Device(gpu.Device{Type: gpu.TypeMIG, GPU: short, Profile: "1g.10gb+me", Placement: gpu.Placement{Start: 4, Size: 1}}))
	require.Equal(t, "gpu-3f2a91c4-timeslice-2", n.Device(gpu.Device{Type: gpu.TypeTimeSlice, GPU: short, Replica: 2}))

	n = gpu.NewNames([]string{short, twin, other})
	require.NotEqual(t, n.GPU(short), n.GPU(twin))
	require.Equal(t, "gpu-aa2a91c4", n.GPU(other), "a collision of others changes no name")
}

func TestCatalogueNamesEveryDeviceOnce(t *testing.T) {
	var gpus []gpu.GPU
	want := 0
	for i, b := range gpu.Boards() {
		gpus = append(gpus, gpu.GPU{UUID: "GPU-" + string(rune('a'+i)) + "0000000-0000", Profiles: b.Profiles})
		want += 1 + len(gpu.AllPlaced(b.Profiles)) + gpu.MaxReplicas
	}
	require.Len(t, gpu.Catalogue(gpus), want)
}

func TestSameInstanceNeedsEveryPartOfItsIdentity(t *testing.T) {
	i := gpu.Instance{GPU: "a", Profile: "1g.10gb", Placement: gpu.Placement{Start: 4, Size: 1}, ID: 9, Compute: []gpu.ComputeInstance{{ID: 0, UUID: "MIG-x"}}}
	require.True(t, i.Same(i))
	for what, change := range map[string]func(*gpu.Instance){
		"GPU":                   func(o *gpu.Instance) { o.GPU = "b" },
		"profile":               func(o *gpu.Instance) { o.Profile = "1g.20gb" },
		"placement":             func(o *gpu.Instance) { o.Placement.Start = 5 },
		"GPU instance id":       func(o *gpu.Instance) { o.ID = 10 },
		"compute instance id":   func(o *gpu.Instance) { o.Compute = []gpu.ComputeInstance{{ID: 1, UUID: "MIG-x"}} },
		"compute instance UUID": func(o *gpu.Instance) { o.Compute = []gpu.ComputeInstance{{ID: 0, UUID: "MIG-y"}} },
		"no compute instance":   func(o *gpu.Instance) { o.Compute = nil },
	} {
		o := i
		change(&o)
		require.False(t, i.Same(o), "differs in its %s", what)
	}
}

func TestConditionConcerns(t *testing.T) {
	at := func(start, size int) gpu.Device {
		return gpu.Device{Type: gpu.TypeMIG, GPU: "a", Profile: "p", Placement: gpu.Placement{Start: start, Size: size}}
	}
	whole := gpu.Condition{Device: gpu.Device{GPU: "a"}}
	part := gpu.Condition{Device: at(4, 1)}
	require.True(t, whole.Concerns(at(0, 1)))
	require.False(t, whole.Concerns(gpu.Device{Type: gpu.TypeGPU, GPU: "b"}))
	require.True(t, part.Concerns(at(4, 4)))
	require.False(t, part.Concerns(at(0, 4)))
	require.True(t, part.Concerns(gpu.Device{Type: gpu.TypeTimeSlice, GPU: "a"}))
}

func TestUnknownBoardNamesTheKnown(t *testing.T) {
	_, err := gpu.BoardByName("B200")
	require.ErrorContains(t, err, "H200-SXM-141GB")
}
