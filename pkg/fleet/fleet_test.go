package fleet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

const (
	wholeClass   = "gpu.nvidia.com"
	replicaClass = "timeslice.gpu.nvidia.com"
)

func profile(name string) string { return "mig-" + name + ".gpu.nvidia.com" }

// snapshot has a node for each list of boards: node-0, node-1, ...
func snapshot(t testing.TB, boards ...string) Snapshot {
	t.Helper()
	s := Snapshot{Classes: DefaultClasses(pool.DefaultDriver)}
	config := &configv1alpha1.NodeConfiguration{Policies: []configv1alpha1.Policy{{
		MIG: configv1alpha1.MIG{Mode: configv1alpha1.MIGOnDemand}, TimeSlicing: configv1alpha1.TimeSlicing{Replicas: 2},
	}}}
	for i, text := range boards {
		parsed, err := gpu.ParseBoards(text)
		require.NoError(t, err)
		slices, err := Publish(fmt.Sprintf("node-%d", i), pool.DefaultDriver, parsed, config)
		require.NoError(t, err)
		s.Slices = append(s.Slices, slices...)
	}
	return s
}

func devicesOf(slices []*resourceapi.ResourceSlice) []resourceapi.Device {
	var all []resourceapi.Device
	for _, s := range slices {
		all = append(all, s.Spec.Devices...)
	}
	return all
}

// claim asks for one device of each class.
func claim(name string, classNames ...string) *resourceapi.ResourceClaim {
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}
	for i, class := range classNames {
		c.Spec.Devices.Requests = append(c.Spec.Devices.Requests, resourceapi.DeviceRequest{
			Name: fmt.Sprintf("r%d", i), Exactly: &resourceapi.ExactDeviceRequest{DeviceClassName: class},
		})
	}
	return setDefaults(c)
}

func alone(c *resourceapi.ResourceClaim) Pod { return Pod{Claims: []*resourceapi.ResourceClaim{c}} }

// place takes the devices of a claim, which must fit.
func place(t testing.TB, f *Fleet, c *resourceapi.ResourceClaim) (node string, placed *resourceapi.ResourceClaim) {
	t.Helper()
	node, all, err := f.Place(t.Context(), alone(c))
	require.NoError(t, err)
	return node, all[0]
}

func TestPlaceTriesNodesInOrder(t *testing.T) {
	s := snapshot(t, "H100-SXM5-80GB", "H100-SXM5-80GB", "L40S")
	s.Nodes = []*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{"zone": "a"}}}}
	f := New(s)
	var names []string
	for _, n := range f.Nodes() {
		names = append(names, n.Name)
	}
	require.Equal(t, []string{"node-1", "node-0", "node-2"}, names, "known nodes first, then those that slices name")

	node, first := place(t, f, claim("a", profile("7g.80gb")))
	require.Equal(t, "node-1", node)
	node, _ = place(t, f, claim("b", profile("7g.80gb")))
	require.Equal(t, "node-0", node)
	_, _, err := f.Place(t.Context(), alone(claim("c", profile("7g.80gb"))))
	require.ErrorIs(t, err, ErrNoFit)
	f.Release(first)
	node, _ = place(t, f, claim("c", profile("7g.80gb")))
	require.Equal(t, "node-1", node, "a release makes the node be tried again")
	node, _ = place(t, f, claim("d", wholeClass))
	require.Equal(t, "node-2", node)

	_, _, err = f.Place(t.Context(), Pod{Spec: &corev1.PodSpec{NodeSelector: map[string]string{"zone": "a"}}, Claims: []*resourceapi.ResourceClaim{claim("e", wholeClass)}})
	require.ErrorIs(t, err, ErrNoFit)
}

// Skipping nodes changes no result: random claims come and go, and each is placed
// where asking the allocator on every node places it.
func TestSkippingChangesNothing(t *testing.T) {
	s := snapshot(t, "2xH100-SXM5-80GB", "H100-SXM5-80GB", "2xL40S")
	shapes := []string{profile("1g.10gb"), profile("2g.20gb"), profile("3g.40gb"), profile("4g.40gb"), wholeClass, replicaClass}
	random := rand.New(rand.NewPCG(1, 2))
	f := New(s)
	var all []*resourceapi.ResourceClaim
	refusals := 0
	for i := range 600 {
		if len(all) > 0 && random.IntN(3) == 0 {
			n := random.IntN(len(all))
			f.Release(all[n])
			all = slices.Delete(all, n, n+1)
			continue
		}
		c := claim(fmt.Sprint(i), shapes[random.IntN(len(shapes))])
		switch random.IntN(4) {
		case 0:
			c.Spec.Devices.Requests[0].Exactly.Count = 2
		case 1:
			c.Spec.Devices.Requests = append(c.Spec.Devices.Requests, resourceapi.DeviceRequest{Name: "r1", FirstAvailable: []resourceapi.DeviceSubRequest{
				{Name: "a", DeviceClassName: shapes[random.IntN(len(shapes))]}, {Name: "b", DeviceClassName: shapes[random.IntN(len(shapes))]},
			}})
			setDefaults(c)
		}
		var want []resourceapi.AllocationResult
		var wantNode string
		for _, n := range f.Nodes() {
			results, err := f.Allocate(t.Context(), n, c)
			if err == nil {
				want, wantNode = results, n.Name
				break
			}
			require.ErrorIs(t, err, ErrNoFit)
		}
		node, placed, err := f.Place(t.Context(), alone(c))
		require.Equal(t, wantNode, node)
		if want == nil {
			require.ErrorIs(t, err, ErrNoFit)
			refusals++
			continue
		}
		require.NoError(t, err)
		require.Equal(t, want[0], *placed[0].Status.Allocation)
		all = append(all, placed...)
	}
	require.Greater(t, refusals, 50)
}

func TestAllocateErrors(t *testing.T) {
	s := snapshot(t, "8xH100-SXM5-80GB")
	f := New(s)
	node := f.Nodes()[0]
	_, err := f.Allocate(t.Context(), node, claim("c", "gpu.example.com"))
	require.ErrorContains(t, err, "gpu.example.com")

	broken := claim("c", "any")
	f.classes["any"] = &resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "any"}}
	broken.Spec.Devices.Requests[0].Exactly.Selectors = []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: `device.attributes["gpu.nvidia.com"].profile == "1g.10gb"`}}}
	_, _, err = f.Place(t.Context(), alone(broken))
	require.ErrorContains(t, err, "no such key: profile")

	f.Search = 1000
	_, err = f.Allocate(t.Context(), node, claim("c", profile("1g.10gb"), profile("1g.10gb"), profile("1g.10gb"), profile("1g.10gb"), profile("7g.141gb")))
	require.ErrorIs(t, err, ErrSearch)
	_, _, err = f.Place(t.Context(), alone(claim("c", profile("1g.10gb"), profile("1g.10gb"), profile("1g.10gb"), profile("1g.10gb"), profile("7g.141gb"))))
	require.ErrorIs(t, err, ErrNoFit, "no device at all for one of the requests")
	small := slices.Repeat([]string{profile("1g.10gb")}, 8)
	two := New(snapshot(t, "2xH100-SXM5-80GB"))
	two.Search = 1000
	_, _, err = two.Place(t.Context(), alone(claim("c", append(small, wholeClass)...)))
	require.ErrorIs(t, err, ErrSearch)
	_, err = f.Allocate(t.Context(), node, claim("c", profile("7g.141gb"), profile("1g.10gb"), profile("1g.10gb"), profile("1g.10gb"), profile("1g.10gb")))
	require.ErrorIs(t, err, ErrNoFit, "the scarcest first ends at once")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = f.Allocate(ctx, node, claim("c", wholeClass))
	require.ErrorIs(t, err, context.Canceled)
}

// Shares of a device are counted by share, and admin access takes nothing.
func TestSharesAndAdminAccess(t *testing.T) {
	yes, node := true, "node-0"
	memory := resourceapi.QualifiedName("memory")
	s := Snapshot{
		Classes: []*resourceapi.DeviceClass{{ObjectMeta: metav1.ObjectMeta{Name: "any"}}},
		Slices: []*resourceapi.ResourceSlice{{Spec: resourceapi.ResourceSliceSpec{
			Driver: "shared.example.com", NodeName: &node, Pool: resourceapi.ResourcePool{Name: node, ResourceSliceCount: 1},
			Devices: []resourceapi.Device{{
				Name: "a", AllowMultipleAllocations: &yes,
				Capacity: map[resourceapi.QualifiedName]resourceapi.DeviceCapacity{memory: {Value: resource.MustParse("10Gi")}},
			}},
		}}},
	}
	share := claim("share", "any")
	share.Spec.Devices.Requests[0].Exactly.Capacity = &resourceapi.CapacityRequirements{Requests: map[resourceapi.QualifiedName]resource.Quantity{memory: resource.MustParse("4Gi")}}
	f := New(s)
	_, first := place(t, f, share)
	_, second := place(t, f, share)
	require.NotEqual(t, first.Status.Allocation.Devices.Results[0].ShareID, second.Status.Allocation.Devices.Results[0].ShareID)
	_, _, err := f.Place(t.Context(), alone(share))
	require.ErrorIs(t, err, ErrNoFit)

	// A snapshot with the same claims says the same.
	s.Claims = []*resourceapi.ResourceClaim{first, second}
	_, _, err = New(s).Place(t.Context(), alone(share))
	require.ErrorIs(t, err, ErrNoFit)
	f.Release(first)
	place(t, f, share)

	f = New(snapshot(t, "L40S"))
	admin := claim("admin", wholeClass)
	admin.Spec.Devices.Requests[0].Exactly.AdminAccess = &yes
	place(t, f, admin)
	place(t, f, claim("c", wholeClass))
}

func TestTaintRules(t *testing.T) {
	s := snapshot(t, "2xL40S")
	name := devicesOf(s.Slices)[0].Name
	taint := resourceapi.DeviceTaint{Key: "example.com/maintenance", Effect: resourceapi.DeviceTaintEffectNoSchedule}
	s.TaintRules = []*resourceapi.DeviceTaintRule{
		{Spec: resourceapi.DeviceTaintRuleSpec{DeviceSelector: &resourceapi.DeviceTaintSelector{Device: &name}, Taint: taint}},
		{Spec: resourceapi.DeviceTaintRuleSpec{Taint: taint}},
	}
	f := New(s)
	_, c := place(t, f, claim("a", wholeClass))
	require.NotEqual(t, name, c.Status.Allocation.Devices.Results[0].Device)
	_, _, err := f.Place(t.Context(), alone(claim("b", wholeClass)))
	require.ErrorIs(t, err, ErrNoFit)
	require.Empty(t, devicesOf(s.Slices)[0].Taints, "the snapshot is nobody's to change")
}

// The smallest set is found among larger ones: seven small instances against three.
func TestEvictionsAreTheFewest(t *testing.T) {
	f := New(snapshot(t, "2xH100-SXM5-80GB"))
	for i := range 7 {
		place(t, f, claim(fmt.Sprint("small-", i), profile("1g.10gb")))
	}
	for i := range 3 {
		place(t, f, claim(fmt.Sprint("medium-", i), profile("2g.20gb")))
	}
	sets, err := f.Evictions(t.Context(), f.Nodes()[0], []*resourceapi.ResourceClaim{claim("whole", wholeClass)}, nil)
	require.NoError(t, err)
	require.Len(t, sets, 2)
	require.Len(t, sets[0], 3)
	require.Len(t, sets[1], 7)

	// Two requests on different GPUs.
	sets, err = f.Evictions(t.Context(), f.Nodes()[0], []*resourceapi.ResourceClaim{claim("two", wholeClass, wholeClass)}, nil)
	require.NoError(t, err)
	require.Len(t, sets, 1)
	require.Len(t, sets[0], 10)
}

func TestDevicesThatAreGoneAreNobodys(t *testing.T) {
	s := snapshot(t, "L40S")
	gone := claim("gone", wholeClass)
	gone.Status.Allocation = &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{
		{Request: "r0", Driver: pool.DefaultDriver, Pool: "node-0", Device: "gpu-long-gone"},
	}}}
	s.Claims = []*resourceapi.ResourceClaim{gone}
	place(t, New(s), claim("c", wholeClass))
}
