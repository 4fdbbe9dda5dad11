package upstream

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	scalefake "k8s.io/client-go/scale/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/kubernetes/pkg/apis/autoscaling"
	hpaapi "k8s.io/kubernetes/pkg/apis/autoscaling/v2"
	hpavalidation "k8s.io/kubernetes/pkg/apis/autoscaling/validation"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
	"sigs.k8s.io/yaml"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/keda"
)

// external are external metrics as milli-values, which is what an HPA works with.
type external struct {
	metrics.MetricsClient
	milli func(metric string) (int64, error)
}

func (e external) GetExternalMetric(metric, _ string, _ labels.Selector) ([]int64, time.Time, error) {
	value, err := e.milli(metric)
	return []int64{value}, time.Now(), err
}

// desired are the replicas after the HPA controller has looked at a target with so many, all of them ready.
func desired(t *testing.T, replicas int32, metric autoscalingv2.MetricSpec, behavior *autoscalingv2.HorizontalPodAutoscalerBehavior, values external) int32 {
	t.Helper()
	after, active := judged(t, replicas, metric, behavior, values)
	require.Equal(t, corev1.ConditionTrue, active.Status, active.Message)
	return after
}

// judged also returns whether the HPA could compute anything.
func judged(t *testing.T, replicas int32, metric autoscalingv2.MetricSpec, behavior *autoscalingv2.HorizontalPodAutoscalerBehavior, values external) (int32, autoscalingv2.HorizontalPodAutoscalerCondition) {
	t.Helper()
	hpa := &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta:   metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "inference", Name: "model-a", ResourceVersion: "1"},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "model-a"},
			MaxReplicas:    1000, Metrics: []autoscalingv2.MetricSpec{metric}, Behavior: behavior,
		},
	}
	admit(t, hpa)
	objects := []runtime.Object{hpa}
	for i := range replicas {
		objects = append(objects, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "inference", Name: fmt.Sprintf("model-a-%d", i), Labels: map[string]string{"app": "model-a"}},
			Status: corev1.PodStatus{
				Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			},
		})
	}
	client := fake.NewClientset(objects...)
	type outcome struct {
		replicas int32
		active   autoscalingv2.HorizontalPodAutoscalerCondition
	}
	after, looked := replicas, make(chan outcome, 1)
	scales := &scalefake.FakeScaleClient{}
	scales.AddReactor("get", "deployments", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &autoscalingv1.Scale{
			ObjectMeta: metav1.ObjectMeta{Namespace: "inference", Name: "model-a"},
			Spec:       autoscalingv1.ScaleSpec{Replicas: replicas},
			Status:     autoscalingv1.ScaleStatus{Replicas: replicas, Selector: "app=model-a"},
		}, nil
	})
	scales.AddReactor("update", "deployments", func(action clienttesting.Action) (bool, runtime.Object, error) {
		scale := action.(clienttesting.UpdateAction).GetObject().(*autoscalingv1.Scale)
		after = scale.Spec.Replicas
		return true, scale, nil
	})
	client.PrependReactor("update", "horizontalpodautoscalers", func(action clienttesting.Action) (bool, runtime.Object, error) {
		// The status is written last.
		hpa := action.(clienttesting.UpdateAction).GetObject().(*autoscalingv2.HorizontalPodAutoscaler)
		for _, condition := range hpa.Status.Conditions {
			if condition.Type == autoscalingv2.ScalingActive {
				select {
				case looked <- outcome{after, condition}:
				default: // It goes on; its first look is what is asked for.
				}
			}
		}
		return true, hpa, nil
	})
	apps := schema.GroupVersion{Group: "apps", Version: "v1"}
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{apps})
	mapper.Add(apps.WithKind("Deployment"), meta.RESTScopeNamespace)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	factory := informers.NewSharedInformerFactory(client, 0)
	// The settings of kube-controller-manager, but for the period.
	controller := podautoscaler.NewHorizontalController(ctx, client.CoreV1(), scales, client.AutoscalingV2(), mapper, values,
		factory.Autoscaling().V2().HorizontalPodAutoscalers(), factory.Core().V1().Pods(),
		time.Second, 5*time.Minute, 0.1, 5*time.Minute, 30*time.Second)
	factory.Start(ctx.Done())
	ended := make(chan struct{})
	go func() { defer close(ended); controller.Run(ctx, 1) }()
	defer func() { cancel(); <-ended; factory.Shutdown() }()
	select {
	case first := <-looked:
		return first.replicas, first.active
	case <-time.After(time.Minute):
		t.Fatal("the HPA controller says nothing")
		return 0, autoscalingv2.HorizontalPodAutoscalerCondition{}
	}
}

// admit does to an HPA what the API server does: defaults and validation.
func admit(t *testing.T, hpa *autoscalingv2.HorizontalPodAutoscaler) {
	t.Helper()
	kinds := runtime.NewScheme()
	require.NoError(t, hpaapi.AddToScheme(kinds))
	kinds.Default(hpa)
	converted := &autoscaling.HorizontalPodAutoscaler{}
	require.NoError(t, hpaapi.Convert_v2_HorizontalPodAutoscaler_To_autoscaling_HorizontalPodAutoscaler(hpa.DeepCopy(), converted, nil))
	require.NoError(t, hpavalidation.ValidateHorizontalPodAutoscaler(converted, hpavalidation.HorizontalPodAutoscalerSpecValidationOptions{
		MinReplicasLowerBound: 1,
	}).ToAggregate())
}

// hints are one for each number of replicas to set.
type hints struct{}

func (hints) Get(_ context.Context, key types.NamespacedName) (*v1alpha1.GPUScalingHint, error) {
	var scaleTo int32
	if _, err := fmt.Sscanf(key.Name, "set-%d", &scaleTo); err != nil {
		return nil, apierrors.NewNotFound(v1alpha1.GroupVersion.WithResource("gpuscalinghints").GroupResource(), key.Name)
	}
	return &v1alpha1.GPUScalingHint{Status: v1alpha1.GPUScalingHintStatus{
		ScaleTo: &scaleTo, ValidUntil: &metav1.Time{Time: time.Now().Add(time.Hour)},
	}}, nil
}

func (hints) Changed(context.Context, types.NamespacedName) <-chan struct{} { return nil }

// connected is a client of a server of ours.
func connected(t *testing.T) pb.ExternalScalerClient {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- (&keda.Server{Hints: hints{}, Address: address}).Start(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-ended) })
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, connection.Close()) })
	return pb.NewExternalScalerClient(connection)
}

// ofKEDA are the metric of an HPA that KEDA makes of our answers, and its values: milli-values, the float fields where
// they are above zero, and the trigger's index before the name (pkg/scalers/external_scaler.go of KEDA 2.21).
func ofKEDA(t *testing.T, client pb.ExternalScalerClient, hint string) (autoscalingv2.MetricSpec, external) {
	t.Helper()
	ref := &pb.ScaledObjectRef{Namespace: "inference", Name: "model-a", ScalerMetadata: map[string]string{"hint": hint}}
	specs, err := client.GetMetricSpec(t.Context(), ref)
	require.NoError(t, err)
	require.Len(t, specs.MetricSpecs, 1)
	ours := specs.MetricSpecs[0]
	require.Positive(t, ours.TargetSizeFloat)
	return averageValue("s0-"+ours.MetricName, ours.TargetSizeFloat), external{milli: func(metric string) (int64, error) {
		answer, err := client.GetMetrics(t.Context(), &pb.GetMetricsRequest{ScaledObjectRef: ref, MetricName: strings.TrimPrefix(metric, "s0-")})
		if err != nil {
			return 0, err
		}
		return int64(answer.MetricValues[0].MetricValueFloat * 1000), nil
	}}
}

func averageValue(name string, target float64) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: name},
		Target: autoscalingv2.MetricTarget{
			Type: autoscalingv2.AverageValueMetricType, AverageValue: apiresource.NewMilliQuantity(int64(target*1000), apiresource.DecimalSI),
		},
	}}
}

func value(name string, target int64) autoscalingv2.MetricSpec {
	spec := averageValue(name, 0)
	spec.External.Target = autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: apiresource.NewQuantity(target, apiresource.DecimalSI)}
	return spec
}

// shipped is the behavior that the examples give an HPA on a hint.
func shipped(t *testing.T) *autoscalingv2.HorizontalPodAutoscalerBehavior {
	t.Helper()
	data, err := os.ReadFile("../../deployments/autoscaling/hpa-hint.yaml")
	require.NoError(t, err)
	hpa := &autoscalingv2.HorizontalPodAutoscaler{}
	require.NoError(t, yaml.UnmarshalStrict(data, hpa))
	admit(t, hpa)
	return hpa.Spec.Behavior
}

// The HPA controller of Kubernetes sets what a hint says, at once, by the examples' behavior.
func TestHPAFollowsHints(t *testing.T) {
	client := connected(t)
	for _, c := range []struct{ replicas, hint int32 }{
		{1, 1}, {1, 2}, {2, 5}, {5, 2}, {5, 5}, {8, 1},
		{10, 11}, {11, 10}, {30, 31}, {31, 30}, {100, 101}, {101, 100}, {1, 300},
	} {
		t.Run(fmt.Sprintf("%d to %d", c.replicas, c.hint), func(t *testing.T) {
			metric, values := ofKEDA(t, client, fmt.Sprintf("set-%d", c.hint))
			require.Equal(t, c.hint, desired(t, c.replicas, metric, shipped(t), values))
		})
	}
	t.Run("absent", func(t *testing.T) {
		metric, values := ofKEDA(t, client, "absent")
		after, active := judged(t, 5, metric, shipped(t), values)
		require.Equal(t, int32(5), after)
		require.Equal(t, "FailedGetExternalMetric", active.Reason)
		require.Contains(t, active.Message, "hint inference/absent does not exist")
	})
}

// What goes wrong without: each of these is the same controller, on other metrics or with another behavior.
func TestWhatMisleadsAnHPA(t *testing.T) {
	client := connected(t)
	noTolerance := shipped(t)
	tenPercent := noTolerance.DeepCopy()
	tenPercent.ScaleUp.Tolerance, tenPercent.ScaleDown.Tolerance = nil, nil
	stabilized := noTolerance.DeepCopy()
	stabilized.ScaleDown.StabilizationWindowSeconds = nil

	hint := func(replicas, scaleTo int32, behavior *autoscalingv2.HorizontalPodAutoscalerBehavior) int32 {
		metric, values := ofKEDA(t, client, fmt.Sprintf("set-%d", scaleTo))
		return desired(t, replicas, metric, behavior, values)
	}
	utilization := func(replicas int32, percent int64, metric autoscalingv2.MetricSpec, behavior *autoscalingv2.HorizontalPodAutoscalerBehavior) int32 {
		return desired(t, replicas, metric, behavior, external{milli: func(string) (int64, error) { return percent * 1000, nil }})
	}

	// The default tolerance swallows a step of one from 10 replicas on.
	require.Equal(t, int32(10), hint(9, 10, tenPercent))
	for _, replicas := range []int32{10, 11, 50} {
		require.Equal(t, replicas, hint(replicas, replicas+1, tenPercent))
		require.Equal(t, replicas, hint(replicas, replicas-1, tenPercent))
	}
	// The default window holds back what the hint has held back already.
	require.Equal(t, int32(8), hint(8, 6, stabilized))
	// A utilization as an average value is two replicas at 85 % and a target of 70, whatever there is.
	for _, replicas := range []int32{2, 3, 5, 8} {
		require.Equal(t, int32(2), utilization(replicas, 85, averageValue("utilization", 70), noTolerance))
	}
	// As a value it is right when it is high, but one target has no dead band.
	require.Equal(t, int32(7), utilization(5, 85, value("utilization", 70), tenPercent))
	require.Equal(t, int32(4), utilization(5, 45, value("utilization", 70), tenPercent))
}
