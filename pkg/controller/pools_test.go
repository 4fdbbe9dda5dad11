package controller

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
	"github.com/kerf-project/kerf/pkg/scaling"
)

func elasticPool() *v1alpha1.GPUElasticPool {
	return &v1alpha1.GPUElasticPool{
		ObjectMeta: metav1.ObjectMeta{Name: "shared", Generation: 3},
		Spec: v1alpha1.GPUElasticPoolSpec{
			Selector:  metav1.LabelSelector{MatchLabels: map[string]string{"pool": "elastic"}},
			Primaries: []v1alpha1.PrimaryPool{{Name: "a", Hint: "x/a", Selector: metav1.LabelSelector{MatchLabels: map[string]string{"own": "a"}}}},
		},
	}
}

// held takes the devices of those names on the node e.
func held(f *fleet.Fleet, names ...string) {
	for _, name := range names {
		f.Take(&resourceapi.ResourceClaim{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid-" + "x"},
			Status: resourceapi.ResourceClaimStatus{Allocation: &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{
				Results: []resourceapi.DeviceRequestAllocationResult{{Driver: pool.DefaultDriver, Pool: "e", Device: name}},
			}}},
		})
	}
}

// What is free is counted by what can be placed, and what nothing fits into is stranded.
func TestPoolContent(t *testing.T) {
	for name, c := range map[string]struct {
		boards           string
		held             []string // by suffix, of the first GPU
		gpus, free, lost int
		fits             map[string]int
	}{
		"empty":  {"1xH100-SXM5-80GB", nil, 1, 1, 0, map[string]int{"gpu": 1, "1g.10gb": 7, "2g.20gb": 3, "3g.40gb": 2, "4g.40gb": 1, "7g.80gb": 1}},
		"whole":  {"1xH100-SXM5-80GB", []string{""}, 1, 0, 0, map[string]int{}},
		"one 3g": {"1xH100-SXM5-80GB", []string{"-mig-3g40gb-4"}, 1, 0, 0, map[string]int{"1g.10gb": 4, "2g.20gb": 2, "3g.40gb": 1, "4g.40gb": 1}},
		"two 3g": {"1xH100-SXM5-80GB", []string{"-mig-3g40gb-0", "-mig-3g40gb-4"}, 1, 0, 0, map[string]int{}},
		"seven 1g": {"1xH100-SXM5-80GB", []string{"-mig-1g10gb-0", "-mig-1g10gb-1", "-mig-1g10gb-2", "-mig-1g10gb-3", "-mig-1g10gb-4", "-mig-1g10gb-5", "-mig-1g10gb-6"},
			1, 0, 1, map[string]int{}},
		"no MIG": {"2xL40S", nil, 2, 2, 0, map[string]int{"gpu": 2}},
	} {
		t.Run(name, func(t *testing.T) {
			boards, err := gpu.ParseBoards(c.boards)
			require.NoError(t, err)
			published, err := fleet.Publish("e", pool.DefaultDriver, boards, nil)
			require.NoError(t, err)
			var prefix string
			for _, s := range published {
				for _, d := range s.Spec.Devices {
					if attribute(fleet.Device{Device: &d}, "type") == "gpu" {
						prefix = d.Name
					}
				}
			}
			f := fleet.New(fleet.Snapshot{Slices: published, Nodes: []*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "e", Labels: map[string]string{"pool": "elastic"}}}}})
			for _, suffix := range c.held {
				held(f, prefix+suffix)
			}
			m := membersOf(elasticPool(), f.Nodes())
			require.NoError(t, m.err)
			m.count(f)
			s := m.status()
			require.EqualValues(t, 1, s.Nodes)
			require.EqualValues(t, c.gpus, s.GPUs)
			require.EqualValues(t, c.free, s.FreeGPUs)
			require.EqualValues(t, c.lost, s.StrandedSlices)
			got := map[string]int{}
			for _, p := range s.Free {
				got[p.Profile] = int(p.Count)
			}
			for profile, n := range c.fits {
				require.Equal(t, n, got[profile], profile)
			}
			if len(c.fits) == 0 {
				require.Empty(t, got)
			}
		})
	}
}

func TestPoolMembers(t *testing.T) {
	named := func(name string, labels map[string]string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	nodes := []*corev1.Node{
		named("none", nil), named("e1", map[string]string{"pool": "elastic"}), named("a1", map[string]string{"own": "a"}),
		named("both", map[string]string{"own": "a", "pool": "elastic"}), named("e2", map[string]string{"pool": "elastic"}),
	}
	m := membersOf(elasticPool(), nodes)
	require.NoError(t, m.err)
	names := func(nodes []*corev1.Node) (all []string) {
		for _, n := range nodes {
			all = append(all, n.Name)
		}
		return all
	}
	require.Equal(t, []string{"a1", "both", "e1", "e2"}, names(m.allowed("x/a")), "its own first")
	require.Equal(t, []string{"e1", "e2", "a1", "both"}, names(m.allowed("x/b")), "those of others last")
	require.Equal(t, map[string]bool{"e1": true, "e2": true, "a1": false, "both": false}, m.nodes, "who has it for its own comes first")

	broken := elasticPool()
	broken.Spec.Primaries[0].Selector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "x", Operator: "Near"}}
	m = membersOf(broken, nodes)
	require.ErrorContains(t, m.err, "selector of primary pool a")
	m.count(fleet.New(fleet.Snapshot{}))
	require.Equal(t, "InvalidSelector", m.status().Conditions[0].Reason)
}

func TestNewNodes(t *testing.T) {
	nodePool := func(change func(map[string]any)) unstructured.Unstructured {
		object := map[string]any{
			"metadata": map[string]any{"name": "gpus"},
			"spec": map[string]any{
				"limits": map[string]any{"nvidia.com/gpu": "64"},
				"template": map[string]any{"spec": map[string]any{"taints": []any{
					map[string]any{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"},
				}}},
			},
			"status": map[string]any{
				"resources":  map[string]any{"nvidia.com/gpu": "8"},
				"conditions": []any{map[string]any{"type": "Ready", "status": "True"}},
			},
		}
		if change != nil {
			change(object)
		}
		return unstructured.Unstructured{Object: object}
	}
	status := func(set map[string]any) func(map[string]any) { return func(o map[string]any) { o["status"] = set } }
	tolerant := &corev1.PodSpec{Tolerations: []corev1.Toleration{{Key: "nvidia.com/gpu", Operator: corev1.TolerationOpExists}}}
	for name, c := range map[string]struct {
		nodes nodePools
		pod   *corev1.PodSpec
		fits  bool
		state scaling.NewNodesState
		says  string
	}{
		"nothing":            {nodePools{}, tolerant, true, scaling.NewNodesByHand, "nothing here brings them"},
		"no shape":           {nodePools{}, tolerant, false, scaling.NewNodesNone, "no node here has the shape"},
		"Karpenter":          {nodePools{karpenter: []unstructured.Unstructured{nodePool(nil)}}, tolerant, true, scaling.NewNodesAutomatic, "NodePool gpus can bring them, unless Karpenter ignores claims"},
		"Karpenter, no node": {nodePools{karpenter: []unstructured.Unstructured{nodePool(nil)}}, tolerant, false, scaling.NewNodesAutomatic, "no node that is here has the shape"},
		"not tolerated": {nodePools{karpenter: []unstructured.Unstructured{nodePool(nil)}}, &corev1.PodSpec{}, true, scaling.NewNodesByHand,
			"nothing here brings them; NodePool gpus does not, because the pod does not tolerate its taint nvidia.com/gpu=true:NoSchedule"},
		"at its limit": {nodePools{karpenter: []unstructured.Unstructured{nodePool(status(map[string]any{"resources": map[string]any{"nvidia.com/gpu": "64"}}))}},
			tolerant, true, scaling.NewNodesByHand, "it has 64 of at most 64 GPUs"},
		"not ready": {nodePools{karpenter: []unstructured.Unstructured{nodePool(status(map[string]any{
			"conditions": []any{map[string]any{"type": "Ready", "status": "False", "reason": "NodeClassNotReady"}},
		}))}}, tolerant, true, scaling.NewNodesByHand, "it is not ready (NodeClassNotReady)"},
		"cluster autoscaler":           {nodePools{clusterAutoscaler: true}, tolerant, true, scaling.NewNodesAutomatic, "the cluster autoscaler can bring them"},
		"cluster autoscaler, no shape": {nodePools{clusterAutoscaler: true}, tolerant, false, scaling.NewNodesNone, "no node here has the shape"},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.nodes.answer(c.pod, c.fits)
			require.Equal(t, c.state, got.State)
			require.Contains(t, got.Message, c.says)
		})
	}
}

// Free slices are not a fit: of the layouts of 1g.10gb tenants that leave as many slices free as a profile takes, many
// have no place for it. Counting slices gets those wrong; the pool's content is what can be placed.
func TestFreeSlicesAreNoPlace(t *testing.T) {
	board, err := gpu.BoardByName("H100-SXM5-80GB")
	require.NoError(t, err)
	published, err := fleet.Publish("e", pool.DefaultDriver, []gpu.Board{board}, nil)
	require.NoError(t, err)
	small := map[int]string{} // the devices of 1g.10gb by their slice
	for _, s := range published {
		for _, d := range s.Spec.Devices {
			if d := (fleet.Device{Device: &d}); attribute(d, "profile") == "1g.10gb" {
				small[int(firstSlice(d)[len(memorySlice)]-'0')] = d.Name
			}
		}
	}
	require.Len(t, small, 7)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "e", Labels: map[string]string{"pool": "elastic"}}}
	for profile, want := range map[string]int{"2g.20gb": 38, "3g.40gb": 77, "4g.40gb": 88} {
		enough, misfits := 0, 0
		for layout := range 1 << 7 {
			f := fleet.New(fleet.Snapshot{Slices: published, Nodes: []*corev1.Node{node}})
			free := 7 // compute slices
			var there []gpu.Instance
			for slice, name := range small {
				if layout>>slice&1 == 1 {
					held(f, name)
					free--
					there = append(there, gpu.Instance{Profile: "1g.10gb", Placement: gpu.Placement{Start: slice, Size: 1}})
				}
			}
			var shape gpu.Profile
			for _, p := range board.Profiles {
				if p.Name == profile {
					shape = p
				}
			}
			fits := false
			for _, at := range shape.Placements {
				_, ok := gpu.Fits(at, there)
				fits = fits || ok
			}
			m := membersOf(elasticPool(), f.Nodes())
			require.NoError(t, m.err)
			m.count(f)
			require.Equal(t, fits, m.content.profiles[profile] > 0, "%s in layout %07b", profile, layout)
			if naive := free >= shape.ComputeSlices; naive {
				enough++
				if !fits {
					misfits++
				}
			}
		}
		t.Logf("%s: %d of %d layouts have the slices and no place", profile, misfits, enough)
		require.InDelta(t, want, 100*float64(misfits)/float64(enough), 0.5, profile)
	}
}
