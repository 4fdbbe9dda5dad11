package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/events"
	testclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/dcgm"
	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
	"github.com/kerf-project/kerf/pkg/scaling"
)

var t0 = time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)

const (
	tick      = 15 * time.Second
	namespace = "inference"
)

// cluster is an API server with what runs on it, as far as the controller can
// tell: Deployments get pods, pods get claims, claims get devices from the
// scheduler's allocator, and devices are as busy as their load makes them.
type cluster struct {
	t      *testing.T
	client client.WithWatch
	clock  *testclock.FakeClock
	events *events.FakeRecorder
	ctrl   *Controller

	// load is that of a Deployment, in percent of a GPU.
	load map[string]float64
	// delay is the age of a measurement, startUp how long a pod takes until it works.
	delay, startUp time.Duration
	// readError is what reading the measurements fails with; unseen claims have no row.
	readError error
	unseen    sets.Set[string]
	signals   map[string]float64
	usage     map[types.UID]scaling.Usage
	pods      int
}

func newCluster(t *testing.T, objects ...client.Object) *cluster {
	scheme, err := Scheme()
	require.NoError(t, err)
	c := &cluster{
		t: t, clock: testclock.NewFakeClock(t0), events: events.NewFakeRecorder(1000), load: map[string]float64{},
		startUp: 20 * time.Second, unseen: sets.New[string](), signals: map[string]float64{},
	}
	for _, class := range fleet.DefaultClasses(pool.DefaultDriver) {
		objects = append(objects, class)
	}
	c.client = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithStatusSubresource(&resourceapi.ResourceClaim{}, &v1alpha1.GPUScalingHint{}, &v1alpha1.GPUElasticPool{}).Build()
	c.ctrl = c.controller()
	return c
}

// controller is a new process.
func (c *cluster) controller() *Controller {
	return &Controller{
		Client: c.client, Live: c.client, Source: c, Events: c.events, Gauges: NewGauges(prometheus.NewRegistry()), Clock: c.clock,
		Driver: pool.DefaultDriver, Interval: tick, Collect: scaling.DefaultInterval, TaintRules: true, Scale: true, DeletionCosts: true,
	}
}

// node is one with boards, in the pool that a label names.
func node(t *testing.T, name, inPool string, boards string) []client.Object {
	parsed, err := gpu.ParseBoards(boards)
	require.NoError(t, err)
	slices, err := fleet.Publish(name, pool.DefaultDriver, parsed, nil)
	require.NoError(t, err)
	objects := []client.Object{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{"pool": inPool}}}}
	for i, s := range slices {
		s.UID = types.UID(fmt.Sprintf("%s-%d", name, i))
		objects = append(objects, s)
	}
	return objects
}

// deployment is one whose pods have a device of a class each.
func deployment(name, class string, replicas int32) []client.Object {
	labels := map[string]string{"app": name}
	template := &resourceapi.ResourceClaimTemplate{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: resourceapi.ResourceClaimTemplateSpec{Spec: resourceapi.ResourceClaimSpec{Devices: resourceapi.DeviceClaim{
			Requests: []resourceapi.DeviceRequest{{Name: "gpu", Exactly: &resourceapi.ExactDeviceRequest{
				DeviceClassName: class, AllocationMode: resourceapi.DeviceAllocationModeExactCount, Count: 1,
			}}},
		}}},
	}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name)},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					Containers:     []corev1.Container{{Name: "server"}},
					ResourceClaims: []corev1.PodResourceClaim{{Name: "gpu", ResourceClaimTemplateName: &name}},
				},
			},
		},
	}
	return []client.Object{template, d}
}

func hint(name string, change func(*v1alpha1.GPUScalingHintSpec)) *v1alpha1.GPUScalingHint {
	h := &v1alpha1.GPUScalingHint{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("hint-" + name), CreationTimestamp: metav1.NewTime(t0)},
		Spec: v1alpha1.GPUScalingHintSpec{
			TargetRef: v1alpha1.TargetReference{APIVersion: "apps/v1", Kind: "Deployment", Name: name},
			Class:     v1alpha1.ClassRealtime, MinReplicas: 1, MaxReplicas: 10, FallbackReplicas: 3, Mode: v1alpha1.ModeScale,
		},
	}
	if change != nil {
		change(&h.Spec)
	}
	return h
}

// Rows is what the exporters say.
func (c *cluster) Rows(context.Context, sets.Set[string]) ([]dcgm.Row, error) {
	if c.readError != nil {
		return nil, c.readError
	}
	ready := map[string][]*resourceapi.ResourceClaim{}
	for _, p := range c.allPods() {
		if isReady(p) && len(p.Spec.ResourceClaims) > 0 {
			ready[p.Labels["app"]] = append(ready[p.Labels["app"]], c.claim(p))
		}
	}
	var rows []dcgm.Row
	for app, claims := range ready {
		for _, claim := range claims {
			if c.unseen.Has(claim.Name) {
				continue
			}
			var data plugin.DeviceData
			require.NoError(c.t, json.Unmarshal(claim.Status.Devices[0].Data.Raw, &data))
			row := dcgm.Row{Metric: dcgm.Utilization, Key: dcgm.Key{GPU: data.GPUUUID, Instance: dcgm.NoInstance}, At: c.clock.Now().Add(-c.delay)}
			row.Value = min(100, c.load[app]/float64(len(claims)))
			if data.GPUInstanceID != nil {
				row.Instance = *data.GPUInstanceID
			}
			rows = append(rows, row)
			row.Metric, row.Value = dcgm.MemoryUsed, 20000
			free := row
			free.Metric, free.Value = dcgm.MemoryFree, 60000
			rows = append(rows, row, free)
		}
	}
	return rows, nil
}

func (c *cluster) Signal(_ context.Context, query string) (float64, error) {
	value, ok := c.signals[query]
	if !ok {
		return 0, errors.New("no such query")
	}
	return value, nil
}

func (c *cluster) Usage(context.Context) (map[types.UID]scaling.Usage, error) {
	if c.usage == nil {
		return nil, errNoPrometheus
	}
	return c.usage, nil
}

// run lets time pass, tick by tick, and returns what the hints said.
func (c *cluster) run(d time.Duration) []string {
	var said []string
	for range int(d / tick) {
		c.settle()
		require.NoError(c.t, c.ctrl.Tick(c.t.Context()))
		said = append(said, c.said()...)
		c.clock.Step(tick)
	}
	return said
}

// settle does what the cluster's own controllers, the scheduler and the kubelets do.
func (c *cluster) settle() {
	ctx := c.t.Context()
	var all appsv1.DeploymentList
	require.NoError(c.t, c.client.List(ctx, &all))
	for i := range all.Items {
		d := &all.Items[i]
		pods := slices.DeleteFunc(c.allPods(), func(p *corev1.Pod) bool { return p.Labels["app"] != d.Name })
		for len(pods) > int(*d.Spec.Replicas) {
			goes := slices.MinFunc(pods, func(a, b *corev1.Pod) int {
				return cmp.Or(cmp.Compare(cost(a), cost(b)), b.CreationTimestamp.Compare(a.CreationTimestamp.Time))
			})
			require.NoError(c.t, c.client.Delete(ctx, c.claim(goes)))
			require.NoError(c.t, c.client.Delete(ctx, goes))
			pods = slices.DeleteFunc(pods, func(p *corev1.Pod) bool { return p == goes })
		}
		for ; len(pods) < int(*d.Spec.Replicas); pods = append(pods, nil) {
			c.newPod(d)
		}
	}
	for _, p := range c.allPods() {
		c.schedule(p)
	}
}

func cost(p *corev1.Pod) int {
	n, _ := strconv.Atoi(p.Annotations[deletionCost])
	return n
}

func (c *cluster) newPod(d *appsv1.Deployment) {
	c.pods++
	name := fmt.Sprintf("%s-%d", d.Name, c.pods)
	claim := name + "-gpu"
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: d.Namespace, Name: name, UID: types.UID(name), Labels: d.Spec.Template.Labels, CreationTimestamp: metav1.NewTime(c.clock.Now()),
		},
		Spec:   *d.Spec.Template.Spec.DeepCopy(),
		Status: corev1.PodStatus{ResourceClaimStatuses: []corev1.PodResourceClaimStatus{{Name: "gpu", ResourceClaimName: &claim}}},
	}
	require.NoError(c.t, c.client.Create(c.t.Context(), p))
	var template resourceapi.ResourceClaimTemplate
	require.NoError(c.t, c.client.Get(c.t.Context(), types.NamespacedName{Namespace: d.Namespace, Name: d.Name}, &template))
	require.NoError(c.t, c.client.Create(c.t.Context(), &resourceapi.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: claim, UID: types.UID(claim)}, Spec: template.Spec.Spec,
	}))
}

// schedule gives a pod its devices, and says when it works.
func (c *cluster) schedule(p *corev1.Pod) {
	ctx := c.t.Context()
	if p.Spec.NodeName != "" {
		if !isReady(p) && c.clock.Since(p.Status.StartTime.Time) >= c.startUp {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			require.NoError(c.t, c.client.Status().Update(ctx, p))
		}
		return
	}
	all, err := c.ctrl.read(ctx)
	require.NoError(c.t, err)
	f := fleet.New(all.objects.Snapshot)
	claim := c.claim(p)
	on, placed, err := f.Place(ctx, fleet.Pod{Spec: &p.Spec, Claims: []*resourceapi.ResourceClaim{claim}})
	if errors.Is(err, fleet.ErrNoFit) {
		return
	}
	require.NoError(c.t, err)
	claim.Status = placed[0].Status
	claim.Status.ReservedFor = []resourceapi.ResourceClaimConsumerReference{{Resource: "pods", Name: p.Name, UID: p.UID}}
	r := claim.Status.Allocation.Devices.Results[0]
	data := plugin.DeviceData{Type: gpu.TypeGPU, GPUUUID: r.Pool + "/" + r.Device, PreparedAt: metav1.NewTime(c.clock.Now())}
	if class := claim.Spec.Devices.Requests[0].Exactly.DeviceClassName; class != "gpu.nvidia.com" {
		id := 1
		data.Type, data.GPUInstanceID = gpu.TypeMIG, &id
	}
	raw, err := json.Marshal(data)
	require.NoError(c.t, err)
	claim.Status.Devices = []resourceapi.AllocatedDeviceStatus{{Driver: r.Driver, Pool: r.Pool, Device: r.Device, Data: &runtime.RawExtension{Raw: raw}}}
	require.NoError(c.t, c.client.Status().Update(ctx, claim))
	p.Spec.NodeName = on
	require.NoError(c.t, c.client.Update(ctx, p))
	p.Status.StartTime = &metav1.Time{Time: c.clock.Now()}
	require.NoError(c.t, c.client.Status().Update(ctx, p))
}

func (c *cluster) allPods() []*corev1.Pod {
	var list corev1.PodList
	require.NoError(c.t, c.client.List(c.t.Context(), &list))
	pods := pointers(list.Items)
	slices.SortFunc(pods, func(a, b *corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return pods
}

func (c *cluster) claim(p *corev1.Pod) *resourceapi.ResourceClaim {
	claim := &resourceapi.ResourceClaim{}
	key := types.NamespacedName{Namespace: p.Namespace, Name: *p.Status.ResourceClaimStatuses[0].ResourceClaimName}
	require.NoError(c.t, c.client.Get(c.t.Context(), key, claim))
	return claim
}

func (c *cluster) hint(name string) *v1alpha1.GPUScalingHint {
	h := &v1alpha1.GPUScalingHint{}
	require.NoError(c.t, c.client.Get(c.t.Context(), types.NamespacedName{Namespace: namespace, Name: name}, h))
	return h
}

func (c *cluster) replicas(name string) int {
	d := &appsv1.Deployment{}
	require.NoError(c.t, c.client.Get(c.t.Context(), types.NamespacedName{Namespace: namespace, Name: name}, d))
	return int(*d.Spec.Replicas)
}

// said is a line for each hint.
func (c *cluster) said() []string {
	var list v1alpha1.GPUScalingHintList
	require.NoError(c.t, c.client.List(c.t.Context(), &list))
	var lines []string
	for i := range list.Items {
		h := &list.Items[i]
		s := h.Status
		if s.DesiredReplicas == nil {
			lines = append(lines, fmt.Sprintf("%s %s void: %s", c.clock.Now().Format(time.TimeOnly), h.Name, s.Message))
			continue
		}
		lines = append(lines, fmt.Sprintf("%s %s %d -> %d (%d at once) %s %s", c.clock.Now().Format(time.TimeOnly), h.Name,
			*s.CurrentReplicas, *s.DesiredReplicas, *s.ScaleTo, s.Reason, s.Feasibility.State))
	}
	return lines
}

// told are the events, in order.
func (c *cluster) told() []string {
	var all []string
	for {
		select {
		case e := <-c.events.Events:
			all = append(all, e)
		default:
			return all
		}
	}
}

// condition is one of a hint, as status/reason: message.
func conditionOf(h *v1alpha1.GPUScalingHint, kind string) string {
	for _, c := range h.Status.Conditions {
		if c.Type == kind {
			return fmt.Sprintf("%s/%s: %s", c.Status, c.Reason, c.Message)
		}
	}
	return ""
}

func concat(all ...[]client.Object) []client.Object { return slices.Concat(all...) }
