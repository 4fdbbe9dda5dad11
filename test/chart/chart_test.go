package chart

import (
	"bytes"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/dynamic-resource-allocation/cel"
	"sigs.k8s.io/yaml"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
)

const chartDir = "../../deployments/helm/kerf"

var update = flag.Bool("update", false, "rewrite the golden files")

// goldens are the values whose rendering is kept, one for each way to install the chart.
var goldens = map[string]string{
	"default": "",
	"simulated": `
image: {repository: kerf, tag: dev, pullPolicy: Never}
simulator: {spec: 8xH100-SXM5-80GB}
nodeConfiguration: {policies: [{timeSlicing: {replicas: 4}}]}
plugin: {nodeSelectorTerms: []}
httpPort: 8080
`,
	"monitored": `
networkPolicy:
  create: true
  from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
serviceMonitor: {create: true, labels: {release: prometheus}, interval: 30s}
dcgmExporter: {reload: true}
`,
	"controller": `
serviceMonitor: {create: true}
networkPolicy:
  create: true
  from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
controller:
  create: true
  prometheus: {url: "https://prometheus.monitoring:9090", httpConfigSecret: prometheus-login}
  scale: true
  deletionCosts: true
  keda: {create: true, tlsSecret: kerf-keda-tls}
  extraRules:
  - {apiGroups: [leaderworkerset.x-k8s.io], resources: [leaderworkersets/scale], verbs: [get, update]}
`,
	"beside-another-driver": `
driverName: gpu.kerf.dev
driverRoot: /run/nvidia/driver
libraryPath: /usr/lib64/libnvidia-ml.so.1
deviceClasses: {create: false}
admissionPolicy: {create: false}
parametersPolicy: {create: false}
`,
}

// render gives the manifests in the order of their files, as helm template does.
func render(t *testing.T, values string) (string, error) {
	t.Helper()
	chart, err := loader.Load(chartDir)
	require.NoError(t, err)
	given := map[string]any{}
	require.NoError(t, yaml.Unmarshal([]byte(values), &given))
	all, err := util.ToRenderValues(chart, given, common.ReleaseOptions{Name: "kerf", Namespace: "kerf-system", Revision: 1, IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		return "", err
	}
	rendered, err := engine.Render(chart, all)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		if text := strings.TrimSpace(rendered[name]); text != "" && strings.HasSuffix(name, ".yaml") {
			out.WriteString("---\n# Source: " + name + "\n" + strings.TrimPrefix(text, "---\n") + "\n")
		}
	}
	return out.String(), nil
}

// decode refuses fields that the API does not have.
func decode(t *testing.T, manifests string) []runtime.Object {
	t.Helper()
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var objects []runtime.Object
	for _, document := range bytes.Split([]byte("\n"+manifests), []byte("\n---\n")) {
		if len(bytes.TrimSpace(document)) == 0 {
			continue
		}
		object, _, err := decoder.Decode(document, nil, nil)
		if runtime.IsNotRegisteredError(err) && bytes.Contains(document, []byte("\nkind: ServiceMonitor\n")) {
			// No API of Kubernetes'; the end-to-end tests have its schema.
			object, err = runtime.Decode(unstructured.UnstructuredJSONScheme, toJSON(t, document))
		}
		require.NoError(t, err, "%s", document)
		objects = append(objects, object)
	}
	return objects
}

func toJSON(t *testing.T, document []byte) []byte {
	t.Helper()
	raw, err := yaml.YAMLToJSON(document)
	require.NoError(t, err)
	return raw
}

func TestGoldens(t *testing.T) {
	for name, values := range goldens {
		t.Run(name, func(t *testing.T) {
			got, err := render(t, values)
			require.NoError(t, err)
			decode(t, got)
			golden := filepath.Join("testdata", name+".yaml")
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err, "run the test with -update to write it")
			require.Equal(t, string(want), got, "run the test with -update if that is meant")
		})
	}
}

func TestHelmLint(t *testing.T) {
	result := lint.RunAll(chartDir, nil, "kerf-system")
	require.Less(t, result.HighestSeverity, support.WarningSev, "%v", result.Messages)
}

// The schema refuses what is misspelt or impossible, and names the value.
func TestSchema(t *testing.T) {
	for values, named := range map[string]string{
		`imagee: {}`:                             "imagee",
		`image: {pullPolicy: Sometimes}`:         "pullPolicy",
		`driverName: GPU`:                        "driverName",
		`driverRoot: relative`:                   "driverRoot",
		`httpPort: 70000`:                        "httpPort",
		`simulator: {spec: "1xA10G,state=/x"}`:   "spec",
		`deviceClasses: {profiles: ["1g-10gb"]}`: "profiles",
		`nodeConfiguration: {policies: [{timeSlicing: {replicas: 9}}]}`:    "replicas",
		`nodeConfiguration: {policies: [{timeSlicing: {interval: fast}}]}`: "interval",
		`networkPolicy: {from: anybody}`:                                   "from",
		`serviceMonitor: {interval: soon}`:                                 "interval",
		`dcgmExporter: {reload: sometimes}`:                                "reload",
		`parametersPolicy: {create: maybe}`:                                "create",
		`nodeConfiguration: {policies: [{mig: {mode: sometimes}}]}`:        "mode",
		`nodeConfiguration: {health: {xids: {"48": ignore}}}`:              "48",
		`nodeConfiguration: {health: {xids: {all: None}}}`:                 "all",
		`nodeConfiguration: {kind: NodeConfiguration}`:                     "kind",
		`nodeConfiguration: {policies: [{idleInstances: {scope: All}}]}`:   "scope",
	} {
		_, err := render(t, values)
		require.ErrorContains(t, err, named, values)
	}
}

// Without metrics there is nothing to be monitored, nor to be reached.
func TestWithoutMetrics(t *testing.T) {
	_, err := render(t, "{httpPort: 0, serviceMonitor: {create: true}}")
	require.ErrorContains(t, err, "httpPort must not be 0")
	manifests, err := render(t, "{httpPort: 0, networkPolicy: {create: true}}")
	require.NoError(t, err)
	for _, object := range decode(t, manifests) {
		if p, ok := object.(*networkingv1.NetworkPolicy); ok {
			require.Equal(t, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, p.Spec.PolicyTypes)
			require.Empty(t, p.Spec.Ingress)
			return
		}
	}
	t.Fatal("no NetworkPolicy")
}

// What the chart puts into the ConfigMap is what the plugin reads.
func TestNodeConfiguration(t *testing.T) {
	manifests, err := render(t, `
nodeConfiguration:
  policies:
  - products: ["NVIDIA H100*"]
    mig: {mode: keepOn, mediaExtensions: true}
    idleInstances: {maxPerGPU: 0, maxAge: 5m, scope: Node}
  - timeSlicing: {replicas: 8, interval: Long}
`)
	require.NoError(t, err)
	for _, object := range decode(t, manifests) {
		if c, ok := object.(*corev1.ConfigMap); ok {
			config, err := configv1alpha1.Parse([]byte(c.Data["config.yaml"]))
			require.NoError(t, err)
			require.Equal(t, configv1alpha1.MIG{Mode: configv1alpha1.MIGKeepOn, MediaExtensions: true}, config.For("NVIDIA H100 PCIe").MIG)
			require.Equal(t, 0, *config.For("NVIDIA H100 PCIe").IdleInstances.MaxPerGPU)
			require.Equal(t, configv1alpha1.TimeSlicing{Replicas: 8, Interval: gpu.TimeSliceLong}, config.For("NVIDIA L40S").TimeSlicing)
			return
		}
	}
	t.Fatal("no ConfigMap")
}

// A class exists for every profile that a board can make, whatever its name, and no other.
func TestProfilesOfAllBoards(t *testing.T) {
	want := map[string]bool{}
	for _, b := range gpu.Boards() {
		for _, p := range b.Profiles {
			want["mig-"+strings.ReplaceAll(p.Name, "+", ".")+".gpu.nvidia.com"] = true
		}
	}
	got := map[string]bool{}
	for name := range classes(t, "") {
		if strings.HasPrefix(name, "mig-") {
			got[name] = true
		}
	}
	require.Equal(t, want, got)
}

// kerf explain and kerf simulate know the chart's classes where there is no cluster to ask.
func TestDefaultClasses(t *testing.T) {
	for _, driver := range []string{"gpu.nvidia.com", "gpu.kerf.dev"} {
		manifests, err := render(t, "driverName: "+driver)
		require.NoError(t, err)
		want := map[string]resourceapi.DeviceClassSpec{}
		for _, object := range decode(t, manifests) {
			if c, ok := object.(*resourceapi.DeviceClass); ok {
				want[c.Name] = c.Spec
			}
		}
		got := map[string]resourceapi.DeviceClassSpec{}
		for _, c := range fleet.DefaultClasses(driver) {
			got[c.Name] = c.Spec
		}
		require.Equal(t, want, got)
	}
}

// classes compiles the expressions of all device classes.
func classes(t *testing.T, values string) map[string]cel.CompilationResult {
	t.Helper()
	manifests, err := render(t, values)
	require.NoError(t, err)
	all := map[string]cel.CompilationResult{}
	for _, object := range decode(t, manifests) {
		if c, ok := object.(*resourceapi.DeviceClass); ok {
			require.Len(t, c.Spec.Selectors, 1)
			result := cel.GetCompiler(cel.Features{}).CompileCELExpression(c.Spec.Selectors[0].CEL.Expression, cel.Options{})
			require.Nil(t, result.Error, c.Name)
			all[c.Name] = result
		}
	}
	return all
}

// extendedResources are the names by which pods can ask for devices of classes, with the class.
func extendedResources(t *testing.T, values string) map[string]string {
	t.Helper()
	manifests, err := render(t, values)
	require.NoError(t, err)
	all := map[string]string{}
	for _, object := range decode(t, manifests) {
		if c, ok := object.(*resourceapi.DeviceClass); ok && c.Spec.ExtendedResourceName != nil {
			require.NotContains(t, all, *c.Spec.ExtendedResourceName)
			all[*c.Spec.ExtendedResourceName] = c.Name
		}
	}
	return all
}

func TestExtendedResources(t *testing.T) {
	all := extendedResources(t, "")
	require.Equal(t, "gpu.nvidia.com", all["nvidia.com/gpu"])
	require.Equal(t, "timeslice.gpu.nvidia.com", all["nvidia.com/gpu.shared"])
	require.Equal(t, "mig-1g.10gb.gpu.nvidia.com", all["nvidia.com/mig-1g.10gb"])
	require.Equal(t, "mig-1g.10gb.me.gpu.nvidia.com", all["nvidia.com/mig-1g.10gb.me"])
	require.NotContains(t, slices.Collect(maps.Values(all)), "mig.nvidia.com", "any instance is no one resource")
	require.Empty(t, extendedResources(t, "deviceClasses: {extendedResources: false}"))
}

// Every class selects its devices, and ends in no error on any other: an error ends the allocation of whoever asks.
func TestClassesSelect(t *testing.T) {
	text := func(s string) resourceapi.DeviceAttribute { return resourceapi.DeviceAttribute{StringValue: &s} }
	type attributes = map[resourceapi.QualifiedName]resourceapi.DeviceAttribute
	mig := func(profile string) attributes {
		return attributes{"gpu.nvidia.com/type": text("mig"), "gpu.nvidia.com/profile": text(profile)}
	}
	devices := map[string]cel.Device{
		"whole":      {Driver: "gpu.nvidia.com", Attributes: attributes{"gpu.nvidia.com/type": text("gpu")}},
		"replica":    {Driver: "gpu.nvidia.com", Attributes: attributes{"gpu.nvidia.com/type": text("timeslice")}},
		"1g.10gb":    {Driver: "gpu.nvidia.com", Attributes: mig("1g.10gb")},
		"1g.10gb+me": {Driver: "gpu.nvidia.com", Attributes: mig("1g.10gb+me")},
		"renamed":    {Driver: "gpu.kerf.dev", Attributes: mig("1g.10gb")},
		"stranger":   {Driver: "nic.example.com", Attributes: attributes{"nic.example.com/speed": text("fast")}},
	}
	selected := func(class cel.CompilationResult) []string {
		var names []string
		for name, device := range devices {
			matches, _, err := class.DeviceMatches(t.Context(), device)
			require.NoError(t, err, name)
			if matches {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return names
	}
	all := classes(t, "")
	require.Equal(t, []string{"whole"}, selected(all["gpu.nvidia.com"]))
	require.Equal(t, []string{"1g.10gb", "1g.10gb+me"}, selected(all["mig.nvidia.com"]))
	require.Equal(t, []string{"replica"}, selected(all["timeslice.gpu.nvidia.com"]))
	require.Equal(t, []string{"1g.10gb"}, selected(all["mig-1g.10gb.gpu.nvidia.com"]))
	require.Equal(t, []string{"1g.10gb+me"}, selected(all["mig-1g.10gb.me.gpu.nvidia.com"]))
	require.Empty(t, selected(all["mig-7g.80gb.gpu.nvidia.com"]))
	require.Equal(t, []string{"renamed"}, selected(classes(t, "driverName: gpu.kerf.dev")["mig.nvidia.com"]))
}
