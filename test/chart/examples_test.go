package chart

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/dynamic-resource-allocation/cel"
)

const examplesDir = "../../deployments/examples"

// exampleFiles are the paths of all examples.
func exampleFiles(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.yaml", "policy/*.yaml"} {
		files, err := filepath.Glob(filepath.Join(examplesDir, pattern))
		require.NoError(t, err)
		require.NotEmpty(t, files)
		all = append(all, files...)
	}
	return all
}

// The examples are valid, name classes that the chart makes, and run what the local cluster has.
func TestExamples(t *testing.T) {
	offered := offers{classes(t, ""), extendedResources(t, "")}
	names := map[string]string{}
	for _, file := range exampleFiles(t) {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		require.True(t, bytes.HasPrefix(data, []byte("# ")), "%s: the first comment says what to expect", file)
		for _, object := range decode(t, string(data)) {
			offered.require(t, file, object)
			meta, err := apimeta.Accessor(object)
			require.NoError(t, err)
			key := object.GetObjectKind().GroupVersionKind().Kind + "/" + meta.GetName()
			require.NotContains(t, names, key, "also in %s: all examples can be applied at once", names[key])
			names[key] = file
		}
	}
}

// offers are what the chart offers to claims and pods: device classes, and extended resources with theirs.
type offers struct {
	classes   map[string]cel.CompilationResult
	resources map[string]string
}

// require checks that a manifest asks for nothing else, with selectors that compile and parameters that the plugin takes,
// and runs what the local cluster has.
func (o offers) require(t *testing.T, where string, object runtime.Object) {
	t.Helper()
	var devices resourceapi.DeviceClaim
	var pod corev1.PodSpec
	switch object := object.(type) {
	case *resourceapi.ResourceClaimTemplate:
		devices = object.Spec.Spec.Devices
	case *resourceapi.ResourceClaim:
		devices = object.Spec.Devices
	case *corev1.Pod:
		pod = object.Spec
	case *appsv1.Deployment:
		pod = object.Spec.Template.Spec
	case *schedulingv1.PriorityClass:
	case *corev1.ResourceQuota:
		for limited := range object.Spec.Hard {
			if class, ok := strings.CutSuffix(string(limited), corev1.ResourceClaimsPerClass); ok {
				require.Contains(t, o.classes, class, where)
			} else {
				require.Contains(t, o.resources, strings.TrimPrefix(string(limited), corev1.DefaultResourceRequestsPrefix), where)
			}
		}
	default:
		t.Fatalf("%s: a %T", where, object)
	}
	for _, r := range devices.Requests {
		if r.Exactly != nil {
			require.Contains(t, o.classes, r.Exactly.DeviceClassName, where)
			for _, s := range r.Exactly.Selectors {
				require.Nil(t, cel.GetCompiler(cel.Features{}).CompileCELExpression(s.CEL.Expression, cel.Options{}).Error, where)
			}
		}
		for _, alternative := range r.FirstAvailable {
			require.Contains(t, o.classes, alternative.DeviceClassName, where)
		}
	}
	for _, c := range devices.Config {
		require.NoError(t, parse(string(c.Opaque.Parameters.Raw)), where)
	}
	for _, c := range pod.Containers {
		require.Equal(t, "workload:v1", c.Image, where)
		for resource := range c.Resources.Limits {
			require.Contains(t, o.resources, string(resource), where)
		}
		require.NotZero(t, len(c.Resources.Claims)+len(c.Resources.Limits), where)
	}
}
