package pool_test

import (
	"cmp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
	"github.com/kerf-project/kerf/pkg/pool/pooltest"
)

// Of all arrival orders of all sets of instances that a GPU could hold, the
// scheduler places at least 86 % with our order, and 75 % with ascending placements.
func TestOrderOfPlacements(t *testing.T) {
	c := h100(1, 4)
	g := c.Node.GPUs[0]
	profiles := []string{"1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb"}
	ours := pool.Desired(g, c.Policy, nil)
	ascending := slices.Clone(ours)
	slices.SortStableFunc(ascending, func(a, b pool.Device) int {
		if a.Type != gpu.TypeMIG || a.Profile != b.Profile {
			return 0
		}
		return cmp.Compare(a.Placement.Start, b.Placement.Start)
	})

	rate := func(offer pool.Offer) float64 {
		resources, err := pool.Build(c.Node, map[string]pool.Offer{g.UUID: offer}, nil)
		require.NoError(t, err)
		s := pooltest.NewScheduler(c.Node.Name, pool.Slices(c.Node, resources))
		var placed, all int
		var arrive func(wanted []string, ok bool)
		arrive = func(wanted []string, ok bool) {
			for _, p := range profiles {
				next := append(slices.Clone(wanted), p)
				if !feasible(g, next, nil) {
					continue
				}
				before, fits := s.Allocated, ok
				if fits {
					_, fits = s.Allocate(t, pooltest.Claim(pooltest.ProfileClass(p)))
				}
				// A lone instance always fits and says nothing.
				if len(next) > 1 {
					all++
				}
				if len(next) > 1 && fits {
					placed++
				}
				arrive(next, fits)
				s.Allocated = before
			}
		}
		arrive(nil, true)
		t.Logf("%d of %d arrival orders placed: %.1f %%", placed, all, 100*float64(placed)/float64(all))
		return float64(placed) / float64(all)
	}
	base, got := rate(ascending), rate(ours)
	require.Greater(t, got, base)
	require.GreaterOrEqual(t, got, 0.86)
}

// feasible is brute force: whether any placements hold all the profiles at once.
func feasible(g gpu.GPU, wanted []string, taken []gpu.Placement) bool {
	if len(wanted) == 0 {
		return true
	}
	p, _ := g.Profile(wanted[0])
	for _, at := range p.Placements {
		if !slices.ContainsFunc(taken, at.Overlaps) && feasible(g, wanted[1:], append(slices.Clone(taken), at)) {
			return true
		}
	}
	return false
}

// Whole, MIG and shared exclude one another on one GPU, whichever comes first,
// also within one claim and between the claims of one pod.
func TestKindsExcludeOneAnother(t *testing.T) {
	kinds := []string{pooltest.WholeClass, pooltest.MIGClass, pooltest.ReplicaClass}
	for _, first := range kinds {
		for _, second := range kinds {
			together := first == second && first != pooltest.WholeClass
			t.Run(first+" then "+second, func(t *testing.T) {
				s := newScheduler(t, h100(1, 4))
				_, ok := s.Allocate(t, pooltest.Claim(first))
				require.True(t, ok)
				_, ok = s.Allocate(t, pooltest.Claim(second))
				require.Equal(t, together, ok, "one after the other")

				s = newScheduler(t, h100(1, 4))
				_, ok = s.Find(t, pooltest.Claim(first, second))
				require.Equal(t, together, ok, "within a claim")
				_, ok = s.Find(t, pooltest.Claim(first), pooltest.Claim(second))
				require.Equal(t, together, ok, "in two claims of a pod")

				s = newScheduler(t, h100(2, 4))
				names, ok := s.Allocate(t, pooltest.Claim(first, second))
				require.True(t, ok, "with a second GPU")
				require.Equal(t, together, board(names[0]) == board(names[1]))
			})
		}
	}
}

// board is the GPU's part of a name.
func board(name string) string { return name[:len("gpu-3f2a91c4")] }

func TestReplicas(t *testing.T) {
	for _, n := range []int{0, 1, 4, gpu.MaxReplicas} {
		s := newScheduler(t, h100(1, n))
		for range n {
			_, ok := s.Allocate(t, pooltest.Claim(pooltest.ReplicaClass))
			require.True(t, ok)
		}
		_, ok := s.Allocate(t, pooltest.Claim(pooltest.ReplicaClass))
		require.False(t, ok, "%d replicas and one more", n)
	}
}

func TestSevenSmallestFillAGPU(t *testing.T) {
	s := newScheduler(t, h100(2, 4))
	for range 7 {
		names, ok := s.Allocate(t, pooltest.Claim(pooltest.ProfileClass("1g.10gb")))
		require.True(t, ok)
		require.True(t, strings.HasPrefix(names[0], "gpu-3f2a91c4-"), names[0])
	}
	names, ok := s.Allocate(t, pooltest.Claim(pooltest.ProfileClass("1g.10gb")))
	require.True(t, ok)
	require.True(t, strings.HasPrefix(names[0], "gpu-402b92c5-"), "the first GPU is full: %s", names[0])
}

func TestOneSetOfMediaExtensions(t *testing.T) {
	c := h100(1, 0)
	c.Policy.MIG.MediaExtensions = true
	s := newScheduler(t, c)
	_, ok := s.Allocate(t, pooltest.Claim(pooltest.ProfileClass("1g.10gb+me"), pooltest.ProfileClass("1g.10gb")))
	require.True(t, ok)
	_, ok = s.Allocate(t, pooltest.Claim(pooltest.ProfileClass("1g.10gb+me")))
	require.False(t, ok)
}

// The first device of the pool is a whole GPU, and a selector on the memory
// gets the smallest instance that has it.
func TestFirstFit(t *testing.T) {
	s := newScheduler(t, h100(8, 4))
	names, ok := s.Find(t, pooltest.Claim(pooltest.WholeClass))
	require.True(t, ok)
	require.Equal(t, "gpu-3f2a91c4", names[0].Device.String())

	big := pooltest.Claim(pooltest.MIGClass)
	big.Spec.Devices.Requests[0].Exactly.Selectors = []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{
		Expression: `device.capacity["gpu.nvidia.com"].memory.compareTo(quantity("30Gi")) >= 0`,
	}}}
	names, ok = s.Find(t, big)
	require.True(t, ok)
	require.Equal(t, "gpu-3f2a91c4-mig-3g40gb-4", names[0].Device.String())
}

func TestFirstAvailable(t *testing.T) {
	c := pooltest.Claim()
	c.Spec.Devices.Requests = []resourceapi.DeviceRequest{{Name: "r"}}
	for i, class := range []string{pooltest.ProfileClass("3g.40gb"), pooltest.ProfileClass("2g.20gb"), pooltest.ReplicaClass} {
		c.Spec.Devices.Requests[0].FirstAvailable = append(c.Spec.Devices.Requests[0].FirstAvailable, resourceapi.DeviceSubRequest{
			Name: string(rune('a' + i)), DeviceClassName: class, AllocationMode: resourceapi.DeviceAllocationModeExactCount, Count: 1,
		})
	}
	for _, x := range []struct{ taken, want string }{
		{"", "gpu-3f2a91c4-mig-3g40gb-4"},
		{pooltest.ProfileClass("4g.40gb"), "gpu-3f2a91c4-mig-3g40gb-4"},
		{pooltest.ReplicaClass, "gpu-3f2a91c4-timeslice-1"},
		{pooltest.WholeClass, ""},
	} {
		s := newScheduler(t, h100(1, 4))
		if x.taken != "" {
			_, ok := s.Allocate(t, pooltest.Claim(x.taken))
			require.True(t, ok)
		}
		names, ok := s.Allocate(t, c)
		require.Equal(t, x.want != "", ok)
		if ok {
			require.Equal(t, []string{x.want}, names)
		}
	}
	s := newScheduler(t, h100(1, 4))
	_, ok := s.Allocate(t, pooltest.Claim(pooltest.ProfileClass("4g.40gb"), pooltest.ProfileClass("1g.10gb")))
	require.True(t, ok)
	names, ok := s.Allocate(t, c)
	require.True(t, ok)
	require.Equal(t, []string{"gpu-3f2a91c4-mig-2g20gb-4"}, names)
}

// matchAttribute puts instances on one GPU, distinctAttribute on different
// ones, whatever their types are.
func TestParentUUID(t *testing.T) {
	parent := resourceapi.FullyQualifiedName("gpu.nvidia.com/parentUUID")
	together := pooltest.Claim(pooltest.ProfileClass("3g.40gb"), pooltest.ProfileClass("4g.40gb"))
	together.Spec.Devices.Constraints = []resourceapi.DeviceConstraint{{MatchAttribute: &parent}}

	s := newScheduler(t, h100(2, 4))
	_, ok := s.Allocate(t, pooltest.Claim(pooltest.ProfileClass("1g.10gb"), pooltest.ProfileClass("2g.20gb"))) // blocks the 3g or the 4g of the first
	require.True(t, ok)
	names, ok := s.Allocate(t, together)
	require.True(t, ok)
	require.Equal(t, []string{"gpu-402b92c5-mig-3g40gb-4", "gpu-402b92c5-mig-4g40gb-0"}, names)
	_, ok = s.Allocate(t, together)
	require.False(t, ok)

	apart := pooltest.Claim(pooltest.WholeClass, pooltest.MIGClass, pooltest.ReplicaClass)
	apart.Spec.Devices.Constraints = []resourceapi.DeviceConstraint{{DistinctAttribute: &parent}}
	s = newScheduler(t, h100(3, 4))
	_, ok = s.Allocate(t, apart)
	require.True(t, ok)
}

// A condition keeps new claims away from exactly the devices that it concerns.
func TestTaints(t *testing.T) {
	c := h100(1, 4)
	c.Conditions = []gpu.Condition{{
		Device: gpu.Device{Type: gpu.TypeMIG, GPU: c.Node.GPUs[0].UUID, Placement: gpu.Placement{Start: 6, Size: 2}},
		Reason: "Releasing", Effect: gpu.EffectNoSchedule, Since: time.Unix(1, 0),
	}}
	s := newScheduler(t, c)
	for range 6 {
		names, ok := s.Allocate(t, pooltest.Claim(pooltest.ProfileClass("1g.10gb")))
		require.True(t, ok)
		require.NotEqual(t, "gpu-3f2a91c4-mig-1g10gb-6", names[0])
	}
	for _, class := range []string{pooltest.ProfileClass("1g.10gb"), pooltest.WholeClass, pooltest.ReplicaClass} {
		_, ok := s.Find(t, pooltest.Claim(class))
		require.False(t, ok, class)
	}
}

// Selectors written for another driver name's attributes go on working under ours.
func TestOtherDriverName(t *testing.T) {
	c := h100(1, 4)
	c.Node.Driver = "gpu.kerf.dev"
	s := newScheduler(t, c)
	names, ok := s.Find(t, claimBySelector(`device.driver == "gpu.kerf.dev" && device.attributes["gpu.nvidia.com"].type == "mig" &&
		device.attributes["gpu.nvidia.com"].driverVersion.isGreaterThan(semver("550.0.0")) &&
		device.capacity["gpu.nvidia.com"].multiprocessors.compareTo(quantity("60")) >= 0`))
	require.True(t, ok)
	require.Equal(t, "gpu-3f2a91c4-mig-3g40gb-4", names[0].Device.String())
}

// claimBySelector asks by its own selector: its class has none.
func claimBySelector(expression string) *resourceapi.ResourceClaim {
	c := pooltest.Claim(pooltest.AnyClass)
	c.Spec.Devices.Requests[0].Exactly.Selectors = []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: expression}}}
	return c
}

func BenchmarkBuild(b *testing.B) {
	c := h100(8, 4)
	offers := map[string]pool.Offer{}
	for _, g := range c.Node.GPUs {
		offers[g.UUID] = pool.Desired(g, c.Policy, nil)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := pool.Build(c.Node, offers, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAllocate is one scheduling attempt on one node of 8 boards with 4
// replicas each: for the first device of an empty pool, for the last free
// instance of an almost full one, and in vain for a full one.
func BenchmarkAllocate(b *testing.B) {
	smallest := pooltest.Claim(pooltest.ProfileClass("1g.10gb"))
	fill := func(b *testing.B, n int) *pooltest.Scheduler {
		s := newScheduler(b, h100(8, 4))
		for range n {
			if _, ok := s.Allocate(b, smallest); !ok {
				b.Fatal("full too early")
			}
		}
		return s
	}
	for _, x := range []struct {
		name  string
		taken int
		claim *resourceapi.ResourceClaim
		fits  bool
	}{
		{"empty/whole", 0, pooltest.Claim(pooltest.WholeClass), true},
		{"empty/1g", 0, smallest, true},
		{"empty/replica", 0, pooltest.Claim(pooltest.ReplicaClass), true},
		{"almost-full/1g", 8*7 - 1, smallest, true},
		{"full/1g", 8 * 7, smallest, false},
		{"full/replica", 8 * 7, pooltest.Claim(pooltest.ReplicaClass), false},
	} {
		b.Run(x.name, func(b *testing.B) {
			s := fill(b, x.taken)
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := s.Find(b, x.claim); ok != x.fits {
					b.Fatal("unexpected result")
				}
			}
		})
	}
}

// newScheduler is the scheduler of the case's node.
func newScheduler(tb testing.TB, c pooltest.Case) *pooltest.Scheduler {
	tb.Helper()
	objects, err := c.Slices()
	require.NoError(tb, err)
	return pooltest.NewScheduler(c.Node.Name, objects)
}

// h100 is a node of n boards that offer everything but media extensions.
func h100(n, replicas int) pooltest.Case {
	var boards []gpu.Board
	for range n {
		boards = append(boards, gpu.Boards()[2])
	}
	return pooltest.Case{Node: pooltest.Node(boards...), Policy: pooltest.Policy(onDemand, false, replicas)}
}
