package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	testclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
	"github.com/kerf-project/kerf/pkg/scaling"
)

// cached is a client as the manager has it: lists come from memory, writes go nowhere.
type cached struct {
	client.Client
	nodes       []corev1.Node
	slices      []resourceapi.ResourceSlice
	classes     []resourceapi.DeviceClass
	claims      []resourceapi.ResourceClaim
	templates   []resourceapi.ResourceClaimTemplate
	pods        []corev1.Pod
	hints       []v1alpha1.GPUScalingHint
	deployments map[string]*appsv1.Deployment
	// said is the direction that was written last.
	said atomic.Value
}

func (c *cached) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	switch l := list.(type) {
	case *corev1.NodeList:
		l.Items = append(l.Items, c.nodes...)
	case *corev1.PodList:
		l.Items = append(l.Items, c.pods...)
	case *resourceapi.ResourceSliceList:
		l.Items = append(l.Items, c.slices...)
	case *resourceapi.DeviceClassList:
		l.Items = append(l.Items, c.classes...)
	case *resourceapi.ResourceClaimList:
		l.Items = append(l.Items, c.claims...)
	case *resourceapi.ResourceClaimTemplateList:
		l.Items = append(l.Items, c.templates...)
	case *v1alpha1.GPUScalingHintList:
		l.Items = append(l.Items, c.hints...)
	}
	return nil
}

func (c *cached) Get(_ context.Context, key client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	d, ok := o.(*appsv1.Deployment)
	if !ok {
		return apierrors.NewNotFound(corev1.Resource("configmaps"), key.Name)
	}
	*d = *c.deployments[key.Name]
	return nil
}

func (c *cached) Status() client.SubResourceWriter { return nowhere{c: c} }

type nowhere struct {
	client.SubResourceWriter
	c *cached
}

func (n nowhere) Patch(_ context.Context, o client.Object, _ client.Patch, _ ...client.SubResourcePatchOption) error {
	n.c.said.Store(o.(*v1alpha1.GPUScalingHint).Status.Direction)
	return nil
}

// large is 5,000 nodes of 8 boards, and 2,000 workloads with five replicas each, as informers keep them.
func large(tb testing.TB) (c *cached, answer []byte) {
	const nodes, hints, replicas = 5000, 2000, 5
	c = &cached{deployments: map[string]*appsv1.Deployment{}}
	shapes := []string{"gpu.nvidia.com", "mig-1g.10gb.gpu.nvidia.com", "mig-2g.20gb.gpu.nvidia.com", "mig-3g.40gb.gpu.nvidia.com"}
	boards, err := gpu.ParseBoards("8xH100-SXM5-80GB")
	require.NoError(tb, err)
	interner := fleet.NewInterner()
	keep := func(o any) {
		_, err := interner.Transform(o)
		require.NoError(tb, err)
	}
	uuids := map[string]string{} // by pool and device
	for i := range nodes {
		name := fmt.Sprintf("gpu-%05d", i)
		c.nodes = append(c.nodes, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), ResourceVersion: "1", Labels: map[string]string{"zone": fmt.Sprint(i % 3)}}})
		published, err := fleet.Publish(name, pool.DefaultDriver, boards, nil)
		require.NoError(tb, err)
		for _, s := range published {
			for _, d := range s.Spec.Devices {
				uuids[name+"/"+d.Name] = attribute(fleet.Device{Device: &d}, "parentUUID")
			}
			raw, err := s.Marshal()
			require.NoError(tb, err)
			decoded := resourceapi.ResourceSlice{} // As an informer has it: nothing in it is another's.
			require.NoError(tb, decoded.Unmarshal(raw))
			decoded.UID, decoded.ResourceVersion = types.UID(decoded.Name), "1"
			keep(&decoded)
			c.slices = append(c.slices, decoded)
		}
	}
	for _, class := range fleet.DefaultClasses(pool.DefaultDriver) {
		class.UID, class.ResourceVersion = types.UID(class.Name), "1"
		c.classes = append(c.classes, *class)
	}
	f := fleet.New(fleet.Snapshot{Nodes: pointers(c.nodes), Slices: pointers(c.slices), Classes: pointers(c.classes)})
	var rows bytes.Buffer
	row := func(rule, uuid string, instance int, value any) {
		labels := fmt.Sprintf(`"__name__":%q,"UUID":%q`, rule, uuid)
		if instance > 0 {
			labels += fmt.Sprintf(`,"GPU_I_ID":"%d"`, instance)
		}
		fmt.Fprintf(&rows, `,{"metric":{%s},"value":[1,"%v"]}`, labels, value)
	}
	for i := range hints {
		name := fmt.Sprintf("model-%04d", i)
		objects := deployment(name, shapes[i%len(shapes)], replicas)
		template, d := objects[0].(*resourceapi.ResourceClaimTemplate), objects[1].(*appsv1.Deployment)
		c.templates, c.deployments[name] = append(c.templates, *template), d
		h := hint(name, func(s *v1alpha1.GPUScalingHintSpec) { s.Mode = v1alpha1.ModeAdvise })
		h.ResourceVersion = "1"
		c.hints = append(c.hints, *h)
		for r := range replicas {
			pod := corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s-%d", name, r), ResourceVersion: "1", Labels: d.Spec.Template.Labels, CreationTimestamp: metav1.NewTime(t0)},
				Spec:       *d.Spec.Template.Spec.DeepCopy(),
				Status:     corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
			}
			claimName := pod.Name + "-gpu"
			pod.UID, pod.Status.ResourceClaimStatuses = types.UID(pod.Name), []corev1.PodResourceClaimStatus{{Name: "gpu", ResourceClaimName: &claimName}}
			on, placed, err := f.Place(tb.Context(), fleet.Pod{Claims: []*resourceapi.ResourceClaim{{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: claimName, UID: types.UID(claimName), ResourceVersion: "1"}, Spec: template.Spec.Spec,
			}}})
			require.NoError(tb, err)
			pod.Spec.NodeName = on
			claim := placed[0]
			result := claim.Status.Allocation.Devices.Results[0]
			data := plugin.DeviceData{Type: gpu.TypeGPU, GPUUUID: uuids[result.Pool+"/"+result.Device], PreparedAt: metav1.NewTime(t0.Add(-time.Hour))}
			instance := 0
			if i%len(shapes) > 0 {
				instance = 1 + len(c.claims)
				data.Type, data.GPUInstanceID = gpu.TypeMIG, &instance
			}
			raw, err := json.Marshal(data)
			require.NoError(tb, err)
			claim.Status.ReservedFor = []resourceapi.ResourceClaimConsumerReference{{Resource: "pods", Name: pod.Name, UID: pod.UID}}
			claim.Status.Devices = []resourceapi.AllocatedDeviceStatus{{Driver: result.Driver, Pool: result.Pool, Device: result.Device, Data: &k8sruntime.RawExtension{Raw: raw}}}
			keep(claim)
			keep(&pod)
			c.claims, c.pods = append(c.claims, *claim), append(c.pods, pod)
			row("kerf:device_utilization:percent", data.GPUUUID, instance, "UTIL")
			row("kerf:device_memory_used:bytes", data.GPUUUID, instance, 20<<30)
			row("kerf:device_memory_free:bytes", data.GPUUUID, instance, 60<<30)
			row("kerf:device_sampled:timestamp_seconds", data.GPUUUID, instance, "SAMPLED")
		}
	}
	runtime.KeepAlive(interner)
	return c, fmt.Appendf(nil, `{"status":"success","data":{"resultType":"vector","result":[{"metric":{"__name__":"kerf:rules:loaded"},"value":[1,"1"]}%s]}}`, rows.Bytes())
}

// BenchmarkTick is a tick of 2,000 hints on a simulated API of 5,000 nodes with 8 GPUs: while all hold, and while all
// grow at once. It reads Prometheus' answer over a real connection; what it writes goes nowhere.
func BenchmarkTick(b *testing.B) {
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	before := heap()
	c, template := large(b)
	for name, utilization := range map[string]string{"Hold": "50", "Grow": "85"} {
		b.Run(name, func(b *testing.B) {
			clock := testclock.NewFakeClock(t0)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				answer := bytes.ReplaceAll(template, []byte("UTIL"), []byte(utilization))
				_, _ = w.Write(bytes.ReplaceAll(answer, []byte("SAMPLED"), fmt.Append(nil, clock.Now().Unix())))
			}))
			defer server.Close()
			controller := &Controller{
				Client: c, Live: c, Events: &events.FakeRecorder{}, Gauges: NewGauges(prometheus.NewRegistry()), Clock: clock,
				Source: &Measurements{Prometheus: prometheusAt(b, server.URL), Timeout: time.Minute},
				Driver: pool.DefaultDriver, Interval: tick, Collect: scaling.DefaultInterval,
			}
			for range 3 {
				require.NoError(b, controller.Tick(b.Context()))
				clock.Step(tick)
			}
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, controller.Tick(b.Context()))
				clock.Step(tick)
			}
			require.Equal(b, utilization == "85", c.said.Load() == v1alpha1.DirectionUp)
			b.ReportMetric(heap()-before, "MiB-live")
			runtime.KeepAlive(controller)
		})
	}
}
