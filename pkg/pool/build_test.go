package pool_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
	"github.com/kerf-project/kerf/pkg/pool/pooltest"
)

func TestBuildErrors(t *testing.T) {
	c := h100(1, 0)
	c.Node.DriverVersion = "unknown"
	_, err := c.Slices()
	require.ErrorContains(t, err, "version of the NVIDIA driver")

	c = h100(1, 0)
	g := c.Node.GPUs[0]
	_, err = pool.Build(c.Node, map[string]pool.Offer{g.UUID: {{Device: gpu.Device{Type: gpu.TypeMIG, GPU: g.UUID, Profile: "1g.5gb"}}}}, nil)
	require.ErrorContains(t, err, "1g.5gb")

	crowded := gpu.Profile{Name: "1g.1gb"}
	for i := range 64 {
		crowded.Placements = append(crowded.Placements, gpu.Placement{Start: i, Size: 1})
	}
	c.Node.GPUs[0].Profiles = []gpu.Profile{crowded}
	_, err = c.Slices()
	require.ErrorContains(t, err, "a ResourceSlice holds 64")
}

// The API takes strict semantic versions only.
func TestDriverVersion(t *testing.T) {
	for reported, published := range map[string]string{"580.95.05": "580.95.5", "550.54.14": "550.54.14", "470.256": "470.256.0", "535.104.05.1": "535.104.5"} {
		c := h100(1, 0)
		c.Node.DriverVersion = reported
		objects, err := c.Slices()
		require.NoError(t, err)
		require.Equal(t, published, *objects[1].Spec.Devices[0].Attributes["driverVersion"].VersionValue)
	}
}

// What a board does not tell is left out rather than published as a value that
// devices of other boards would match.
func TestUnknownTopology(t *testing.T) {
	c := h100(1, 0)
	c.Node.GPUs[0].NUMANode, c.Node.GPUs[0].PCIeRoot = -1, ""
	objects, err := c.Slices()
	require.NoError(t, err)
	for _, d := range objects[1].Spec.Devices {
		require.NotContains(t, d.Attributes, resourceapi.QualifiedName("resource.kubernetes.io/numaNode"))
		require.NotContains(t, d.Attributes, resourceapi.QualifiedName("resource.kubernetes.io/pcieRoot"))
	}
}

// A GPU that changes what it offers, or falls ill, changes exactly one slice:
// that is what lets the pool keep its generation.
func TestChangeOfOneGPUIsOneUpdate(t *testing.T) {
	c := h100(9, 4)
	offers := map[string]pool.Offer{}
	for _, g := range c.Node.GPUs {
		offers[g.UUID] = pool.Desired(g, c.Policy, nil)
	}
	build := func(conditions ...gpu.Condition) []string {
		resources, err := pool.Build(c.Node, offers, conditions)
		require.NoError(t, err)
		var texts []string
		for _, o := range pool.Slices(c.Node, resources) {
			raw, err := json.Marshal(o)
			require.NoError(t, err)
			texts = append(texts, string(raw))
		}
		return texts
	}
	before := build()
	changed := func(after []string) int {
		require.Len(t, after, len(before))
		n := 0
		for i := range after {
			if after[i] != before[i] {
				n++
			}
		}
		return n
	}
	require.Zero(t, changed(build()))

	g := c.Node.GPUs[3]
	require.Equal(t, 1, changed(build(gpu.Condition{Device: gpu.Device{GPU: g.UUID}, Reason: "GPULost", Effect: gpu.EffectNoExecute, Since: time.Unix(1, 0)})))
	foreign := []gpu.Instance{pooltest.Instance(g, gpu.AllPlaced(g.Profiles)[0], 1)}
	for name, other := range map[string]pool.Offer{
		"off":      pool.Desired(g, pooltest.Policy(off, false, 4), nil),
		"kept on":  pool.Desired(g, pooltest.Policy(keepOn, false, 0), nil),
		"replicas": pool.Desired(g, pooltest.Policy(onDemand, false, gpu.MaxReplicas), nil),
		"foreign":  pool.Desired(g, c.Policy, foreign),
		"nothing":  nil,
	} {
		offers[g.UUID] = other
		require.Equal(t, 1, changed(build()), name)
	}
}

func TestTaintsOfADevice(t *testing.T) {
	c := h100(1, 0)
	board := gpu.Device{GPU: c.Node.GPUs[0].UUID}
	early, late := time.Date(2026, 1, 1, 0, 0, 0, 999, time.UTC), time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	taints := func(conditions ...gpu.Condition) []resourceapi.DeviceTaint {
		c.Conditions = conditions
		objects, err := c.Slices()
		require.NoError(t, err)
		return objects[1].Spec.Devices[0].Taints
	}
	condition := func(reason string, effect gpu.Effect, since time.Time) gpu.Condition {
		return gpu.Condition{Device: board, Reason: reason, Effect: effect, Since: since}
	}

	require.Empty(t, taints(condition("Throttled", gpu.EffectNone, early), condition("Unset", "", early)))

	got := taints(condition("Xid64", gpu.EffectNoSchedule, late), condition("Xid64", gpu.EffectNoSchedule, early), condition("Xid64", gpu.EffectNoSchedule, late))
	require.Len(t, got, 1, "one reason is one taint")
	require.Equal(t, "gpu.kerf.dev/Xid64", got[0].Key)
	require.Equal(t, early.Truncate(time.Second), got[0].TimeAdded.Time, "since the first")

	got = taints(condition("Xid64", gpu.EffectNoSchedule, early), condition("Xid64", gpu.EffectNoExecute, late))
	require.Len(t, got, 1)
	require.Equal(t, resourceapi.DeviceTaintEffectNoExecute, got[0].Effect)
	require.Equal(t, late, got[0].TimeAdded.Time, "since it evicts")

	var many []gpu.Condition
	for i := range 20 {
		many = append(many, condition(fmt.Sprintf("A%02d", i), gpu.EffectNoSchedule, early))
	}
	got = taints(append(many, condition("Z", gpu.EffectNoExecute, early))...)
	require.Len(t, got, resourceapi.DeviceTaintsMaxLength)
	require.Equal(t, "gpu.kerf.dev/Z", got[0].Key, "the severe one is not among those left out")
}

// The objects add up to one complete pool, and their names sort in their order.
func TestSlices(t *testing.T) {
	for _, c := range pooltest.Cases() {
		if len(c.Node.GPUs) < 16 && c.Name != "empty" {
			continue
		}
		objects, err := c.Slices()
		require.NoError(t, err)
		for i, o := range objects {
			require.EqualValues(t, len(objects), o.Spec.Pool.ResourceSliceCount)
			require.Equal(t, c.Node.Name, *o.Spec.NodeName)
			if i > 0 {
				require.Less(t, objects[i-1].Name, o.Name)
				require.False(t, len(objects[i-1].Spec.Devices) > 0 && len(o.Spec.SharedCounters) > 0, "counters come first")
			}
		}
	}
}

// What keeps the one set of media engines stands in the way of every profile that needs it, and of no other.
func TestTaintsOfMediaEngines(t *testing.T) {
	c := h100(1, 0)
	c.Policy.MIG.MediaExtensions = true
	held := gpu.Device{Type: gpu.TypeMIG, GPU: c.Node.GPUs[0].UUID, Profile: "1g.10gb+me", Placement: gpu.Placement{Start: 0, Size: 1}}
	c.Conditions = []gpu.Condition{{Device: held, Reason: "ReleaseBlocked", Effect: gpu.EffectNoSchedule, Since: time.Unix(1, 0)}}
	objects, err := c.Slices()
	require.NoError(t, err)
	tainted := map[string]bool{}
	for _, d := range objects[1].Spec.Devices {
		tainted[d.Name] = len(d.Taints) > 0
	}
	name := "gpu-" + c.Node.GPUs[0].UUID[4:12]
	require.True(t, tainted[name+"-mig-1g10gb-me-6"])
	require.True(t, tainted[name+"-mig-1g10gb-0"])
	require.Contains(t, tainted, name+"-mig-1g10gb-6")
	require.False(t, tainted[name+"-mig-1g10gb-6"])
}
