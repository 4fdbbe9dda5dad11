package chart

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	celgo "github.com/google/cel-go/cel"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	apiservercel "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	gpuv1alpha1 "github.com/kerf-project/kerf/api/gpu/v1alpha1"
	nvidiav1beta1 "github.com/kerf-project/kerf/api/nvidia/v1beta1"
)

// expression is one of a policy, as the API server compiles it.
type expression struct {
	name, text string
	returns    *celgo.Type
}

func (e expression) GetName() string            { return e.name }
func (e expression) GetExpression() string      { return e.text }
func (e expression) ReturnTypes() []*celgo.Type { return []*celgo.Type{e.returns} }

// policy is the policy on parameters, compiled with the API server's own code.
type policy struct {
	admissionv1.ValidatingAdmissionPolicySpec
	validations, messages cel.ConditionEvaluator
}

func newPolicy(t *testing.T, values string) policy {
	t.Helper()
	manifests, err := render(t, values)
	require.NoError(t, err)
	var p policy
	bound := false
	for _, object := range decode(t, manifests) {
		switch o := object.(type) {
		case *admissionv1.ValidatingAdmissionPolicy:
			if strings.HasSuffix(o.Name, "-parameters") {
				p.ValidatingAdmissionPolicySpec = o.Spec
			}
		case *admissionv1.ValidatingAdmissionPolicyBinding:
			bound = bound || strings.HasSuffix(o.Spec.PolicyName, "-parameters")
		}
	}
	require.True(t, bound)
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	require.NoError(t, err)
	for _, v := range p.Variables {
		result := compiler.CompileAndStoreVariable(expression{v.Name, v.Expression, celgo.AnyType}, cel.OptionalVariableDeclarations{}, environment.NewExpressions)
		require.Nil(t, result.Error, v.Name)
	}
	var validations, messages []cel.ExpressionAccessor
	for _, v := range p.Validations {
		message := v.MessageExpression
		if message == "" {
			encoded, err := json.Marshal(v.Message)
			require.NoError(t, err)
			message = string(encoded)
		}
		validations = append(validations, expression{text: v.Expression, returns: celgo.BoolType})
		messages = append(messages, expression{text: message, returns: celgo.StringType})
	}
	p.validations = compiler.CompileCondition(validations, cel.OptionalVariableDeclarations{}, environment.NewExpressions)
	p.messages = compiler.CompileCondition(messages, cel.OptionalVariableDeclarations{}, environment.NewExpressions)
	require.Empty(t, p.validations.CompilationErrors())
	require.Empty(t, p.messages.CompilationErrors())
	return p
}

// refusals is what the policy says of an object, whichever way the API server
// shows it to the expressions. None may fail: what fails is let through.
func (p policy) refusals(t *testing.T, object runtime.Object) []string {
	t.Helper()
	plain, err := admission.ConvertObjectToUnstructured(object)
	require.NoError(t, err)
	typed := p.evaluate(t, object, object)
	require.Equal(t, typed, p.evaluate(t, object, plain))
	return typed
}

func (p policy) evaluate(t *testing.T, object, shown runtime.Object) []string {
	t.Helper()
	gvk := object.GetObjectKind().GroupVersionKind()
	attributes := admission.NewAttributesRecord(object, nil, gvk, "ns", "name", resourceapi.SchemeGroupVersion.WithResource("resourceclaims"), "", admission.Create, &metav1.CreateOptions{}, false, nil)
	versioned := &admission.VersionedAttributes{Attributes: attributes, VersionedKind: gvk, VersionedObject: admission.NewLazyObject(shown)}
	request := cel.CreateAdmissionRequest(attributes, metav1.GroupVersionResource{}, metav1.GroupVersionKind{})
	results := func(e cel.ConditionEvaluator) []cel.EvaluationResult {
		all, _, err := e.ForInput(t.Context(), versioned, request, cel.OptionalVariableBindings{}, nil, apiservercel.RuntimeCELCostBudget)
		require.NoError(t, err)
		return all
	}
	messages := results(p.messages)
	var all []string
	for i, verdict := range results(p.validations) {
		require.NoError(t, verdict.Error, p.Validations[i].Expression)
		if verdict.EvalResult.Value() == false {
			require.NoError(t, messages[i].Error, p.Validations[i].MessageExpression)
			all = append(all, fmt.Sprint(messages[i].EvalResult.Value()))
		}
	}
	return all
}

// claims are a claim and a template with those parameters, beside others that are fine.
func claims(driver string, parameters ...string) []runtime.Object {
	var configs []resourceapi.DeviceClaimConfiguration
	add := func(driver, raw string) {
		configs = append(configs, resourceapi.DeviceClaimConfiguration{DeviceConfiguration: resourceapi.DeviceConfiguration{
			Opaque: &resourceapi.OpaqueDeviceConfiguration{Driver: driver, Parameters: runtime.RawExtension{Raw: []byte(raw)}},
		}})
	}
	add("nic.example.com", `{"mtu":9000}`)
	for _, raw := range parameters {
		add(driver, raw)
	}
	spec := resourceapi.ResourceClaimSpec{Devices: resourceapi.DeviceClaim{Config: configs}}
	meta := func(kind string) metav1.TypeMeta {
		return metav1.TypeMeta{APIVersion: "resource.k8s.io/v1", Kind: kind}
	}
	return []runtime.Object{
		&resourceapi.ResourceClaim{TypeMeta: meta("ResourceClaim"), Spec: spec},
		&resourceapi.ResourceClaimTemplate{TypeMeta: meta("ResourceClaimTemplate"), Spec: resourceapi.ResourceClaimTemplateSpec{Spec: spec}},
	}
}

// parse is what the plugin does with parameters.
func parse(raw string) error {
	var meta metav1.TypeMeta
	if json.Unmarshal([]byte(raw), &meta) == nil && meta.APIVersion == nvidiav1beta1.APIVersion {
		_, err := nvidiav1beta1.Parse([]byte(raw))
		return err
	}
	_, err := gpuv1alpha1.Parse([]byte(raw))
	return err
}

func ours(spec string) string {
	return `{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","spec":` + spec + `}`
}

func theirs(kind, sharing string) string {
	return `{"apiVersion":"resource.nvidia.com/v1beta1","kind":"` + kind + `","sharing":` + sharing + `}`
}

// What the plugin accepts is let through, and what it refuses is refused with the field's name.
func TestParametersPolicy(t *testing.T) {
	p := newPolicy(t, "")
	accepted := []string{
		ours(`{}`), ours(`null`), ours(`{"mig":null,"timeSlicing":null}`), ours(`{"mig":{},"timeSlicing":{}}`),
		ours(`{"mig":{"profile":"1g.10gb+me","count":2}}`), ours(`{"mig":{"profile":"","count":0}}`), ours(`{"mig":{"profile":null,"count":null}}`),
		ours(`{"timeSlicing":{"replicas":4,"schedulingPolicy":"default","contextSwitchInterval":100}}`),
		ours(`{"timeSlicing":{"replicas":null,"schedulingPolicy":null,"contextSwitchInterval":null}}`),
		ours(`{"timeSlicing":{"schedulingPolicy":"conservative"}}`), ours(`{"timeSlicing":{"schedulingPolicy":"aggressive"}}`),
		`{"apiVersion":"gpu.nvidia.com/v1alpha1","kind":"GpuClaimParameters","metadata":{"name":"x","namespace":"y"}}`,
		`{"apiVersion":"resource.nvidia.com/v1beta1","kind":"GpuConfig"}`,
		theirs("GpuConfig", `null`), theirs("GpuConfig", `{}`), theirs("GpuConfig", `{"strategy":null,"timeSlicingConfig":null,"mpsConfig":null}`),
		theirs("GpuConfig", `{"strategy":"TimeSlicing"}`), theirs("GpuConfig", `{"strategy":"TimeSlicing","timeSlicingConfig":{}}`),
		theirs("GpuConfig", `{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":null}}`),
		theirs("GpuConfig", `{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"Short"}}`),
		theirs("GpuConfig", `{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"Medium"}}`),
		theirs("GpuConfig", `{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"Long"}}`),
		theirs("MigDeviceConfig", `{"strategy":"TimeSlicing"}`),
		theirs("MigDeviceConfig", `{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"Default"}}`),
	}
	for _, raw := range accepted {
		require.NoError(t, parse(raw), raw)
		for _, object := range claims("gpu.nvidia.com", raw) {
			require.Empty(t, p.refusals(t, object), raw)
		}
	}
	for _, object := range claims("gpu.nvidia.com", accepted...) {
		require.Empty(t, p.refusals(t, object), "all at once")
	}
	for raw, named := range map[string]string{
		`{}`: "apiVersion and kind",
		`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaim"}`:                    "GpuClaimParameters of gpu.kerf.dev/v1alpha1",
		`{"apiVersion":"resource.nvidia.com/v1beta1","kind":"GpuClaimParameters"}`:    "apiVersion and kind",
		`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuConfig"}`:                   "apiVersion and kind",
		`{"apiVersion":null,"kind":null}`:                                             "apiVersion and kind",
		`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","mig":{}}`: "unknown field mig: known are apiVersion, kind, metadata, spec",
		ours(`{"migg":{}}`):                          "unknown field spec.migg: known are mig, timeSlicing",
		ours(`{"mig":{"profil":"1g.10gb"}}`):         "unknown field spec.mig.profil",
		ours(`{"timeSlicing":{"interval":"Short"}}`): "unknown field spec.timeSlicing.interval",
		ours(`[]`):                                                                                       "spec: it has to be an object",
		ours(`{"mig":"1g.10gb"}`):                                                                        "spec.mig: it has to be an object",
		ours(`{"timeSlicing":true}`):                                                                     "spec.timeSlicing: it has to be an object",
		ours(`{"mig":{"profile":10}}`):                                                                   "spec.mig.profile: ",
		ours(`{"mig":{"count":-1}}`):                                                                     "spec.mig.count: ",
		ours(`{"mig":{"count":"1"}}`):                                                                    "spec.mig.count: ",
		ours(`{"timeSlicing":{"schedulingPolicy":"fair"}}`):                                              "spec.timeSlicing.schedulingPolicy: ",
		ours(`{"timeSlicing":{"schedulingPolicy":1}}`):                                                   "spec.timeSlicing.schedulingPolicy: ",
		ours(`{"timeSlicing":{"contextSwitchInterval":-1}}`):                                             "spec.timeSlicing.contextSwitchInterval: ",
		ours(`{"timeSlicing":{"contextSwitchInterval":1.5}}`):                                            "spec.timeSlicing.contextSwitchInterval: ",
		ours(`{"timeSlicing":{"replicas":9}}`):                                                           "spec.timeSlicing.replicas: it has to be in 0..8",
		`{"apiVersion":"resource.nvidia.com/v1beta1","kind":"GpuConfig","shareing":{}}`:                  "unknown field shareing: known are apiVersion, kind, sharing",
		theirs("GpuConfig", `{"strategie":"TimeSlicing"}`):                                               "unknown field sharing.strategie",
		theirs("GpuConfig", `{"strategy":"TimeSlicing","timeSlicingConfig":{"Interval":"x"}}`):           "unknown field sharing.timeSlicingConfig.Interval",
		theirs("GpuConfig", `"TimeSlicing"`):                                                             "sharing: it has to be an object",
		theirs("GpuConfig", `{"strategy":"Turns"}`):                                                      "sharing.strategy: it has to be TimeSlicing",
		theirs("GpuConfig", `{"strategy":"MPS"}`):                                                        "kerf does not offer MPS",
		theirs("GpuConfig", `{"strategy":"TimeSlicing","mpsConfig":{}}`):                                 "sharing.mpsConfig: kerf does not offer MPS",
		theirs("GpuConfig", `{"timeSlicingConfig":{}}`):                                                  "sharing.timeSlicingConfig: it has to be an object, and needs the strategy TimeSlicing",
		theirs("GpuConfig", `{"strategy":"TimeSlicing","timeSlicingConfig":1}`):                          "sharing.timeSlicingConfig: ",
		theirs("GpuConfig", `{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"s"}}`):           "sharing.timeSlicingConfig.interval: it has to be Default, Short, Medium or Long",
		theirs("MigDeviceConfig", `{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"Short"}}`): "the time slice of a MIG device cannot be set",
	} {
		require.Error(t, parse(raw), raw)
		for _, object := range claims("gpu.nvidia.com", accepted[0], raw) {
			got := p.refusals(t, object)
			require.Len(t, got, 1, raw)
			require.Contains(t, got[0], named, raw)
			require.Contains(t, got[0], "opaque parameters of gpu.nvidia.com: ")
		}
		for _, object := range claims("gpu.kerf.dev", raw) {
			require.Empty(t, p.refusals(t, object), "another driver's parameters are its own")
		}
	}
	// Only what the board can't have at all; whether it has the profile is the scheduler's to find out.
	for _, object := range claims("gpu.nvidia.com", ours(`{"mig":{"profile":"small"}}`)) {
		require.Contains(t, p.refusals(t, object)[0], "spec.mig.profile: it has to be a profile's name")
	}
	require.NotEmpty(t, newPolicy(t, "driverName: gpu.kerf.dev").refusals(t, claims("gpu.kerf.dev", `{}`)[0]))
}

// The policy is asked when a claim is made, and never about one that is there: the scheduler changes those.
func TestParametersPolicyIsAboutNewClaims(t *testing.T) {
	for _, rule := range newPolicy(t, "").MatchConstraints.ResourceRules {
		require.Equal(t, []admissionv1.OperationType{admissionv1.Create}, rule.Operations)
	}
	for _, object := range claims("gpu.nvidia.com") {
		require.Empty(t, newPolicy(t, "").refusals(t, object))
	}
	bare := &resourceapi.ResourceClaim{TypeMeta: metav1.TypeMeta{APIVersion: "resource.k8s.io/v1", Kind: "ResourceClaim"}}
	require.Empty(t, newPolicy(t, "").refusals(t, bare))
}

// The examples' claims pass.
func TestParametersPolicyTakesTheExamples(t *testing.T) {
	p := newPolicy(t, "")
	for _, file := range exampleFiles(t) {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, object := range decode(t, string(data)) {
			switch object.(type) {
			case *resourceapi.ResourceClaim, *resourceapi.ResourceClaimTemplate:
				require.Empty(t, p.refusals(t, object), file)
			}
		}
	}
}
