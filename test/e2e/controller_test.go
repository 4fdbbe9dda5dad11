//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// The controller has no right on its node that a container can be without.
func TestControllerIsConfined(t *testing.T) {
	e := kit.New(t, controlled(nil))
	pods := controllers(t, e, 2)

	// What the kernel says of its processes.
	found := 0
	statuses, err := filepath.Glob("/proc/[0-9]*/status")
	require.NoError(t, err)
	for _, path := range statuses {
		command, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err != nil || !strings.HasPrefix(string(command), "/usr/bin/kerf\x00controller\x00") {
			continue // It may have ended meanwhile.
		}
		found++
		status, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, line := range []string{
			"Uid:\t65532\t65532\t65532\t65532", "Gid:\t65532\t65532\t65532\t65532", "NoNewPrivs:\t1", "Seccomp:\t2",
			"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000",
		} {
			require.Contains(t, string(status), "\n"+line+"\n")
		}
		mounts, err := os.ReadFile(filepath.Join(filepath.Dir(path), "mounts"))
		require.NoError(t, err)
		root, _, _ := strings.Cut(string(mounts), "\n")
		require.Regexp(t, `^\S+ / \S+ ro,`, root)
	}
	require.Equal(t, len(pods), found)

	// It would be admitted where the strictest of Kubernetes' standards is enforced, which the plugin is not.
	strict := []byte(`{"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}}}`)
	_, err = e.Client.CoreV1().Namespaces().Patch(t.Context(), e.Namespace, types.MergePatchType, strict, metav1.PatchOptions{})
	require.NoError(t, err)
	admit := func(pod *corev1.Pod) error {
		spec := pod.Spec.DeepCopy()
		spec.NodeName, spec.ServiceAccountName, spec.DeprecatedServiceAccount = "", "", ""
		_, err := e.Client.CoreV1().Pods(e.Namespace).Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "again"}, Spec: *spec}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	plugin, err := e.PluginPod(t.Context())
	require.NoError(t, err)
	e.Eventually("the standard to be enforced", func(context.Context) error {
		if err := admit(plugin); err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted:latest"`) {
			return errors.Join(errors.New("the plugin's pod is not refused, or not for that"), err)
		}
		return nil
	})
	require.NoError(t, admit(&pods[0]))
}

// One of several controllers decides, and when it goes another one does. Each of them answers.
func TestControllersElectALeader(t *testing.T) {
	e := kit.New(t, controlled(nil))
	pods := controllers(t, e, 2)
	leader := leads(t, e, pods)
	for _, pod := range pods {
		for _, url := range []string{":8080/metrics", ":8081/healthz", ":8081/readyz"} {
			_, err := ask(t.Context(), "http://"+pod.Status.PodIP+url)
			require.NoError(t, err)
		}
	}
	service, err := e.Client.CoreV1().Services(kit.SystemNamespace).Get(t.Context(), kit.Controller, metav1.GetOptions{})
	require.NoError(t, err)
	text, err := ask(t.Context(), "http://"+service.Spec.ClusterIP+":8080/metrics")
	require.NoError(t, err)
	require.Contains(t, text, "\nleader_election_master_status{")

	const ticks = `kerf_controller_tick_seconds_count{result="success"} `
	decides := func(pod *corev1.Pod) func(context.Context) error {
		return func(ctx context.Context) error {
			text, err := ask(ctx, "http://"+pod.Status.PodIP+":8080/metrics")
			if err == nil && !strings.Contains(text, "\n"+ticks) {
				err = fmt.Errorf("there is no %s", ticks)
			}
			return err
		}
	}
	e.Eventually("the leader to decide", decides(leader))
	for i := range pods {
		if pods[i].Name != leader.Name {
			require.Error(t, decides(&pods[i])(t.Context()), "one decides")
		}
	}
	e.Eventually("an event to say who leads", func(ctx context.Context) error {
		events, err := e.Client.CoreV1().Events(kit.SystemNamespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=LeaderElection"})
		if err != nil {
			return err
		}
		for _, event := range events.Items {
			if strings.HasPrefix(event.Message, leader.Name+"_") && strings.HasSuffix(event.Message, " became leader") {
				return nil
			}
		}
		return fmt.Errorf("there are %d events, none about %s", len(events.Items), leader.Name)
	})

	require.NoError(t, e.Client.CoreV1().Pods(kit.SystemNamespace).Delete(t.Context(), leader.Name, metav1.DeleteOptions{}))
	e.Eventually("the pod to be gone", func(ctx context.Context) error {
		_, err := e.Client.CoreV1().Pods(kit.SystemNamespace).Get(ctx, leader.Name, metav1.GetOptions{})
		return kit.Gone("it", err)
	})
	next := leads(t, e, controllers(t, e, 2))
	require.NotEqual(t, leader.Name, next.Name)
	e.Eventually("the next one to decide", decides(next))
}

// kubectl shows hints and pools in columns that can be read at a glance.
func TestColumns(t *testing.T) {
	e := kit.New(t, controlled(nil))
	e.Template("instance", kit.Requests(smallClass))
	t.Cleanup(func() {
		said, err := e.Kubectl("", "delete", "gep", "e2e-shared", "--ignore-not-found")
		require.NoError(t, err, said)
	})
	said, err := e.Kubectl(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: serving}
spec:
  replicas: 2
  selector: {matchLabels: {app: serving}}
  template:
    metadata: {labels: {app: serving}}
    spec:
      containers: [{name: server, image: "workload:v1", resources: {claims: [{name: gpu}]}}]
      resourceClaims: [{name: gpu, resourceClaimTemplateName: instance}]
---
apiVersion: scaling.kerf.dev/v1alpha1
kind: GPUScalingHint
metadata: {name: serving}
spec: {targetRef: {apiVersion: apps/v1, kind: Deployment, name: serving}, class: Realtime, minReplicas: 2, maxReplicas: 4, pool: e2e-shared}
---
apiVersion: scaling.kerf.dev/v1alpha1
kind: GPUScalingHint
metadata: {name: void}
spec: {targetRef: {apiVersion: apps/v1, kind: Deployment, name: gone}, class: Batch, maxReplicas: 4}
---
apiVersion: scaling.kerf.dev/v1alpha1
kind: GPUElasticPool
metadata: {name: e2e-shared}
spec: {selector: {matchLabels: {kubernetes.io/hostname: `+kit.NodeName+`}}, price: {perGPUHour: "2.50"}}
`, "apply", "--namespace", e.Namespace, "--filename", "-")
	require.NoError(t, err, said)

	for _, shows := range []struct{ options, want string }{
		{"gsh,gep", `
NAME                                      TARGET    CURRENT   DESIRED   SCALETO   DIRECTION   REASON      UTIL%   FITS      AGE
gpuscalinghint.scaling.kerf.dev/serving   serving   2         2         2         Hold        AtMinimum   0       FitsNow   AGE
gpuscalinghint.scaling.kerf.dev/void      gone                                    Hold        NoTarget                      AGE

NAME                                         NODES   GPUS   FREE   STRANDED   AGE
gpuelasticpool.scaling.kerf.dev/e2e-shared   1       8      7      1          AGE
`},
		{"gsh void --output wide", `
NAME   TARGET   CURRENT   DESIRED   SCALETO   DIRECTION   REASON     UTIL%   FITS   MODE     MESSAGE                            AGE
void   gone                                   Hold        NoTarget                  Advise   Deployment.apps "gone" not found   AGE
`},
		{"gep --output wide", `
NAME         NODES   GPUS   FREE   STRANDED   PRICE   AGE
e2e-shared   1       8      7      1          2.50    AGE
`},
	} {
		e.Eventually(shows.want, func(context.Context) error {
			said, err := e.Kubectl("", append([]string{"get", "--namespace", e.Namespace}, strings.Fields(shows.options)...)...)
			if err != nil {
				return fmt.Errorf("%w: %s", err, said)
			}
			if got := withoutAges(said); got != strings.TrimSpace(shows.want) {
				return fmt.Errorf("kubectl get %s shows\n%s", shows.options, got)
			}
			return nil
		})
	}
}

// withoutAges puts a word for the last column, that of the ages, below its title.
func withoutAges(table string) string {
	lines := strings.Split(strings.TrimSpace(table), "\n")
	for i, line := range lines {
		line = strings.TrimRight(line, " ")
		if at := strings.LastIndex(line, " "); at >= 0 {
			line = line[:at+1] + "AGE"
		}
		lines[i] = line
	}
	return strings.Join(lines, "\n")
}

// controllers waits until there are exactly that many and all are ready, and returns their pods.
func controllers(t *testing.T, e *kit.Env, count int) []corev1.Pod {
	t.Helper()
	var ready []corev1.Pod
	e.Eventually(fmt.Sprintf("%d controllers to be ready", count), func(ctx context.Context) error {
		list, err := e.Client.CoreV1().Pods(kit.SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=controller"})
		if err != nil {
			return err
		}
		ready = nil
		for _, pod := range list.Items {
			for _, c := range pod.Status.Conditions {
				if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil {
					ready = append(ready, pod)
				}
			}
		}
		if len(ready) != count || len(list.Items) != count {
			return fmt.Errorf("%d of %d are", len(ready), len(list.Items))
		}
		return nil
	})
	return ready
}

// leads waits until one of the pods holds the lease, and returns it.
func leads(t *testing.T, e *kit.Env, pods []corev1.Pod) *corev1.Pod {
	t.Helper()
	var leader *corev1.Pod
	e.Eventually("a leader", func(ctx context.Context) error {
		lease, err := e.Client.CoordinationV1().Leases(kit.SystemNamespace).Get(ctx, kit.Controller, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if lease.Spec.HolderIdentity == nil {
			return errors.New("nobody has the lease")
		}
		for i := range pods {
			if strings.HasPrefix(*lease.Spec.HolderIdentity, pods[i].Name+"_") {
				leader = &pods[i]
				return nil
			}
		}
		return fmt.Errorf("%s has the lease", *lease.Spec.HolderIdentity)
	})
	return leader
}
