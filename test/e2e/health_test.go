//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// unwell is a node whose boards fall ill.
var unwell = kit.Shape{Name: "unwell", Boards: "2xH100-SXM5-80GB"}

// An Xid of an instance concerns what overlaps it and nothing else: nobody new gets that, who has it is told, and evicted
// if the Xid is of that kind. An operator's word brings it back.
func TestXidOfAnInstance(t *testing.T) {
	e := kit.New(t, unwell)
	clearsHealth(t, e)
	e.Template("small", kit.Requests(smallClass))
	labels := e.Deployment("moves", "small", 1)
	first := e.RunningPods(1, labels)[0]
	e.PodOfTemplate("neighbour", "small")
	neighbour := e.Running("neighbour")[0]
	require.Equal(t, parents(t, e, []*corev1.Pod{first}), parents(t, e, []*corev1.Pod{neighbour}))
	hit := devices(t, e, first)[0]
	overlapping := func(d kit.Device) bool { return d.Parent() == hit.Parent() && d.Placement().Overlaps(hit.Placement()) }
	xid := func(number string) {
		for _, i := range instances(t, e) {
			if i.GPU == hit.Parent() && i.Placement == hit.Placement() {
				e.Sim("xid", i.GPU, number, "--gi", fmt.Sprint(i.ID))
				return
			}
		}
		t.Fatal("the pod's instance is not there")
	}
	requireHealth(e, first, corev1.ResourceHealthStatusHealthy)

	xid("94")
	awaitTaint(e, "Xid94", overlapping)
	requireHealth(e, first, corev1.ResourceHealthStatusUnhealthy)
	requireHealth(e, neighbour, corev1.ResourceHealthStatusHealthy)
	declareWell(t, e)
	awaitTaint(e, "", nil)
	requireHealth(e, first, corev1.ResourceHealthStatusHealthy)
	now := e.Running(first.Name)[0]
	require.Equal(t, first.UID, now.UID, "Xid 94 evicts nobody")

	xid("95")
	awaitTaint(e, "Xid95", overlapping)
	e.Eventually("the pod to be evicted", func(ctx context.Context) error {
		_, err := e.Client.CoreV1().Pods(e.Namespace).Get(ctx, first.Name, metav1.GetOptions{})
		return kit.Gone("it", err)
	})
	successor := e.RunningPods(1, labels)[0]
	require.NoError(t, e.Verify(successor))
	require.False(t, overlapping(devices(t, e, successor)[0]))
	require.NoError(t, e.Verify(neighbour))

	// What overlaps the instance stays away until an operator has spoken.
	require.NoError(t, e.Client.AppsV1().Deployments(e.Namespace).Delete(t.Context(), "moves", metav1.DeleteOptions{}))
	e.Delete(neighbour)
	e.Template("whole", kit.Requests(wholeClass))
	e.PodOfTemplate("one", "whole")
	one := e.Running("one")
	e.PodOfTemplate("two", "whole")
	unschedulable(t, e, "two")
	declareWell(t, e)
	two := e.Running("two")
	require.NoError(t, e.Verify(two[0]))
	require.NotEqual(t, parents(t, e, one), parents(t, e, two))
}

// The pods of a GPU that is lost go elsewhere, and the GPU is offered again when it is back.
func TestLostGPU(t *testing.T) {
	e := kit.New(t, unwell)
	e.Template("small", kit.Requests(smallClass))
	labels := e.Deployment("moves", "small", 1)
	first := e.RunningPods(1, labels)[0]
	lost := devices(t, e, first)[0].Parent()
	ofLost := func(d kit.Device) bool { return d.Parent() == lost }

	e.Sim("lose", lost)
	back := false
	t.Cleanup(func() {
		if !back {
			e.Sim("restore", lost)
		}
	})
	awaitTaint(e, "GPULost", ofLost)
	e.Eventually("the pod to be evicted", func(ctx context.Context) error {
		_, err := e.Client.CoreV1().Pods(e.Namespace).Get(ctx, first.Name, metav1.GetOptions{})
		return kit.Gone("it", err)
	})
	successor := e.RunningPods(1, labels)[0]
	require.NoError(t, e.Verify(successor))
	require.False(t, ofLost(devices(t, e, successor)[0]))
	e.Pod("whole", kit.Requests(wholeClass))
	unschedulable(t, e, "whole")

	e.Sim("restore", lost)
	back = true
	awaitTaint(e, "", nil)
	whole := e.Running("whole")[0]
	require.NoError(t, e.Verify(whole))
	require.True(t, ofLost(devices(t, e, whole)[0]))
}

// awaitTaint waits until exactly the devices that are concerned have a taint, and that for that reason alone. Without a
// reason it waits until no device has one.
func awaitTaint(e *kit.Env, reason string, concerned func(kit.Device) bool) {
	e.Eventually(fmt.Sprintf("the taint %q", reason), func(ctx context.Context) error {
		devices, err := e.Published(ctx)
		if err != nil {
			return err
		}
		for _, d := range devices {
			var want, got []string
			if reason != "" && concerned(d) {
				want = []string{"gpu.kerf.dev/" + reason}
			}
			for _, taint := range d.Published.Taints {
				got = append(got, taint.Key)
			}
			if !slices.Equal(want, got) {
				return fmt.Errorf("%s has the taints %q, not %q", d.Published.Name, got, want)
			}
		}
		return nil
	})
}

// requireHealth waits until the status of a pod says that of its one device.
func requireHealth(e *kit.Env, pod *corev1.Pod, want corev1.ResourceHealthStatus) {
	e.Eventually(fmt.Sprintf("pod %s to show its device as %s", pod.Name, want), func(ctx context.Context) error {
		now, err := e.Client.CoreV1().Pods(e.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		status := now.Status.ContainerStatuses[0].AllocatedResourcesStatus
		if len(status) != 1 || len(status[0].Resources) != 1 || status[0].Resources[0].Health != want {
			return fmt.Errorf("it says %+v", status)
		}
		return nil
	})
}

// declareWell is an operator who says that the boards are well as of now.
func declareWell(t testing.TB, e *kit.Env) {
	annotate(t, e, fmt.Sprintf("%q", time.Now().UTC().Format(time.RFC3339Nano)))
}

func annotate(t testing.TB, e *kit.Env, value string) {
	t.Helper()
	patch := fmt.Sprintf(`{"metadata": {"annotations": {"gpu.kerf.dev/clear-health": %s}}}`, value)
	_, err := e.Client.CoreV1().Nodes().Patch(context.Background(), kit.NodeName, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	require.NoError(t, err)
}

// clearsHealth leaves the boards well at the end of the test, however it ends.
func clearsHealth(t testing.TB, e *kit.Env) {
	t.Cleanup(func() {
		declareWell(t, e)
		awaitTaint(e, "", nil)
		annotate(t, e, "null")
	})
}
