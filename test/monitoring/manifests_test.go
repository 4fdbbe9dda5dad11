package monitoring

import (
	"bytes"
	"math"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	scalingv1alpha1 "github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

// decode refuses fields that a kind of Kubernetes or kerf does not have.
func decode(t *testing.T, text []byte) []any {
	t.Helper()
	kinds := runtime.NewScheme()
	require.NoError(t, scheme.AddToScheme(kinds))
	require.NoError(t, scalingv1alpha1.AddToScheme(kinds))
	core := serializer.NewCodecFactory(kinds, serializer.EnableStrict).UniversalDeserializer()
	var objects []any
	for _, part := range bytes.Split(append([]byte("\n"), text...), []byte("\n---\n")) {
		var meta metav1.TypeMeta
		require.NoError(t, yaml.Unmarshal(part, &meta), "%s", part)
		if meta.Kind == "" {
			continue
		}
		if create, ok := ofOthers[meta.GroupVersionKind().String()]; ok {
			object := create()
			require.NoError(t, yaml.Unmarshal(part, object), "%s", part)
			objects = append(objects, object)
			continue
		}
		object, _, err := core.Decode(part, nil, nil)
		if runtime.IsNotRegisteredError(err) {
			continue // Nothing is asserted of it here.
		}
		require.NoError(t, err, "%s", part)
		objects = append(objects, object)
	}
	return objects
}

// manifests are the examples of autoscaling, by their files.
func manifests(t *testing.T) map[string][]any {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(autoscaling, "*.yaml"))
	require.NoError(t, err)
	all := map[string][]any{}
	for _, path := range paths {
		all[path] = decode(t, read(t, path))
		require.NotEmpty(t, all[path], path)
	}
	return all
}

// Pods find their claim templates, and node pools their node class.
func TestReferencesAreShipped(t *testing.T) {
	templates, classes := map[string]bool{}, map[string]bool{}
	var pods []corev1.PodSpec
	var pools []*nodePool
	for _, objects := range manifests(t) {
		for _, object := range objects {
			switch o := object.(type) {
			case *resourceapi.ResourceClaimTemplate:
				templates[o.Namespace+"/"+o.Name] = true
			case *appsv1.Deployment:
				pods = append(pods, o.Spec.Template.Spec)
			case *corev1.Pod:
				pods = append(pods, o.Spec)
			case *ec2NodeClass:
				classes[o.Name] = true
			case *nodePool:
				pools = append(pools, o)
			}
		}
	}
	require.Len(t, pods, 3)
	for _, pod := range pods {
		named := map[string]bool{}
		for _, claim := range pod.ResourceClaims {
			require.True(t, templates["inference/"+*claim.ResourceClaimTemplateName], *claim.ResourceClaimTemplateName)
			named[claim.Name] = true
		}
		for _, container := range append(pod.InitContainers, pod.Containers...) {
			require.NotEmpty(t, container.Resources.Claims, container.Name)
			for _, claim := range container.Resources.Claims {
				require.True(t, named[claim.Name], claim.Name)
			}
		}
	}
	require.Len(t, pools, 2)
	for _, pool := range pools {
		require.True(t, classes[pool.Spec.Template.Spec.NodeClassRef.Name])
		require.NotEmpty(t, pool.Spec.Disruption.Budgets)
	}
}

// only is the one object of a type in a file of deployments/autoscaling.
func only[T any](t *testing.T, file string) T {
	t.Helper()
	var found []T
	for _, object := range manifests(t)[filepath.Join(autoscaling, file)] {
		if o, ok := object.(T); ok {
			found = append(found, o)
		}
	}
	require.Len(t, found, 1, file)
	return found[0]
}

// replicas is the formula of the HPA for a metric that is a level (computed as in pkg/controller/podautoscaler of
// Kubernetes): within the tolerance nothing, else as many as would bring the level to its target.
func replicas(current int32, level, target float64, behavior *autoscalingv2.HorizontalPodAutoscalerBehavior) int32 {
	ratio := level / target
	if ratio <= 1+behavior.ScaleUp.Tolerance.AsApproximateFloat64() && ratio >= 1-behavior.ScaleDown.Tolerance.AsApproximateFloat64() {
		return current
	}
	return int32(math.Ceil(ratio * float64(current)))
}

// Both autoscalers grow above 70 %, hold from 30 to 70 %, shrink below, and take missing data for no reason to shrink.
func TestAutoscalersHaveTwoThresholds(t *testing.T) {
	scaled, hpa := only[*scaledObject](t, "scaledobject.yaml"), only[*autoscalingv2.HorizontalPodAutoscaler](t, "hpa.yaml")
	trigger := scaled.Spec.Triggers[0]
	require.Equal(t, autoscalingv2.ValueMetricType, trigger.MetricType)
	require.Equal(t, "70", trigger.Metadata["threshold"])
	require.Equal(t, "false", trigger.Metadata["ignoreNullValues"])
	require.Equal(t, "currentReplicasIfHigher", scaled.Spec.Fallback.Behavior)
	target := hpa.Spec.Metrics[0].External.Target
	require.Equal(t, autoscalingv2.ValueMetricType, target.Type)
	require.Equal(t, int64(70), target.Value.Value())
	behaviors := []*autoscalingv2.HorizontalPodAutoscalerBehavior{
		&scaled.Spec.Advanced.HorizontalPodAutoscalerConfig.Behavior, hpa.Spec.Behavior,
	}
	for _, behavior := range behaviors {
		for _, c := range []struct {
			current int32
			level   float64
			want    int32
		}{{5, 85, 7}, {2, 71, 3}, {5, 70, 5}, {5, 45, 5}, {8, 31, 8}, {5, 29, 3}, {10, 10, 2}} {
			require.Equal(t, c.want, replicas(c.current, c.level, 70, behavior), "%d replicas at %v %%", c.current, c.level)
		}
		require.Equal(t, int32(300), *behavior.ScaleDown.StabilizationWindowSeconds)
		require.Equal(t, int32(0), *behavior.ScaleUp.StabilizationWindowSeconds)
	}
}

// What follows a hint is about its target, within its bounds, falls back as it does, and holds nothing back: that a hint
// has done. test/upstream has Kubernetes' own HPA controller act on this behavior.
func TestAutoscalersFollowTheHint(t *testing.T) {
	hint, pool := only[*scalingv1alpha1.GPUScalingHint](t, "hint.yaml"), only[*scalingv1alpha1.GPUElasticPool](t, "hint.yaml")
	deployment := only[*appsv1.Deployment](t, "deployment.yaml")
	scaled, hpa := only[*scaledObject](t, "scaledobject-hint.yaml"), only[*autoscalingv2.HorizontalPodAutoscaler](t, "hpa-hint.yaml")
	authentication := only[*triggerAuthentication](t, "scaledobject-hint.yaml")

	ref := hint.Spec.TargetRef
	require.Equal(t, []string{deployment.APIVersion, deployment.Kind, deployment.Name}, []string{ref.APIVersion, ref.Kind, ref.Name})
	target := autoscalingv2.CrossVersionObjectReference{APIVersion: ref.APIVersion, Kind: ref.Kind, Name: ref.Name}
	require.Equal(t, pool.Name, hint.Spec.Pool)
	require.Equal(t, hint.Namespace+"/"+hint.Name, pool.Spec.Primaries[0].Hint)
	require.Equal(t, scalingv1alpha1.ModeAdvise, hint.Spec.Mode, "one acts")

	require.Equal(t, target, scaled.Spec.ScaleTargetRef)
	require.Equal(t, hint.Spec.MinReplicas, scaled.Spec.MinReplicaCount)
	require.Equal(t, hint.Spec.MaxReplicas, scaled.Spec.MaxReplicaCount)
	require.Equal(t, hint.Spec.FallbackReplicas, scaled.Spec.Fallback.Replicas)
	require.Equal(t, "currentReplicasIfHigher", scaled.Spec.Fallback.Behavior)
	trigger := scaled.Spec.Triggers[0]
	require.Equal(t, "external-push", trigger.Type)
	require.Equal(t, autoscalingv2.AverageValueMetricType, trigger.MetricType)
	require.Equal(t, map[string]string{
		"scalerAddress": "kerf-controller.kerf-system:9443", "hint": hint.Name, "enableTLS": "true",
	}, trigger.Metadata)
	require.Equal(t, authentication.Name, trigger.AuthenticationRef.Name)
	var parameters []string
	for _, secret := range authentication.Spec.SecretTargetRef {
		parameters = append(parameters, secret.Parameter)
	}
	require.Equal(t, []string{"caCert", "tlsClientCert", "tlsClientKey"}, parameters, "what KEDA's external scaler takes")

	require.Equal(t, target, hpa.Spec.ScaleTargetRef)
	require.Equal(t, hint.Spec.MinReplicas, *hpa.Spec.MinReplicas)
	require.Equal(t, hint.Spec.MaxReplicas, hpa.Spec.MaxReplicas)
	metric := hpa.Spec.Metrics[0].External
	require.Equal(t, "kerf_hint_scale_to_replicas", metric.Metric.Name)
	require.Equal(t, map[string]string{"hint_name": hint.Name}, metric.Metric.Selector.MatchLabels)
	require.Equal(t, autoscalingv2.AverageValueMetricType, metric.Target.Type)
	require.Equal(t, int64(1), metric.Target.AverageValue.Value())

	require.Equal(t, *hpa.Spec.Behavior, scaled.Spec.Advanced.HorizontalPodAutoscalerConfig.Behavior)
	for _, rules := range []*autoscalingv2.HPAScalingRules{hpa.Spec.Behavior.ScaleUp, hpa.Spec.Behavior.ScaleDown} {
		require.True(t, rules.Tolerance.IsZero())
		require.Equal(t, int32(0), *rules.StabilizationWindowSeconds)
		require.Len(t, rules.Policies, 1)
		require.Equal(t, autoscalingv2.PodsScalingPolicy, rules.Policies[0].Type)
		require.GreaterOrEqual(t, rules.Policies[0].Value, hint.Spec.MaxReplicas)
	}
}

// The script wraps the rule files, and changes nothing in them.
func TestPrometheusRules(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "sh", filepath.Join(monitoring, "prometheusrules.sh"), "mine").Output()
	require.NoError(t, err)
	var rules []rule
	for _, object := range decode(t, out) {
		wrapped, ok := object.(*prometheusRule)
		require.True(t, ok)
		require.Equal(t, "mine", wrapped.Labels["release"])
		for _, group := range wrapped.Spec.Groups {
			rules = append(rules, group.Rules...)
		}
	}
	require.Equal(t, shippedRules(t), rules)
}
