//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// kerf runs the program, in the plugin's pod or on this machine, and returns its exit code and what it prints.
func kerf(t *testing.T, inPod bool, args ...string) (int, string) {
	t.Helper()
	command := append([]string{"bin/kerf"}, args...)
	if inPod {
		command = append([]string{"kubectl", "exec", "--namespace", kit.SystemNamespace, "daemonset/kerf-plugin", "--", "kerf"}, args...)
	}
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), out.String() + complaint.String()
	}
	require.NoError(t, err, &complaint)
	return 0, out.String()
}

// In the plugin's pod "kerf diagnose" needs no flags. A node that works is sound, and a fault is found.
func TestDiagnose(t *testing.T) {
	e := kit.New(t, fleet)
	e.Pod("shown", kit.Requests("mig-3g.40gb.gpu.nvidia.com"))
	pods := e.Running("shown")
	code, text := kerf(t, true, "diagnose", "--strict")
	require.Zero(t, code, text)
	claims, err := e.Claims(t.Context(), pods[0])
	require.NoError(t, err)
	require.Len(t, claims, 1)
	var claim resourceapi.ResourceClaim
	for _, claim = range claims {
		require.Contains(t, text, e.Namespace+"/"+claim.Name)
	}
	require.Contains(t, text, "3g.40gb")

	files, err := kit.SpecFiles(claim.UID)
	require.NoError(t, err)
	spec := files[slices.IndexFunc(files, func(f string) bool { return strings.HasPrefix(filepath.Base(f), "kerf.dev-") })]
	content, err := os.ReadFile(spec)
	require.NoError(t, err)
	require.NoError(t, os.Remove(spec))
	code, text = kerf(t, true, "diagnose")
	require.NoError(t, os.WriteFile(spec, content, 0o600))
	require.Equal(t, 2, code, text)
	require.Contains(t, text, claim.Name+": it is prepared and has no CDI spec")
}

// Why a pod waits is said on the cluster as it is, with who is in the way.
func TestExplain(t *testing.T) {
	e := kit.New(t, kit.Shape{Name: "one", Boards: "1xH100-SXM5-80GB"})
	e.Pod("first", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	first := e.Running("first")
	code, text := kerf(t, false, "explain", "first", "--namespace", e.Namespace)
	require.Zero(t, code, text)
	e.Pod("second", kit.Requests("mig-7g.80gb.gpu.nvidia.com"))
	code, text = kerf(t, false, "explain", "second", "--namespace", e.Namespace)
	require.Equal(t, 2, code, text)
	require.Contains(t, text, e.Namespace+"/first-")
	e.Delete(first...)
	e.Running("second")
}

// What export-slices makes up is what such a node has published, but for the UUIDs and the names made from them.
func TestExportSlices(t *testing.T) {
	e := kit.New(t, fleet)
	config := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(config, []byte("apiVersion: config.kerf.dev/v1alpha1\nkind: NodeConfiguration\npolicies: [{timeSlicing: {replicas: 4}}]\n"), 0o600))
	code, text := kerf(t, false, "export-slices", "--board", fleet.Boards, "--node-name", kit.NodeName, "--config", config)
	require.Zero(t, code)
	var exported []resourceapi.ResourceSlice
	for decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096); ; {
		var s resourceapi.ResourceSlice
		if decoder.Decode(&s) != nil {
			break
		}
		exported = append(exported, s)
	}
	published, err := e.Slices(t.Context())
	require.NoError(t, err)
	slices.SortFunc(published, func(a, b resourceapi.ResourceSlice) int { return strings.Compare(a.Name, b.Name) })
	specs := func(all []resourceapi.ResourceSlice) (string, []string) {
		var parents []string
		for i := range all {
			all[i].Spec.Pool.Generation = 1
			for _, d := range all[i].Spec.Devices {
				if uuid := *d.Attributes["parentUUID"].StringValue; !slices.Contains(parents, uuid) {
					parents = append(parents, uuid)
				}
			}
		}
		text, err := json.Marshal(func() (specs []resourceapi.ResourceSliceSpec) {
			for _, s := range all {
				specs = append(specs, s.Spec)
			}
			return specs
		}())
		require.NoError(t, err)
		return string(text), parents
	}
	want, boards := specs(published)
	got, madeUp := specs(exported)
	require.Len(t, madeUp, len(boards))
	for i := range boards {
		got = strings.ReplaceAll(got, madeUp[i], boards[i])
		got = strings.ReplaceAll(got, "gpu-"+madeUp[i][4:12], "gpu-"+boards[i][4:12])
	}
	require.Equal(t, want, got)
}
