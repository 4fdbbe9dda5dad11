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
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// decode refuses fields that a kind does not have.
func decode(t *testing.T, text []byte) []any {
	t.Helper()
	core := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var objects []any
	for _, part := range bytes.Split(append([]byte("\n"), text...), []byte("\n---\n")) {
		var meta metav1.TypeMeta
		require.NoError(t, yaml.Unmarshal(part, &meta), "%s", part)
		if meta.Kind == "" {
			continue
		}
		if create, ok := ofOthers[meta.GroupVersionKind().String()]; ok {
			object := create()
			require.NoError(t, yaml.UnmarshalStrict(part, object), "%s", part)
			objects = append(objects, object)
			continue
		}
		object, _, err := core.Decode(part, nil, nil)
		require.NoError(t, err, "%s", part)
		objects = append(objects, object)
	}
	return objects
}

// manifests are the objects that are shipped, by their files.
func manifests(t *testing.T) map[string][]any {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(autoscaling, "*.yaml"))
	require.NoError(t, err)
	all := map[string][]any{}
	for _, path := range append(paths, filepath.Join(monitoring, "servicemonitor.yaml")) {
		all[path] = decode(t, read(t, path))
		require.NotEmpty(t, all[path], path)
	}
	return all
}

func TestManifestsDecode(t *testing.T) {
	require.Len(t, manifests(t), 8)
}

func TestMisspeltFieldsAreRefused(t *testing.T) {
	for kind, create := range ofOthers {
		require.Error(t, yaml.UnmarshalStrict([]byte("spec: {colour: red}"), create()), kind)
	}
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
	var behaviors []*autoscalingv2.HorizontalPodAutoscalerBehavior
	for _, objects := range manifests(t) {
		for _, object := range objects {
			switch o := object.(type) {
			case *scaledObject:
				trigger := o.Spec.Triggers[0]
				require.Equal(t, autoscalingv2.ValueMetricType, trigger.MetricType)
				require.Equal(t, "70", trigger.Metadata["threshold"])
				require.Equal(t, "false", trigger.Metadata["ignoreNullValues"])
				require.Equal(t, "currentReplicasIfHigher", o.Spec.Fallback.Behavior)
				behaviors = append(behaviors, &o.Spec.Advanced.HorizontalPodAutoscalerConfig.Behavior)
			case *autoscalingv2.HorizontalPodAutoscaler:
				target := o.Spec.Metrics[0].External.Target
				require.Equal(t, autoscalingv2.ValueMetricType, target.Type)
				require.Equal(t, int64(70), target.Value.Value())
				behaviors = append(behaviors, o.Spec.Behavior)
			}
		}
	}
	require.Len(t, behaviors, 2)
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
