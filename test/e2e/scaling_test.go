//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// A has four of six GPUs at 40 %, B two at 30 %, and nobody else has any. Then A reaches 85 %: it grows from what B
// gives, B keeps its minimum, and only the rest asks for nodes. Then the way back.
func TestSurge(t *testing.T) {
	h := newHinted(t, kit.Shape{Name: "surge", Boards: "6xH100-SXM5-80GB"})
	ctx := t.Context()
	pool := &v1alpha1.GPUElasticPool{
		ObjectMeta: metav1.ObjectMeta{Name: "shared"},
		Spec:       v1alpha1.GPUElasticPoolSpec{Selector: metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: kit.NodeName}}},
	}
	require.NoError(t, h.api.Create(ctx, pool))
	t.Cleanup(func() { _ = h.api.Delete(context.Background(), pool) })
	h.Template("one-gpu", kit.Requests("gpu.nvidia.com"))
	h.setLoad("model-a", 4*40)
	h.setLoad("model-b", 2*30)
	a, b := h.Deployment("model-a", "one-gpu", 4), h.Deployment("model-b", "one-gpu", 2)
	h.RunningPods(4, a)
	h.RunningPods(2, b)
	said := h.watch()
	h.hint("model-a", func(s *v1alpha1.GPUScalingHintSpec) { s.Pool, s.Priority = "shared", 10 })
	h.hint("model-b", func(s *v1alpha1.GPUScalingHintSpec) { s.Pool, s.Class = "shared", v1alpha1.ClassBatch })

	h.within(3*time.Minute, "both to be measured", func(ctx context.Context) error {
		for name, want := range map[string]int32{"model-a": 40, "model-b": 30} {
			hint, err := h.get(ctx, name)
			if err != nil {
				return err
			}
			if e := hint.Status.Evidence; e == nil || e.UtilizationPercent == nil || *e.UtilizationPercent != want {
				return fmt.Errorf("%s: %+v", name, hint.Status)
			}
		}
		return nil
	})
	// What B does not need must have lasted a minute before anybody may have it.
	time.Sleep(90 * time.Second)
	require.NoError(t, h.has(ctx, "model-a", 4), "a constant load changes nothing")
	require.NoError(t, h.has(ctx, "model-b", 2))

	h.setLoad("model-a", 4*85)
	h.within(4*time.Minute, "A to grow by what B gives", func(ctx context.Context) error {
		if err := h.has(ctx, "model-b", 1); err != nil {
			return err
		}
		return h.has(ctx, "model-a", 5)
	})
	h.RunningPods(5, a)
	h.RunningPods(1, b)
	asked := said.find("model-a", func(s v1alpha1.GPUScalingHintStatus) bool { return len(s.Feasibility.After) > 0 })
	require.NotNil(t, asked, "%s", said)
	require.EqualValues(t, 7, *asked.DesiredReplicas)
	require.EqualValues(t, 4, *asked.ScaleTo, "what waits for B, or for nodes that nobody brings, is not asked for yet")
	require.Equal(t, []v1alpha1.Donation{{Hint: h.Namespace + "/model-b", Replicas: 1}}, asked.Feasibility.After)
	require.EqualValues(t, 2, asked.Feasibility.Nodes)
	require.Equal(t, v1alpha1.NeedsNodes, asked.Feasibility.State)
	gave := said.find("model-b", func(s v1alpha1.GPUScalingHintStatus) bool { return s.Reason == v1alpha1.ReasonGivesWay })
	require.NotNil(t, gave, "%s", said)
	h.within(2*time.Minute, "A to have enough", func(ctx context.Context) error { return h.because(ctx, "model-a", v1alpha1.ReasonWithinThresholds) })

	h.setLoad("model-a", 4*10)
	h.setLoad("model-b", 95)
	h.within(12*time.Minute, "the way back", func(ctx context.Context) error {
		if err := h.has(ctx, "model-b", 2); err != nil {
			return err
		}
		return h.has(ctx, "model-a", 4)
	})
	h.RunningPods(2, b)
	require.NotNil(t, said.find("model-a", func(s v1alpha1.GPUScalingHintStatus) bool { return s.Reason == v1alpha1.ReasonUtilizationLow }))
}

// Whatever fails, a hint holds, says why, and is back when that is over.
func TestHintsSurvive(t *testing.T) {
	h := newHinted(t, kit.Shape{Name: "hints", Boards: "4xH100-SXM5-80GB"})
	h.Template("one-gpu", kit.Requests("gpu.nvidia.com"))
	h.setLoad("model", 2*50)
	h.RunningPods(2, h.Deployment("model", "one-gpu", 2))
	said := h.watch()
	settings := func(s *v1alpha1.GPUScalingHintSpec) { s.FallbackReplicas = 1 }
	h.hint("model", settings)
	decided := func(reason v1alpha1.Reason) {
		t.Helper()
		h.within(4*time.Minute, string(reason), func(ctx context.Context) error { return h.because(ctx, "model", reason) })
	}
	decided(v1alpha1.ReasonWithinThresholds)

	cluster := os.Getenv("KERF_CLUSTER_NAME")
	for _, fault := range []struct {
		name   string
		begin  func()
		reason v1alpha1.Reason
		end    func()
	}{
		{"Prometheus is down", h.prometheus.stop, v1alpha1.ReasonFallback, h.prometheus.start},
		{"Prometheus does not answer", func() { h.prometheus.signal(unix.SIGSTOP) }, v1alpha1.ReasonFallback, func() { h.prometheus.signal(unix.SIGCONT) }},
		{"the exporter fails", func() {
			h.exporter.Break(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				http.Error(w, "restarting", http.StatusServiceUnavailable)
			}))
		}, v1alpha1.ReasonNoData, func() { h.exporter.Break(nil) }},
	} {
		t.Logf("%s", fault.name)
		fault.begin()
		decided(fault.reason)
		require.NoError(t, h.has(t.Context(), "model", 2), fault.name)
		fault.end()
		decided(v1alpha1.ReasonWithinThresholds)
	}

	renewed := func(what string) {
		t.Helper()
		began := time.Now()
		h.within(4*time.Minute, "a hint that was renewed after "+what, func(ctx context.Context) error {
			hint, err := h.get(ctx, "model")
			if err != nil {
				return err
			}
			if s := hint.Status; s.ValidUntil == nil || s.ValidUntil.Before(&metav1.Time{Time: began.Add(3 * time.Minute)}) {
				return fmt.Errorf("it is valid until %v", s.ValidUntil)
			}
			return nil
		})
		require.NoError(t, h.has(t.Context(), "model", 2), what)
	}
	out, err := exec.CommandContext(t.Context(), "bin/cluster", "restart", "--name", cluster, "kube-apiserver").CombinedOutput()
	require.NoError(t, err, "%s", out)
	renewed("a restart of the API server")
	lease, err := h.Client.CoordinationV1().Leases(kit.SystemNamespace).Get(t.Context(), "kerf-controller", metav1.GetOptions{})
	require.NoError(t, err)
	leader, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
	require.NoError(t, h.Client.CoreV1().Pods(kit.SystemNamespace).Delete(t.Context(), leader, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}))
	renewed("the leader was killed")
	require.Nil(t, said.find("model", func(s v1alpha1.GPUScalingHintStatus) bool { return *s.DesiredReplicas != 2 }), "%s", said)

	// With the CRDs all hints go. The controller waits until they are back.
	const crds = "deployments/helm/kerf/files/crds"
	_, err = h.Kubectl("", "delete", "--filename", crds)
	require.NoError(t, err)
	time.Sleep(2 * collect)
	_, err = h.Kubectl("", "apply", "--server-side", "--force-conflicts", "--filename", crds)
	require.NoError(t, err)
	_, err = h.Kubectl("", "wait", "--for=condition=Established", "--filename", crds)
	require.NoError(t, err)
	h.within(time.Minute, "the kind to be served again", func(ctx context.Context) error {
		_, err := h.get(ctx, "none")
		if apierrors.IsNotFound(err) && strings.Contains(err.Error(), `"none"`) {
			return nil
		}
		return fmt.Errorf("the answer is %w", err)
	})
	h.hint("model", settings)
	decided(v1alpha1.ReasonWithinThresholds)
	pods, err := h.Client.CoreV1().Pods(kit.SystemNamespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=controller"})
	require.NoError(t, err)
	for _, pod := range pods.Items {
		for _, c := range pod.Status.ContainerStatuses {
			require.LessOrEqual(t, c.RestartCount, int32(1), "%s: it may have ended when it lost its lease with the API server, and not else", pod.Name)
		}
	}
}

// An instance that was made after the exporter's start has no row there. kerf's plugin measures it, and gives way to
// the exporter once that lists it.
func TestNewInstancesAreMeasured(t *testing.T) {
	h := newHinted(t, kit.Shape{Name: "measured", Boards: "1xH100-SXM5-80GB"})
	h.Template("small", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	h.RunningPods(1, h.Deployment("model", "small", 1))
	h.setLoad("model", 45)
	h.hint("model", func(s *v1alpha1.GPUScalingHintSpec) { s.Mode = v1alpha1.ModeAdvise })
	devices, err := h.script(t.Context())
	require.NoError(t, err)
	require.Len(t, devices, 1)
	for d := range devices {
		h.Sim("load", "0", "60", "--gi", strconv.Itoa(d.Instance))
	}
	at := func(want int32) {
		t.Helper()
		h.within(4*time.Minute, fmt.Sprintf("a utilization of %d %%", want), func(ctx context.Context) error {
			hint, err := h.get(ctx, "model")
			if err != nil {
				return err
			}
			if e := hint.Status.Evidence; e == nil || e.UtilizationPercent == nil || *e.UtilizationPercent != want {
				return fmt.Errorf("%+v", hint.Status)
			}
			return nil
		})
	}
	at(60)
	require.NoError(t, h.exporter.Reload())
	at(45)
}
