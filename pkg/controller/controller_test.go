package controller

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/scaling"
)

var update = flag.Bool("update", false, "write the golden files anew")

// surge is two models with GPUs of their own, and one GPU that is anybody's: A has
// 4 of 4, B 2 of 2 and the elastic one.
func surge(t *testing.T) *cluster {
	labels := func(in string) metav1.LabelSelector {
		return metav1.LabelSelector{MatchLabels: map[string]string{"pool": in}}
	}
	p := &v1alpha1.GPUElasticPool{
		ObjectMeta: metav1.ObjectMeta{Name: "shared", UID: "pool"},
		Spec: v1alpha1.GPUElasticPoolSpec{Selector: labels("elastic"), Primaries: []v1alpha1.PrimaryPool{
			{Name: "a", Hint: "inference/model-a", Selector: labels("a")}, {Name: "b", Hint: "inference/model-b", Selector: labels("b")},
		}},
	}
	c := newCluster(t, concat(
		node(t, "a", "a", "4xH100-SXM5-80GB"), node(t, "b", "b", "2xH100-SXM5-80GB"), node(t, "e", "elastic", "1xH100-SXM5-80GB"),
		deployment("model-a", "gpu.nvidia.com", 4), deployment("model-b", "gpu.nvidia.com", 3),
		[]client.Object{
			p,
			hint("model-a", func(s *v1alpha1.GPUScalingHintSpec) { s.Pool, s.Priority = "shared", 10 }),
			hint("model-b", func(s *v1alpha1.GPUScalingHintSpec) { s.Pool, s.Class = "shared", v1alpha1.ClassBatch }),
		})...)
	c.load = map[string]float64{"model-a": 4 * 40, "model-b": 3 * 20}
	return c
}

// A grows from what B gives, B keeps its minimum, only the rest asks for nodes; and then the way back.
func TestSurge(t *testing.T) {
	c := surge(t)
	said := c.run(2 * time.Minute)
	require.Equal(t, 4, c.replicas("model-a"))
	require.Equal(t, 3, c.replicas("model-b"))

	c.load["model-a"] = 4 * 85
	said = append(said, c.run(30*time.Second)...)
	a := c.hint("model-a")
	require.EqualValues(t, 7, *a.Status.DesiredReplicas)
	require.Equal(t, v1alpha1.NeedsNodes, a.Status.Feasibility.State)
	require.Equal(t, []v1alpha1.Donation{{Hint: "inference/model-b", Replicas: 2}}, a.Status.Feasibility.After)
	require.EqualValues(t, 1, a.Status.Feasibility.Nodes, "only the rest")
	require.Contains(t, a.Status.Feasibility.Message, "1 need nodes: nothing here brings them")
	said = append(said, c.run(3*time.Minute)...)
	require.Equal(t, 6, c.replicas("model-a"), "the places of two replicas of B")
	require.Equal(t, 1, c.replicas("model-b"), "its minimum")
	require.Contains(t, conditionOf(c.hint("model-b"), v1alpha1.ConditionGives), "False/NothingAsked")

	c.load["model-a"], c.load["model-b"] = 4*10, 90
	said = append(said, c.run(15*time.Minute)...)
	require.Equal(t, 1, c.replicas("model-a"))
	require.Equal(t, 2, c.replicas("model-b"), "it has grown into what is free")

	path := filepath.Join("testdata", "surge.golden")
	got := strings.Join(changes(said), "\n") + "\n"
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o600))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
	t.Log(strings.Join(c.told(), "\n"))
}

// changes are the lines in which a hint says something new.
func changes(said []string) []string {
	last := map[string]string{}
	var kept []string
	for _, line := range said {
		_, rest, _ := strings.Cut(line, " ")
		name, what, _ := strings.Cut(rest, " ")
		if last[name] != what {
			kept = append(kept, line)
		}
		last[name] = what
	}
	return kept
}

// B's pod that goes is the one whose place A can have, although it is not the youngest.
func TestDonorsPodIsMarked(t *testing.T) {
	c := surge(t)
	c.run(2 * time.Minute)
	for _, name := range []string{"model-a", "model-b"} {
		h := c.hint(name)
		h.Spec.Mode = v1alpha1.ModeAdvise
		require.NoError(t, c.client.Update(t.Context(), h))
	}
	c.load["model-a"] = 4 * 85
	c.run(time.Minute)
	var marked []string
	for _, p := range c.allPods() {
		if p.Annotations[deletionCost] == lowCost {
			marked = append(marked, p.Labels["app"])
		}
	}
	require.Equal(t, []string{"model-b", "model-b"}, marked)
	require.Contains(t, conditionOf(c.hint("model-b"), v1alpha1.ConditionGives), "True/GivesWay: inference/model-a can have the places of model-b-")
	require.Contains(t, conditionOf(c.hint("model-a"), v1alpha1.ConditionReceives), "True/WaitsForOthers")
	require.Equal(t, 4, c.replicas("model-a"), "it only advises")
	require.Contains(t, strings.Join(c.told(), "\n"), "GivesWay 3 -> 1 replicas")

	// Nobody is left to say that they go.
	require.NoError(t, c.client.Delete(t.Context(), c.hint("model-b")))
	c.run(time.Minute)
	for _, p := range c.allPods() {
		require.Empty(t, p.Annotations, p.Name)
	}
}

// The mark is taken away when the need is over, and one that somebody else has set stays.
func TestMarksGo(t *testing.T) {
	c := surge(t)
	c.run(2 * time.Minute)
	for _, name := range []string{"model-a", "model-b"} {
		h := c.hint(name)
		h.Spec.Mode = v1alpha1.ModeAdvise
		require.NoError(t, c.client.Update(t.Context(), h))
	}
	own := c.allPods()[6]
	own.Annotations = map[string]string{deletionCost: "7"}
	require.NoError(t, c.client.Update(t.Context(), own))
	costs := func() (all []string) {
		for _, p := range c.allPods() {
			if cost, ok := p.Annotations[deletionCost]; ok {
				all = append(all, cost)
			}
		}
		return all
	}
	c.load["model-a"] = 4 * 85
	c.run(time.Minute)
	require.Contains(t, costs(), lowCost)
	c.load["model-a"] = 4 * 40
	c.run(time.Minute)
	require.Equal(t, []string{"7"}, costs())
}

// Of a StatefulSet the pod with the highest number goes, however young it is.
func TestLastPodOfAStatefulSetGoes(t *testing.T) {
	var replicas []*replica
	for i, age := range []time.Duration{0, time.Hour, 2 * time.Hour} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("s-%d", i), Labels: map[string]string{appsv1.PodIndexLabel: strconv.Itoa(i)}, CreationTimestamp: metav1.NewTime(t0.Add(-age)),
		}, Spec: corev1.PodSpec{NodeName: "n"}}
		replicas = append(replicas, &replica{pod: p, claims: []*resourceapi.ResourceClaim{{}}})
	}
	w := &workload{target: target{ordered: true}, replicas: replicas}
	w.sort()
	p := &placer{workloads: map[string]*workload{"s": w}, gone: map[*corev1.Pod]bool{}}
	found := p.candidates(scaling.Donor{Workload: "s", Replicas: 2}, &members{nodes: map[string]bool{"n": true}}, true)
	require.Len(t, found, 1)
	require.Len(t, found[0].replicas, 1, "one at a time")
	require.Equal(t, "s-2", found[0].replicas[0].pod.Name)
}

// A pool that is misspelt promises nothing, and holds nothing back.
func TestUnknownPool(t *testing.T) {
	c := one(t, 2, func(s *v1alpha1.GPUScalingHintSpec) { s.Pool = "shard" })
	c.run(time.Minute)
	h := c.hint("model-a")
	require.Equal(t, v1alpha1.FeasibilityUnknown, h.Status.Feasibility.State)
	require.Contains(t, h.Status.Feasibility.Message, "there is no GPUElasticPool shard")
}

// Missing data holds, says why, and is over when the data is back.
func TestFaultsHold(t *testing.T) {
	for name, c := range map[string]struct {
		fault  func(*cluster)
		reason v1alpha1.Reason
		why    string
	}{
		"cannot be read": {func(c *cluster) { c.readError = context.DeadlineExceeded }, v1alpha1.ReasonFallback, "False/ReadFailed: context deadline exceeded"},
		"no rows": {func(c *cluster) {
			for _, p := range c.allPods() {
				c.unseen.Insert(c.claim(p).Name)
			}
		}, v1alpha1.ReasonNoData, "False/NoSeries: 7 devices"},
		"too old":       {func(c *cluster) { c.delay = 100 * time.Second }, v1alpha1.ReasonStaleData, "False/Stale: 7 devices"},
		"of the future": {func(c *cluster) { c.delay = -100 * time.Second }, v1alpha1.ReasonStaleData, "False/Stale: 7 devices"},
	} {
		t.Run(name, func(t *testing.T) {
			cl := surge(t)
			delete(cl.load, "model-b")
			require.NoError(t, cl.client.Delete(t.Context(), cl.hint("model-b")))
			cl.load["model-a"] = 7 * 50
			cl.run(5 * time.Minute)
			before := cl.replicas("model-a")
			fault := *cl
			c.fault(cl)
			cl.load["model-a"] = 0 // Read as zero, it would shrink.
			cl.run(15 * time.Minute)
			require.Equal(t, before, cl.replicas("model-a"))
			h := cl.hint("model-a")
			require.Equal(t, c.reason, h.Status.Reason)
			require.Contains(t, conditionOf(h, v1alpha1.ConditionMeasured), strings.Replace(c.why, "7 devices", "4 devices", 1))

			cl.readError, cl.delay = fault.readError, fault.delay
			cl.unseen.Clear()
			cl.run(8 * time.Minute)
			require.Less(t, cl.replicas("model-a"), before, "the load is really gone")
		})
	}
}

// A fallback never shrinks, and grows to what it says.
func TestFallback(t *testing.T) {
	c := newCluster(t, concat(node(t, "a", "a", "4xH100-SXM5-80GB"), deployment("model-a", "gpu.nvidia.com", 1), []client.Object{hint("model-a", nil)})...)
	c.load["model-a"] = 50
	c.run(time.Minute)
	c.readError = context.DeadlineExceeded
	c.run(time.Minute)
	require.Equal(t, 3, c.replicas("model-a"))
	require.Contains(t, strings.Join(c.told(), "\n"), "Warning Fallback")
}

// Whoever takes over goes on where the other one ended: no hint jumps.
func TestTakeOver(t *testing.T) {
	c := surge(t)
	c.run(2 * time.Minute)
	c.load["model-a"] = 4 * 85
	for range 40 {
		before := *c.hint("model-a").Status.DesiredReplicas
		c.ctrl = c.controller() // At every tick another one leads.
		c.run(tick)
		require.GreaterOrEqual(t, *c.hint("model-a").Status.DesiredReplicas, before)
	}
	require.Equal(t, 4, c.replicas("model-a"), "a change needs two ticks of one controller")

	c.run(3 * time.Minute)
	require.Equal(t, 6, c.replicas("model-a"))
}
