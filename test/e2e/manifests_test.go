//go:build e2e

package e2e

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// noObjects are the files beside the manifests that hold none, and what there is to know of each.
var noObjects = map[string]string{
	"deployments/monitoring/alerts.yaml":               "rules, which prometheusrules.sh wraps",
	"deployments/monitoring/rules.yaml":                "the same",
	"deployments/monitoring/settings.yaml":             "the same",
	"deployments/monitoring/tests/rules_test.yaml":     "promtool's",
	"deployments/monitoring/dashboard.json":            "Grafana's",
	"deployments/monitoring/dcgm-exporter-values.yaml": "values of NVIDIA's chart",
}

// The API server takes every manifest that is shipped, with the CRDs of the projects that the kinds are of. It knows each
// field, warns of nothing, and gives back what it was given.
func TestManifestsAreTaken(t *testing.T) {
	e := kit.NewIn(t, controlled(nil), "inference")
	withOthersCRDs(t, e)
	_, err := e.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "gpu-monitoring"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, e.Client.CoreV1().Namespaces().Delete(context.Background(), "gpu-monitoring", metav1.DeleteOptions{}))
	})

	kinds := map[string]int{}
	for path, text := range shippedManifests(t) {
		sent := objects(t, path, text)
		require.NotEmpty(t, sent, path)
		for _, object := range sent {
			if object.GetNamespace() == "" && strings.HasSuffix(path, ".sh") {
				object.SetNamespace(e.Namespace) // Where its reader is told to say one.
			}
			kinds[object.GetKind()]++
			where := fmt.Sprintf("%s: %s %s", path, object.GetKind(), object.GetName())
			taken, err := dryRun(t, e, object)
			require.NoError(t, err, where)
			require.Empty(t, lost(object.Object, taken.Object, ""), where)

			misspelt := object.DeepCopy()
			require.NoError(t, unstructured.SetNestedField(misspelt.Object, "red", "spec", "colour"))
			_, err = dryRun(t, e, misspelt)
			require.ErrorContains(t, err, `unknown field "spec.colour"`, where)
		}
	}
	for _, kind := range []string{"ScaledObject", "TriggerAuthentication", "NodePool", "EC2NodeClass", "ServiceMonitor", "PodMonitor", "PrometheusRule", "GPUScalingHint", "GPUElasticPool"} {
		require.Positive(t, kinds[kind], kind)
	}
}

// Rules beyond the fields are in the CRDs as well, so that a manifest that makes no sense is refused.
func TestManifestsAreJudged(t *testing.T) {
	e := kit.NewIn(t, controlled(nil), "inference")
	withOthersCRDs(t, e)
	all := shippedManifests(t)
	for _, wrong := range []struct{ file, old, new, says string }{
		{"scaledobject.yaml", "pollingInterval: 15", "pollingInterval: often", "pollingInterval"},
		{"scaledobject-hint.yaml", "currentReplicasIfHigher", "currentReplicasOrMore", "Unsupported value"},
		{"karpenter.yaml", "karpenter.sh/capacity-type, operator: In", "karpenter.sh/capacity, operator: In", `label domain "karpenter.sh" is restricted`},
		{"karpenter.yaml", "group: karpenter.k8s.aws", "group: \"\"", "group may not be empty"},
		{"karpenter.yaml", "consolidateAfter: 30s", "consolidateAfter: soon", "consolidateAfter"},
		{"karpenter.yaml", `schedule: "0 9 * * 1-5", duration: 8h`, `schedule: "0 9 * * 1-5"`, "'schedule' must be set with 'duration'"},
		{"karpenter.yaml", "alias: al2023@latest", "alias: al2023", "alias"},
		{"../monitoring/servicemonitor.yaml", "interval: 15s", "interval: quickly", "interval"},
		{"../monitoring/prometheusrules.sh", "interval: 15s", "interval: quickly", "interval"},
		{"hint.yaml", "class: Realtime", "class: Hasty", "Unsupported value"},
	} {
		text, ok := all[filepath.Join("deployments/autoscaling", wrong.file)]
		require.True(t, ok, wrong.file)
		require.Contains(t, text, wrong.old, wrong.file)
		var errs []error
		for _, object := range objects(t, wrong.file, strings.ReplaceAll(text, wrong.old, wrong.new)) {
			if object.GetNamespace() != "" {
				object.SetNamespace(e.Namespace)
			}
			_, err := dryRun(t, e, object)
			errs = append(errs, err)
		}
		require.ErrorContains(t, errors.Join(errs...), wrong.says, "%s with %q", wrong.file, wrong.new)
	}
}

// shippedManifests are the manifests below deployments/autoscaling and deployments/monitoring, and what the script there
// prints, by path. Whatever is not known to be something else is taken for a manifest.
func shippedManifests(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, dir := range []string{"deployments/autoscaling", "deployments/monitoring"} {
		require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || noObjects[path] != "" {
				return err
			}
			text, err := os.ReadFile(path)
			if strings.HasSuffix(path, ".sh") {
				text, err = exec.CommandContext(t.Context(), "sh", path, "prometheus").Output()
			}
			all[path] = string(text)
			return err
		}))
	}
	return all
}

// objects are those of a YAML file, or of a list.
func objects(t *testing.T, path, text string) []*unstructured.Unstructured {
	t.Helper()
	var all []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err, "%s has something that is no object", path)
		if len(object.Object) > 0 {
			all = append(all, object)
		}
	}
}

// dryRun applies an object as a user does, but for keeping it, and returns what the API server makes of it. A warning is
// an error.
func dryRun(t *testing.T, e *kit.Env, object *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	t.Helper()
	text, err := json.Marshal(object)
	require.NoError(t, err)
	said, err := e.Kubectl(string(text), "apply", "--dry-run=server", "--validate=strict", "--output", "json", "--filename", "-")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, said)
	}
	taken := &unstructured.Unstructured{}
	if err := json.Unmarshal([]byte(said), taken); err != nil {
		return nil, fmt.Errorf("this is not the object alone: %w: %s", err, said)
	}
	return taken, nil
}

// lost are the values of what was sent that did not come back as they were. What the API server adds, to lists behind
// what is there, is no loss.
func lost(sent, came any, at string) []string {
	var all []string
	switch sent := sent.(type) {
	case map[string]any:
		fields, _ := came.(map[string]any)
		for name, value := range sent {
			all = append(all, lost(value, fields[name], at+"."+name)...)
		}
	case []any:
		items, _ := came.([]any)
		for i, value := range sent {
			if i >= len(items) {
				return append(all, fmt.Sprintf("%s[%d]", at, i))
			}
			all = append(all, lost(value, items[i], fmt.Sprintf("%s[%d]", at, i))...)
		}
	default:
		if sent != came && !sameQuantity(sent, came) {
			all = append(all, fmt.Sprintf("%s: %v is %v", at, sent, came))
		}
	}
	return all
}

// sameQuantity is true for "0.5" and "500m", as which the API server keeps it.
func sameQuantity(sent, came any) bool {
	a, err := resource.ParseQuantity(fmt.Sprint(sent))
	b, failed := resource.ParseQuantity(fmt.Sprint(came))
	return err == nil && failed == nil && a.Equal(b)
}

// withOthersCRDs gives the API server, for the time of the test, the kinds that testdata/crds.txt lists.
func withOthersCRDs(t *testing.T, e *kit.Env) {
	t.Helper()
	list, err := os.ReadFile("test/e2e/testdata/crds.txt")
	require.NoError(t, err)
	document, err := os.ReadFile("docs/monitoring.md")
	require.NoError(t, err)
	var names []string
	var all strings.Builder
	for line := range strings.Lines(string(list)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		module, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		_, version, _ := strings.Cut(module, "@v")
		require.Contains(t, string(document), " "+version, "it says of which version the CRDs of %s are", module)
		text := ofModule(t, module, file)
		for _, crd := range objects(t, file, text) {
			names = append(names, crd.GetName())
		}
		all.WriteString("---\n" + text)
	}
	t.Cleanup(func() {
		said, err := e.Kubectl("", append([]string{"delete", "crd", "--ignore-not-found"}, names...)...)
		require.NoError(t, err, said)
	})
	// Server-side: some are too large for the annotation that apply keeps otherwise.
	said, err := e.Kubectl(all.String(), "apply", "--server-side", "--filename", "-")
	require.NoError(t, err, said)
	for _, name := range names {
		e.Eventually(name+" to be served", func(context.Context) error {
			said, err := e.Kubectl("", "get", name, "--all-namespaces")
			if err != nil {
				err = errors.New(said)
			}
			return err
		})
	}
}

// ofModule reads a file of a Go module. It comes from the module cache, or else from Go's proxy, and needs no network
// where "make e2e" has fetched it. Nothing is compiled, so the module may need a later Go than there is, which Go reports
// beside the archive.
func ofModule(t *testing.T, module, file string) string {
	t.Helper()
	download := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", module)
	download.Dir, download.Env = t.TempDir(), append(os.Environ(), "GOTOOLCHAIN=local", "GOWORK=off")
	said, err := download.Output()
	var info struct{ Zip, Error string }
	require.NoError(t, json.Unmarshal(said, &info), "go mod download %s: %v", module, err)
	require.NotEmpty(t, info.Zip, "there is no module %s: %s", module, info.Error)
	archive, err := zip.OpenReader(info.Zip)
	require.NoError(t, err)
	defer func() { require.NoError(t, archive.Close()) }()
	text, err := fs.ReadFile(archive, module+"/"+file)
	require.NoError(t, err)
	return string(text)
}
