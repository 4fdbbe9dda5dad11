package chart

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"sigs.k8s.io/yaml"

	scalingv1alpha1 "github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/scaling"
)

// crd is a checked-in CRD that has passed the API server's validation.
type crd struct {
	kind       string
	structural *schema.Structural
	schema     schemavalidation.SchemaValidator
	rules      *cel.Validator
}

func crds(t *testing.T) map[string]crd {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(chartDir, "files/crds/*.yaml"))
	require.NoError(t, err)
	all := map[string]crd{}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		external := &apiextensionsv1.CustomResourceDefinition{}
		require.NoError(t, yaml.UnmarshalStrict(data, external))
		apiextensionsv1.SetDefaults_CustomResourceDefinition(external)
		apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&external.Spec)
		internal := &apiextensions.CustomResourceDefinition{}
		require.NoError(t, apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(external, internal, nil))
		internal.Status.StoredVersions = []string{"v1alpha1"}
		require.Empty(t, validation.ValidateCustomResourceDefinition(context.Background(), internal), path)

		props := internal.Spec.Validation.OpenAPIV3Schema
		structural, err := schema.NewStructural(props)
		require.NoError(t, err)
		validator, _, err := schemavalidation.NewSchemaValidator(props)
		require.NoError(t, err)
		all[internal.Spec.Names.Kind] = crd{internal.Spec.Names.Kind, structural, validator, cel.NewValidator(structural, true, math.MaxInt)}
	}
	return all
}

// refusals are what an API server would say about an object.
func (c crd) refusals(t *testing.T, manifest string) string {
	t.Helper()
	object := map[string]any{}
	require.NoError(t, yaml.Unmarshal([]byte(manifest), &object))
	// Numbers of JSON are int64 in the API server.
	object = normalize(object).(map[string]any)
	defaulting.Default(object, c.structural)
	errs := schemavalidation.ValidateCustomResource(nil, object, c.schema)
	more, _ := c.rules.Validate(context.Background(), nil, c.structural, object, nil, math.MaxInt)
	if all := append(errs, more...).ToAggregate(); all != nil {
		return all.Error()
	}
	return ""
}

func normalize(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key := range v {
			v[key] = normalize(v[key])
		}
	case []any:
		for i := range v {
			v[i] = normalize(v[i])
		}
	case float64:
		if v == math.Trunc(v) {
			return int64(v)
		}
	}
	return v
}

func TestCRDsRefuse(t *testing.T) {
	all := crds(t)
	require.Len(t, all, 2)
	hint := func(spec string) string {
		return "apiVersion: scaling.kerf.dev/v1alpha1\nkind: GPUScalingHint\nmetadata: {name: a}\nspec: {targetRef: {apiVersion: apps/v1, kind: Deployment, name: a}, " + spec + "}"
	}
	pool := func(spec string) string {
		return "apiVersion: scaling.kerf.dev/v1alpha1\nkind: GPUElasticPool\nmetadata: {name: a}\nspec: {" + spec + "}"
	}
	for name, c := range map[string]struct{ kind, manifest, want string }{
		"a class":                   {"GPUScalingHint", hint("class: Realtime, maxReplicas: 4"), ""},
		"thresholds":                {"GPUScalingHint", hint("thresholds: {scaleUpAbove: 70, scaleDownBelow: 30}, minReplicas: 2, maxReplicas: 4"), ""},
		"neither":                   {"GPUScalingHint", hint("maxReplicas: 4"), "either a class or thresholds"},
		"both":                      {"GPUScalingHint", hint("class: Batch, thresholds: {scaleUpAbove: 70, scaleDownBelow: 30}, maxReplicas: 4"), "either a class or thresholds"},
		"an unknown class":          {"GPUScalingHint", hint("class: Fast, maxReplicas: 4"), "Unsupported value"},
		"no dead band":              {"GPUScalingHint", hint("thresholds: {scaleUpAbove: 50, scaleDownBelow: 50}, maxReplicas: 4"), "scaleDownBelow must be below scaleUpAbove"},
		"a threshold never reached": {"GPUScalingHint", hint("thresholds: {scaleUpAbove: 100, scaleDownBelow: 50}, maxReplicas: 4"), "less than or equal to 99"},
		"min above max":             {"GPUScalingHint", hint("class: Realtime, minReplicas: 5, maxReplicas: 4"), "minReplicas must not be above maxReplicas"},
		"a maximum of zero":         {"GPUScalingHint", hint("class: Realtime, maxReplicas: 0"), "greater than or equal to 1"},
		"to zero":                   {"GPUScalingHint", hint("class: Realtime, minReplicas: 0, maxReplicas: 4"), "greater than or equal to 1"},
		"no maximum":                {"GPUScalingHint", hint("class: Realtime"), "maxReplicas: Required"},
		"an unknown mode":           {"GPUScalingHint", hint("class: Realtime, maxReplicas: 4, mode: Force"), "Unsupported value"},
		"a signal in capitals":      {"GPUScalingHint", hint("class: Realtime, maxReplicas: 4, signals: [{name: Queue, query: x, scaleUpAbove: 1}]"), "signals[0].name"},
		"nodes":                     {"GPUElasticPool", pool("selector: {matchLabels: {pool: elastic}}, price: {perGPUHour: '2.50'}"), ""},
		"a primary":                 {"GPUElasticPool", pool("selector: {matchLabels: {pool: elastic}}, primaries: [{name: a, hint: ns/a, selector: {matchLabels: {pool: a}}}]"), ""},
		"all nodes":                 {"GPUElasticPool", pool("selector: {}"), "selector must not be empty"},
		"a primary of all nodes":    {"GPUElasticPool", pool("selector: {matchLabels: {pool: elastic}}, primaries: [{name: a, hint: ns/a, selector: {}}]"), "selector must not be empty"},
		"a hint without namespace":  {"GPUElasticPool", pool("selector: {matchLabels: {pool: elastic}}, primaries: [{name: a, hint: a, selector: {matchLabels: {pool: a}}}]"), "primaries[0].hint"},
		"a price in words":          {"GPUElasticPool", pool("selector: {matchLabels: {pool: elastic}}, price: {perGPUHour: cheap}"), "price.perGPUHour"},
	} {
		t.Run(name, func(t *testing.T) {
			got := all[c.kind].refusals(t, c.manifest)
			// kerf hint refuses the same offline, as far as it matters to a replay.
			if c.kind == "GPUScalingHint" && !strings.Contains(c.manifest, "mode:") && !strings.Contains(c.manifest, "signals:") {
				given := scalingv1alpha1.GPUScalingHint{Spec: scalingv1alpha1.GPUScalingHintSpec{MinReplicas: 1}}
				require.NoError(t, yaml.Unmarshal([]byte(c.manifest), &given))
				require.Equal(t, c.want == "", scaling.Check(&given.Spec) == nil)
			}
			if c.want == "" {
				require.Empty(t, got)
			} else {
				require.Contains(t, got, c.want)
			}
		})
	}
}

// The example of a hint with its pool is what an API server takes.
func TestExampleHint(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(root, "deployments/autoscaling/hint.yaml"))
	require.NoError(t, err)
	all, kinds := crds(t), []string{}
	for manifest := range strings.SplitSeq(string(data), "\n---\n") {
		var meta struct{ Kind string }
		require.NoError(t, yaml.Unmarshal([]byte(manifest), &meta))
		require.Empty(t, all[meta.Kind].refusals(t, manifest))
		kinds = append(kinds, meta.Kind)
	}
	require.Equal(t, []string{"GPUScalingHint", "GPUElasticPool"}, kinds)
}

func TestCRDDefaults(t *testing.T) {
	object := map[string]any{"spec": map[string]any{"class": "Realtime", "maxReplicas": int64(4)}}
	defaulting.Default(object, crds(t)["GPUScalingHint"].structural)
	data, err := yaml.Marshal(object)
	require.NoError(t, err)
	hint := &scalingv1alpha1.GPUScalingHint{}
	require.NoError(t, yaml.UnmarshalStrict(data, hint))
	require.Equal(t, scalingv1alpha1.GPUScalingHintSpec{
		Class: scalingv1alpha1.ClassRealtime, MinReplicas: 1, MaxReplicas: 4, FallbackReplicas: 3,
		Memory: scalingv1alpha1.MemoryElastic, Mode: scalingv1alpha1.ModeAdvise,
	}, hint.Spec)
}

// Only who asks for them gets the CRDs, and uninstalling does not take all hints along.
func TestCRDsAreOptIn(t *testing.T) {
	without, err := render(t, "")
	require.NoError(t, err)
	require.NotContains(t, without, "CustomResourceDefinition")
	with, err := render(t, "crds: {create: true}")
	require.NoError(t, err)
	for kind := range crds(t) {
		require.Contains(t, with, "kind: "+kind+"\n")
	}
	require.Contains(t, with, "helm.sh/resource-policy: keep")
}
