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

// policyExamples are all files of deployments/examples/policy: those about who may have what, and when. Each is applied
// and checked by its function, on a node on which the policy makes a difference.
var policyExamples = map[string]struct {
	shape kit.Shape
	check func(*testing.T, *kit.Env, string)
}{
	"quota.yaml":        {fleet, quotaHolds},
	"priority.yaml":     {single, priorityDecidesWhoIsNext},
	"tolerations.yaml":  {unwell, tolerationsHold},
	"admin-access.yaml": {single, adminAccessTakesNothing},
}

// single is a node with one board.
var single = kit.Shape{Name: "single", Boards: "1xH100-SXM5-80GB", Replicas: 2}

func TestPolicyExamples(t *testing.T) {
	files, err := os.ReadDir("deployments/examples/policy")
	require.NoError(t, err)
	for _, file := range files {
		t.Run(file.Name(), func(t *testing.T) {
			example, ok := policyExamples[file.Name()]
			require.True(t, ok, "this example is not tested")
			example.check(t, kit.New(t, example.shape), filepath.Join("policy", file.Name()))
		})
	}
}

const smallClass, quarterClass = "mig-1g.10gb.gpu.nvidia.com", "mig-2g.20gb.gpu.nvidia.com"

func quotaHolds(t *testing.T, e *kit.Env, file string) {
	e.Example(file)
	// The quota has to be counted first: until then the API server lets nothing in that it is about.
	var running []*corev1.Pod
	e.Eventually("two of the three pods to run, and the third to be told why not", func(ctx context.Context) error {
		pods, err := e.Client.CoreV1().Pods(e.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=within-quota"})
		if err != nil {
			return err
		}
		running, err = nil, errors.New("no pod was told of the quota")
		for i := range pods.Items {
			if pods.Items[i].Status.Phase == corev1.PodRunning {
				running = append(running, &pods.Items[i])
			} else if tells(ctx, e, pods.Items[i].Name, "FailedResourceClaimCreation", "exceeded quota: gpus") == nil {
				err = nil
			}
		}
		if len(running) != 2 || len(pods.Items) != 3 {
			return fmt.Errorf("%d of %d pods run", len(running), len(pods.Items))
		}
		return err
	})
	for _, pod := range running {
		require.NoError(t, e.Verify(pod))
	}

	// The scheduler's own claims count as well, when it makes them.
	require.NoError(t, e.TryPod(kit.LimitedPod("small", "nvidia.com/mig-1g.10gb")))
	e.Eventually("the pod with a limit to be told of the quota", func(ctx context.Context) error {
		return tells(ctx, e, "small", "FailedScheduling", "exceeded quota: gpus")
	})
	// Whereas the quota of an extended resource counts pods and claims together, and refuses when they are applied.
	require.NoError(t, e.TryPod(kit.LimitedPod("quarter", "nvidia.com/mig-2g.20gb")))
	e.Running("quarter")
	require.ErrorContains(t, e.TryPod(kit.LimitedPod("second", "nvidia.com/mig-2g.20gb")), "exceeded quota: gpus, requested: requests.nvidia.com/mig-2g.20gb=1")
	require.ErrorContains(t, e.TryClaim("third", kit.Requests(quarterClass)), "exceeded quota: gpus, requested: requests.nvidia.com/mig-2g.20gb=1")
	require.ErrorContains(t, e.TryClaim("any", kit.Requests("mig.nvidia.com")), "exceeded quota: gpus")
	// Every alternative counts, as if it were the one that is taken.
	require.ErrorContains(t, e.TryClaim("either", alternatives(wholeClass, "mig.nvidia.com")), "exceeded quota: gpus")
	e.Claim("one", kit.Requests(wholeClass))
	require.ErrorContains(t, e.TryClaim("two", kit.Requests(wholeClass)), "exceeded quota: gpus, requested: gpu.nvidia.com.deviceclass.resource.k8s.io/devices=1")
}

func priorityDecidesWhoIsNext(t *testing.T, e *kit.Env, file string) {
	t.Cleanup(func() {
		require.NoError(t, e.Client.SchedulingV1().PriorityClasses().Delete(context.Background(), "gpu-urgent", metav1.DeleteOptions{}))
	})
	e.Pod("holder", kit.Requests(wholeClass))
	holder := e.Running("holder")[0]
	e.Example(file)
	unschedulable(t, e, "batch")
	unschedulable(t, e, "urgent")
	e.Eventually("the scheduler to say that it evicts nobody", func(ctx context.Context) error {
		return tells(ctx, e, "urgent", "FailedScheduling", "Preemption is not helpful for scheduling")
	})
	now, err := e.Client.CoreV1().Pods(e.Namespace).Get(t.Context(), "holder", metav1.GetOptions{})
	require.NoError(t, err)
	require.Nil(t, now.DeletionTimestamp)
	require.NoError(t, e.Verify(holder))

	e.Delete(holder)
	urgent := e.Running("urgent")
	require.NoError(t, e.Verify(urgent[0]))
	unschedulable(t, e, "batch")
	e.Delete(urgent...)
	require.NoError(t, e.Verify(e.Running("batch")[0]))
}

func tolerationsHold(t *testing.T, e *kit.Env, file string) {
	clearsHealth(t, e)
	e.Pod("plain", kit.Requests(smallClass))
	plain := e.Running("plain")
	for _, gpu := range []string{"0", "1"} {
		e.Sim("xid", gpu, "94")
	}
	awaitTaint(e, "Xid94", func(kit.Device) bool { return true })
	e.Pod("late", kit.Requests(smallClass))
	unschedulable(t, e, "late")
	e.Example(file)
	tolerates := e.Running("tolerates-errors")[0]
	require.NoError(t, e.Verify(tolerates))
	require.NoError(t, e.Verify(plain[0]), "the taint is about new pods")
	require.Equal(t, parents(t, e, plain), parents(t, e, []*corev1.Pod{tolerates}))

	e.Sim("xid", "0", "95")
	e.Eventually("the pod that tolerates nothing to be evicted", func(ctx context.Context) error {
		_, err := e.Client.CoreV1().Pods(e.Namespace).Get(ctx, "plain", metav1.GetOptions{})
		return kit.Gone("it", err)
	})
	now, err := e.Client.CoreV1().Pods(e.Namespace).Get(t.Context(), tolerates.Name, metav1.GetOptions{})
	require.NoError(t, err)
	require.Nil(t, now.DeletionTimestamp)
	require.NoError(t, e.Verify(tolerates))
	unschedulable(t, e, "late")
}

func adminAccessTakesNothing(t *testing.T, e *kit.Env, file string) {
	said, err := e.Kubectl("", "apply", "--namespace", e.Namespace, "--filename", filepath.Join("deployments/examples", file))
	require.Error(t, err)
	require.Contains(t, said, "resource.kubernetes.io/admin-access: true")
	label := []byte(`{"metadata": {"labels": {"resource.kubernetes.io/admin-access": "true"}}}`)
	_, err = e.Client.CoreV1().Namespaces().Patch(t.Context(), e.Namespace, types.MergePatchType, label, metav1.PatchOptions{})
	require.NoError(t, err)
	e.Eventually("the API server to know the label", func(context.Context) error {
		_, err := e.Kubectl("", "apply", "--namespace", e.Namespace, "--filename", filepath.Join("deployments/examples", file))
		return err
	})
	admin := e.Running("admin-access")
	require.NoError(t, e.Verify(admin[0]))

	e.Pod("whole", kit.Requests(wholeClass))
	whole := e.Running("whole")
	require.NoError(t, e.Verify(whole[0]))
	require.Equal(t, parents(t, e, admin), parents(t, e, whole))
	require.NoError(t, e.Verify(admin[0]))

	// Whoever comes later finds nothing, while anything of the GPU is allocated.
	e.PodOfTemplate("later", "admin-access")
	unschedulable(t, e, "later")
	e.Delete(whole...)
	later := e.Running("later")
	require.NoError(t, e.Verify(later[0]))
	e.Delete(append(admin, later...)...)

	e.Pod("instance", kit.Requests(smallClass))
	instance := e.Running("instance")
	e.PodOfTemplate("beside", "admin-access")
	unschedulable(t, e, "beside")
	e.Delete(instance...)
	require.NoError(t, e.Verify(e.Running("beside")[0]))
}

// tells returns nil if an event of a pod has that reason and says that.
func tells(ctx context.Context, e *kit.Env, pod, reason, says string) error {
	events, err := e.Events(ctx, pod)
	if err != nil {
		return err
	}
	var seen []string
	for _, event := range events {
		if event.Reason == reason && strings.Contains(event.Message, says) {
			return nil
		}
		seen = append(seen, event.Reason+": "+event.Message)
	}
	return fmt.Errorf("no event of pod %s says %q:\n%s", pod, says, strings.Join(seen, "\n"))
}
