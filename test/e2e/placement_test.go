//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// pair is a node small enough to be filled.
var pair = kit.Shape{Name: "pair", Boards: "2xH100-SXM5-80GB", Replicas: 4}

const (
	wholeClass     = "gpu.nvidia.com"
	timesliceClass = "timeslice.gpu.nvidia.com"
)

// Replicas fill one GPU before the next, and no whole GPU and no instance is taken from a GPU that is shared.
func TestReplicasExcludeTheRest(t *testing.T) {
	e := kit.New(t, pair)
	e.Example("timeslice-four-pods.yaml")
	sharers := e.RunningPods(4, nil)
	shared := parents(t, e, sharers)
	require.Len(t, shared, 1)

	e.Pod("whole", kit.Requests(wholeClass))
	whole := e.Running("whole")
	require.NoError(t, e.Verify(whole[0]))
	require.False(t, parents(t, e, whole).HasAny(shared.UnsortedList()...), "the whole GPU is not the shared one")

	for name, class := range map[string]string{"second-whole": wholeClass, "instance": "mig-1g.10gb.gpu.nvidia.com", "fifth": timesliceClass} {
		e.Pod(name, kit.Requests(class))
		unschedulable(t, e, name)
	}
	for _, pod := range sharers {
		require.NoError(t, e.Verify(pod))
	}
}

// Instances keep whole GPUs and replicas away.
func TestInstancesExcludeTheRest(t *testing.T) {
	e := kit.New(t, pair)
	e.Pod("small", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	small := e.Running("small")
	e.Pod("whole", kit.Requests(wholeClass))
	whole := e.Running("whole")
	require.False(t, parents(t, e, whole).HasAny(parents(t, e, small).UnsortedList()...))
	for name, class := range map[string]string{"second-whole": wholeClass, "replica": timesliceClass} {
		e.Pod(name, kit.Requests(class))
		unschedulable(t, e, name)
	}
	// Beside the instance there is room for others.
	e.Pod("large", kit.OnOneGPU(kit.Requests("mig-4g.40gb.gpu.nvidia.com", "mig-2g.20gb.gpu.nvidia.com")))
	large := e.Running("large")
	require.Equal(t, parents(t, e, small), parents(t, e, large))
	for _, pod := range append(small, large...) {
		require.NoError(t, e.Verify(pod))
	}
}

// The alternatives of a request are tried in their order, as the node fills.
func TestAlternatives(t *testing.T) {
	e := kit.New(t, pair)
	e.Pod("sharer", kit.Requests(timesliceClass))
	sharer := e.Running("sharer")
	// 4g leaves the upper half, and 1g takes the place of a 3g in it, but not that of a 2g.
	e.Pod("filler", kit.OnOneGPU(kit.Requests("mig-4g.40gb.gpu.nvidia.com", "mig-1g.10gb.gpu.nvidia.com")))
	filler := e.Running("filler")

	e.Example("prioritized-alternatives.yaml")
	second := e.Running("prioritized-alternatives")
	require.NoError(t, e.Verify(second[0]))
	has("mig 2g.20gb")(t, e, second)
	require.Equal(t, parents(t, e, filler), parents(t, e, second))

	e.Pod("third", alternatives("mig-3g.40gb.gpu.nvidia.com", "mig-2g.20gb.gpu.nvidia.com", timesliceClass))
	third := e.Running("third")
	require.NoError(t, e.Verify(third[0]))
	has("timeslice ")(t, e, third)
	require.Equal(t, parents(t, e, sharer), parents(t, e, third))
}

func alternatives(classes ...string) resourceapi.ResourceClaimSpec {
	request := resourceapi.DeviceRequest{Name: "gpu"}
	for i, class := range classes {
		request.FirstAvailable = append(request.FirstAvailable, resourceapi.DeviceSubRequest{Name: fmt.Sprintf("choice-%d", i), DeviceClassName: class})
	}
	return resourceapi.ResourceClaimSpec{Devices: resourceapi.DeviceClaim{Requests: []resourceapi.DeviceRequest{request}}}
}

// A board in MIG mode runs nothing whole, and the other way round. The mode follows the claim.
func TestModeFollowsTheClaim(t *testing.T) {
	e := kit.New(t, kit.Shape{Name: "single", Boards: "1xH100-SXM5-80GB", Replicas: 2})
	for i, class := range []string{wholeClass, "mig-7g.80gb.gpu.nvidia.com", timesliceClass, "mig-1g.20gb.gpu.nvidia.com", wholeClass} {
		e.Pod(fmt.Sprintf("pod-%d", i), kit.Requests(class))
		pod := e.Running(fmt.Sprintf("pod-%d", i))
		require.NoError(t, e.Verify(pod[0]))
		boards, err := e.Boards()
		require.NoError(t, err)
		require.Equal(t, devices(t, e, pod...)[0].Type() == gpu.TypeMIG, boards[0].MIG)
		e.Delete(pod...)
	}
}

// unschedulable waits until the scheduler has found no place for a pod, and checks that nothing was given to it.
func unschedulable(t *testing.T, e *kit.Env, name string) {
	t.Helper()
	e.Eventually("pod "+name+" to be unschedulable", func(ctx context.Context) error {
		pod, err := e.Client.CoreV1().Pods(e.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
				return nil
			}
		}
		return fmt.Errorf("it is %s with %v", pod.Status.Phase, pod.Status.Conditions)
	})
	pod, err := e.Client.CoreV1().Pods(e.Namespace).Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, corev1.PodPending, pod.Status.Phase)
	require.Empty(t, pod.Spec.NodeName)
	_, err = e.PodDevices(pod)
	require.ErrorContains(t, err, "is not allocated")
}
