package controller

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/scaling"
)

// one is a Deployment with a hint, on a node with four GPUs.
func one(t *testing.T, replicas int32, change func(*v1alpha1.GPUScalingHintSpec)) *cluster {
	c := newCluster(t, concat(node(t, "a", "a", "4xH100-SXM5-80GB"), deployment("model-a", "gpu.nvidia.com", replicas),
		[]client.Object{hint("model-a", change)})...)
	c.load["model-a"] = float64(replicas) * 85
	return c
}

func custom(group, version, kind, name string, spec map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: group, Version: version, Kind: kind})
	u.SetNamespace(namespace)
	u.SetName(name)
	return u
}

// The replicas of a target have one master.
func TestScaleIsRefused(t *testing.T) {
	hpa := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "by-hand"},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "model-a"}, MaxReplicas: 3,
		},
	}
	other := hpa.DeepCopy()
	other.Spec.ScaleTargetRef.Kind = "StatefulSet"
	for name, c := range map[string]struct {
		object client.Object
		scale  bool
		want   string
	}{
		"an HPA":            {hpa, true, "False/AnotherScaler: HorizontalPodAutoscaler by-hand sets the replicas"},
		"an HPA of another": {other, true, "True/"},
		"a ScaledObject": {custom("keda.sh", "v1alpha1", "ScaledObject", "keda", map[string]any{"scaleTargetRef": map[string]any{"name": "model-a"}}),
			true, "False/AnotherScaler: ScaledObject keda sets the replicas"},
		"not allowed": {nil, false, "False/NotAllowed: the controller was not started with --scale"},
		"nobody":      {nil, true, "True/"},
	} {
		t.Run(name, func(t *testing.T) {
			cl := one(t, 2, nil)
			cl.ctrl.Scale = c.scale
			if c.object != nil {
				require.NoError(t, cl.client.Create(t.Context(), c.object))
			}
			cl.run(2 * time.Minute)
			require.Contains(t, conditionOf(cl.hint("model-a"), v1alpha1.ConditionScaled), c.want)
			require.Equal(t, strings.HasPrefix(c.want, "True"), cl.replicas("model-a") > 2)
			require.Greater(t, *cl.hint("model-a").Status.DesiredReplicas, int32(2), "it goes on advising")
		})
	}
}

func TestAdviseSetsNothing(t *testing.T) {
	c := one(t, 2, func(s *v1alpha1.GPUScalingHintSpec) { s.Mode = v1alpha1.ModeAdvise })
	c.run(2 * time.Minute)
	require.Equal(t, 2, c.replicas("model-a"))
	require.Empty(t, conditionOf(c.hint("model-a"), v1alpha1.ConditionScaled))
	require.EqualValues(t, 4, *c.hint("model-a").Status.DesiredReplicas)
}

// A hint that cannot be decided is void: it names no number that somebody could follow.
func TestVoid(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*cluster)
		want   string
	}{
		"no such target": {func(c *cluster) {
			h := c.hint("model-a")
			h.Spec.TargetRef.Name = "gone"
			require.NoError(c.t, c.client.Update(c.t.Context(), h))
		}, "False/NotFound"},
		"no such kind": {func(c *cluster) {
			h := c.hint("model-a")
			h.Spec.TargetRef = v1alpha1.TargetReference{APIVersion: "example.com/v1", Kind: "Server", Name: "x"}
			require.NoError(c.t, c.client.Update(c.t.Context(), h))
		}, "False/"},
	} {
		t.Run(name, func(t *testing.T) {
			cl := one(t, 2, nil)
			cl.run(time.Minute)
			require.NotNil(t, cl.hint("model-a").Status.DesiredReplicas)
			c.change(cl)
			cl.run(time.Minute)
			h := cl.hint("model-a")
			require.Nil(t, h.Status.DesiredReplicas)
			require.Nil(t, h.Status.ScaleTo)
			require.Equal(t, v1alpha1.ReasonNoTarget, h.Status.Reason)
			require.Contains(t, conditionOf(h, v1alpha1.ConditionTargetFound), c.want)
			require.Contains(t, strings.Join(cl.told(), "\n"), "Warning TargetNotUsable")
			require.Empty(t, gathered(t, cl.ctrl.Gauges)["kerf_hint_desired_replicas"])
		})
	}
}

// Of two hints with one target the older one counts.
func TestTargetTaken(t *testing.T) {
	c := one(t, 2, nil)
	second := hint("model-a", nil)
	second.Name, second.UID, second.CreationTimestamp = "another", "another", metav1.NewTime(t0.Add(time.Minute))
	require.NoError(t, c.client.Create(t.Context(), second))
	c.run(2 * time.Minute)
	require.Contains(t, conditionOf(c.hint("another"), v1alpha1.ConditionTargetFound), "False/TargetTaken: the target is another hint's: GPUScalingHint model-a")
	require.Equal(t, 4, c.replicas("model-a"))
}

// What is not measured is named, with what helps.
func TestMeasuredCondition(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*cluster)
		want   string
	}{
		"all":        {func(*cluster) {}, "True/Measured: all of 2 ready pods"},
		"one unseen": {func(c *cluster) { c.unseen.Insert(c.claim(c.allPods()[0]).Name) }, "False/NoSeries: 1 devices, such as that of claim inference/model-a-1-gpu, have no row."},
		"a pod without a claim": {func(c *cluster) {
			p := c.allPods()[0]
			p.Spec.ResourceClaims, p.Status.ResourceClaimStatuses = nil, nil
			p.Name, p.ResourceVersion = "plain", ""
			require.NoError(c.t, c.client.Create(c.t.Context(), p))
		}, "False/NoDevices: 1 of 3 ready pods"},
		"a signal": {func(c *cluster) {
			h := c.hint("model-a")
			h.Spec.Signals = []v1alpha1.Signal{{Name: "queue", Query: "unknown", ScaleUpAbove: 3}}
			require.NoError(c.t, c.client.Update(c.t.Context(), h))
		}, "False/SignalUnreadable: signal queue: no such query"},
	} {
		t.Run(name, func(t *testing.T) {
			cl := one(t, 2, func(s *v1alpha1.GPUScalingHintSpec) { s.Mode = v1alpha1.ModeAdvise })
			cl.run(2 * time.Minute)
			c.change(cl)
			require.NoError(t, cl.ctrl.Tick(t.Context()))
			require.Contains(t, conditionOf(cl.hint("model-a"), v1alpha1.ConditionMeasured), c.want)
		})
	}
}

// A signal is a reason to grow, and one that is unknown a reason not to shrink.
func TestSignals(t *testing.T) {
	c := one(t, 3, func(s *v1alpha1.GPUScalingHintSpec) {
		s.Signals = []v1alpha1.Signal{{Name: "queue", Query: "sum(queue)", ScaleUpAbove: 10}}
	})
	c.load["model-a"], c.signals["sum(queue)"] = 3*10, 11
	c.run(2 * time.Minute)
	require.Equal(t, 4, c.replicas("model-a"))
	require.Contains(t, strings.Join(c.told(), "\n"), `["queue"] above the threshold`)
	delete(c.signals, "sum(queue)")
	c.run(10 * time.Minute)
	require.Equal(t, 4, c.replicas("model-a"))
	c.signals["sum(queue)"] = 0
	c.run(10 * time.Minute)
	require.Equal(t, 1, c.replicas("model-a"))
}

// GPUs that are shared in time do not make anybody grow.
func TestSharedOnly(t *testing.T) {
	c := newCluster(t, concat(node(t, "a", "a", "4xH100-SXM5-80GB"), deployment("model-a", "gpu.nvidia.com", 2), []client.Object{hint("model-a", nil)})...)
	c.load["model-a"] = 2 * 95
	c.settle()
	for _, p := range c.allPods() {
		claim := c.claim(p)
		claim.Status.Devices[0].Data.Raw = []byte(strings.Replace(string(claim.Status.Devices[0].Data.Raw), `"gpu"`, `"timeslice"`, 1))
		require.NoError(t, c.client.Status().Update(t.Context(), claim))
	}
	c.run(3 * time.Minute)
	h := c.hint("model-a")
	require.Equal(t, v1alpha1.ReasonSharedOnly, h.Status.Reason)
	require.True(t, h.Status.Evidence.Shared)
	require.EqualValues(t, 2, *h.Status.DesiredReplicas)
}

// Instances are measured by their engines, and places are those of their profile.
func TestInstances(t *testing.T) {
	c := newCluster(t, concat(node(t, "a", "a", "1xH100-SXM5-80GB"), deployment("model-a", "mig-3g.40gb.gpu.nvidia.com", 1), []client.Object{hint("model-a", nil)})...)
	c.load["model-a"] = 100
	c.run(2 * time.Minute)
	h := c.hint("model-a")
	require.EqualValues(t, 50, *h.Status.Evidence.UtilizationPercent)
	require.Equal(t, 2, c.replicas("model-a"), "a GPU has two places for a 3g.40gb")
	c.load["model-a"] = 200
	c.run(2 * time.Minute)
	h = c.hint("model-a")
	require.EqualValues(t, 4, *h.Status.DesiredReplicas)
	require.EqualValues(t, 2, *h.Status.ScaleTo)
	require.Equal(t, "0 of 2 further replicas fit now; 2 need nodes: nothing here brings them", h.Status.Feasibility.Message)
}

// No node that is there could ever take it.
func TestNever(t *testing.T) {
	c := newCluster(t, concat(node(t, "a", "a", "1xL40S"), deployment("model-a", "gpu.nvidia.com", 1), []client.Object{hint("model-a", nil)})...)
	c.load["model-a"] = 85
	c.run(time.Minute)
	d := deployment("model-a", "mig-1g.10gb.gpu.nvidia.com", 1)
	template := d[0]
	template.SetResourceVersion("")
	require.NoError(t, c.client.Delete(t.Context(), deployment("model-a", "x", 1)[0]))
	require.NoError(t, c.client.Create(t.Context(), template))
	c.run(time.Minute)
	h := c.hint("model-a")
	require.Equal(t, v1alpha1.FitsNever, h.Status.Feasibility.State)
	require.Contains(t, strings.Join(c.told(), "\n"), "Warning ScaleUpImpossible")
}

// A shape that suits better is advised from what was used over a day.
func TestRightSize(t *testing.T) {
	c := newCluster(t, concat(node(t, "a", "a", "4xH100-SXM5-80GB"), deployment("model-a", "mig-3g.40gb.gpu.nvidia.com", 2),
		[]client.Object{hint("model-a", nil)})...)
	c.load["model-a"] = 100
	c.usage = map[types.UID]scaling.Usage{"model-a-1-gpu": {Utilization: 20, PeakMemoryMiB: 8000}}
	c.run(15 * time.Minute)
	require.Nil(t, c.hint("model-a").Status.RightSize, "of the second replica nothing is known")
	c.usage["model-a-2-gpu"] = scaling.Usage{Utilization: 22, PeakMemoryMiB: 9500}
	c.run(15 * time.Minute)
	r := c.hint("model-a").Status.RightSize
	require.NotNil(t, r)
	require.Equal(t, "1g.20gb", r.Profile)
	require.Equal(t, "over a day the busiest replica was at 22 % of its 3g.40gb (95th percentile), and used 9500 of its 40448 MiB at most", r.Message)
	c.usage["model-a-2-gpu"] = scaling.Usage{Utilization: 30, PeakMemoryMiB: 40000}
	c.run(15 * time.Minute)
	r = c.hint("model-a").Status.RightSize
	require.Equal(t, "7g.80gb", r.Profile)
	require.Contains(t, r.Message, "more replicas would not help")
}

// What the API server refuses is tried again, and nothing is lost meanwhile.
func TestAPIErrors(t *testing.T) {
	c := one(t, 2, nil)
	c.run(time.Minute)
	failing := failingStatus{c.client}
	c.ctrl.Client = failing
	err := c.ctrl.Tick(t.Context())
	for range 4 { // The status is renewed after a minute at the latest.
		c.clock.Step(tick)
		err = errors.Join(err, c.ctrl.Tick(t.Context()))
	}
	require.ErrorContains(t, err, "hint inference/model-a: write the status")
	c.ctrl.Client = c.client
	c.run(time.Minute)
	require.True(t, c.hint("model-a").Status.ValidUntil.After(c.clock.Now()))
}

type failingStatus struct{ client.WithWatch }

func (f failingStatus) Status() client.SubResourceWriter { return refusing{f.WithWatch.Status()} }

type refusing struct{ client.SubResourceWriter }

func (refusing) Patch(context.Context, client.Object, client.Patch, ...client.SubResourcePatchOption) error {
	return apierrors.NewServiceUnavailable("it starts")
}

// A hint that says nothing new is written once a minute.
func TestWritesAreFew(t *testing.T) {
	c := one(t, 2, nil)
	c.clock.Step(123 * time.Millisecond) // The API keeps seconds.
	c.run(2 * time.Minute)
	require.Equal(t, 4, c.replicas("model-a"))
	require.NotNil(t, c.hint("model-a").Status.LastScaleTime)
	counting := &countingStatus{WithWatch: c.client}
	c.ctrl.Client = counting
	c.run(10 * time.Minute)
	require.LessOrEqual(t, counting.n, 12)
	require.GreaterOrEqual(t, counting.n, 10)
}

type countingStatus struct {
	client.WithWatch
	n int
}

func (c *countingStatus) Status() client.SubResourceWriter {
	c.n++
	return c.WithWatch.Status()
}

func gathered(t *testing.T, g *Gauges) map[string]map[string]float64 {
	registry := prometheus.NewRegistry()
	require.NoError(t, registry.Register(g))
	families, err := registry.Gather()
	require.NoError(t, err)
	all := map[string]map[string]float64{}
	for _, f := range families {
		all[f.GetName()] = map[string]float64{}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			all[f.GetName()][strings.Join(labels, "/")] = m.GetGauge().GetValue()
		}
	}
	return all
}

func TestGauges(t *testing.T) {
	c := surge(t)
	c.run(2 * time.Minute)
	c.load["model-a"] = 4 * 85
	c.run(30 * time.Second)
	got := gathered(t, c.ctrl.Gauges)
	require.Equal(t, map[string]float64{"model-a/inference/model-a": 7, "model-b/inference/model-b": 1}, got["kerf_hint_desired_replicas"])
	require.Equal(t, map[string]float64{"model-a/inference/model-a": 4, "model-b/inference/model-b": 1}, got["kerf_hint_scale_to_replicas"])
	require.InDelta(t, 0.85, got["kerf_hint_utilization_ratio"]["model-a/inference/model-a"], 1e-9)
	require.Equal(t, map[string]float64{"shared": 1}, got["kerf_pool_gpus"])
	require.Equal(t, map[string]float64{"shared": 0}, got["kerf_pool_free_gpus"])
}
