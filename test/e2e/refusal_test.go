//go:build e2e

package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// A claim that does not fit waits for as long as it does not, and then gets its devices.
func TestClaimThatDoesNotFitWaits(t *testing.T) {
	e := kit.New(t, pair)
	e.Pod("first", kit.Requests(wholeClass))
	e.Pod("second", kit.Requests(wholeClass))
	pods := e.Running("first", "second")
	e.Pod("third", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	unschedulable(t, e, "third")
	e.Delete(pods[0])
	require.NoError(t, e.Verify(e.Running("third")[0]))
}

// A claim with parameters that nobody understands is not prepared: its pod waits, and an event names the field.
func TestUnknownParametersAreNamed(t *testing.T) {
	lenient := fleet
	lenient.Lenient = true
	e := kit.New(t, lenient)
	e.Eventually("the policy to be gone", func(ctx context.Context) error { return apply(ctx, e, parameters(`{"mig": {"profil": "1g.10gb"}}`)) })
	for name, test := range map[string]struct{ parameters, named string }{
		"field":   {parameters(`{"mig": {"profil": "1g.10gb"}}`), `spec.mig.profil`},
		"kind":    {`{"apiVersion": "gpu.kerf.dev/v1alpha1", "kind": "GpuClaim"}`, `GpuClaim`},
		"profile": {parameters(`{"mig": {"profile": "2g.20gb"}}`), `spec.mig.profile`},
	} {
		e.Pod(name, withParameters(kit.Requests("mig-1g.10gb.gpu.nvidia.com"), test.parameters))
		e.Eventually("an event of pod "+name, func(ctx context.Context) error {
			return tells(ctx, e, name, "FailedPrepareDynamicResources", test.named)
		})
		pod, err := e.Client.CoreV1().Pods(e.Namespace).Get(t.Context(), name, metav1.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, corev1.PodPending, pod.Status.Phase)
		require.Equal(t, kit.NodeName, pod.Spec.NodeName)
		// A refusal leaves nothing, though the claim stays allocated.
		claims, err := e.Claims(t.Context(), pod)
		require.NoError(t, err)
		for _, c := range claims {
			require.NotNil(t, c.Status.Allocation)
			require.NoError(t, e.Released(c.UID))
		}
		e.Delete(pod)
	}
}

// With the chart's policy the API server itself refuses them, when they are applied. What it takes is prepared.
func TestParametersAreCheckedWhenApplied(t *testing.T) {
	e := kit.New(t, fleet)
	e.Eventually("the policy to be in force", func(ctx context.Context) error {
		if err := apply(ctx, e, parameters(`{"mig": {"profil": "1g.10gb"}}`)); err == nil || !strings.Contains(err.Error(), "unknown field spec.mig.profil") {
			return errors.Join(errors.New("the API server does not refuse the claim, or not for that"), err)
		}
		return nil
	})
	e.Pod("right", withParameters(kit.Requests("mig-1g.10gb.gpu.nvidia.com"), parameters(`{"mig": {"profile": "1g.10gb", "count": 1}}`)))
	require.NoError(t, e.Verify(e.Running("right")[0]))
}

// apply asks the API server whether it takes a claim with these parameters. It takes a moment to learn of policies.
func apply(ctx context.Context, e *kit.Env, parameters string) error {
	_, err := e.Client.ResourceV1().ResourceClaims(e.Namespace).Create(ctx, &resourceapi.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "asked"}, Spec: withParameters(kit.Requests("mig-1g.10gb.gpu.nvidia.com"), parameters),
	}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// parameters are ours with that specification.
func parameters(spec string) string {
	return `{"apiVersion": "gpu.kerf.dev/v1alpha1", "kind": "GpuClaimParameters", "spec": ` + spec + `}`
}

func withParameters(spec resourceapi.ResourceClaimSpec, parameters string) resourceapi.ResourceClaimSpec {
	spec.Devices.Config = append(spec.Devices.Config, resourceapi.DeviceClaimConfiguration{
		DeviceConfiguration: resourceapi.DeviceConfiguration{Opaque: &resourceapi.OpaqueDeviceConfiguration{
			Driver: kit.Driver, Parameters: runtime.RawExtension{Raw: []byte(parameters)},
		}},
	})
	return spec
}

// Without the driver's library the plugin ends with one line that says what is missing and how to do without GPUs.
func TestPluginWithoutDriver(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "libnvidia-ml.so.1")
	plugin := exec.CommandContext(t.Context(), "bin/kerf", "plugin", "--node-name", "nowhere", "--kubeconfig", os.Getenv("KUBECONFIG"),
		"--run-dir", t.TempDir(), "--state-dir", t.TempDir(), "--cdi-root", t.TempDir(), "--cdi-hook=", "--http-endpoint=",
		"--kubelet-plugins-dir", t.TempDir(), "--kubelet-registry-dir", t.TempDir(), "--nvml", "real:"+missing)
	out, err := plugin.CombinedOutput()
	var exit *exec.ExitError
	require.True(t, errors.As(err, &exit) && exit.ExitCode() > 0, "%v: %s", err, out)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	last := lines[len(lines)-1]
	require.Contains(t, last, "libnvidia-ml.so.1")
	require.Contains(t, last, "--nvml=sim:")
	for _, line := range lines[:len(lines)-1] {
		require.NotContains(t, line, "libnvidia-ml.so.1", "the reason is told once")
	}
}
