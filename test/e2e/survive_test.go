//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// After a reboot nothing is left of what the pods had, and all of it is made again for them.
func TestReboot(t *testing.T) {
	e := kit.New(t, fleet)
	e.Pod("instances", kit.Requests("mig-3g.40gb.gpu.nvidia.com", "mig-1g.10gb.gpu.nvidia.com"))
	e.Pod("whole", kit.Requests(wholeClass))
	e.Pod("replica", kit.Requests(timesliceClass))
	before := e.Running("instances", "whole", "replica")

	e.Reboot()
	var after []*corev1.Pod
	for _, old := range before {
		e.Eventually("pod "+old.Name+" to run again", func(ctx context.Context) error {
			now, err := e.Client.CoreV1().Pods(e.Namespace).Get(ctx, old.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for i, c := range now.Status.ContainerStatuses {
				if !c.Ready || c.ContainerID == old.Status.ContainerStatuses[i].ContainerID {
					return fmt.Errorf("container %s: %+v", c.Name, c.State)
				}
			}
			after = append(after, now)
			return nil
		})
	}
	for _, pod := range after {
		require.NoError(t, e.Verify(pod))
	}
	require.NoError(t, e.CheckInstances(t.Context()))
	e.Delete(after...)
	e.Eventually("the instances to be gone", e.CheckInstances)
}

// A plugin that dies between the creation of an instance and its record, and one that dies while it destroys, is started
// again by the kubelet, and the pod gets what it asked for and gives it back.
func TestPluginKilledInTheMiddle(t *testing.T) {
	e := kit.New(t, kit.Shape{Name: "crash", Boards: "1xH100-SXM5-80GB", Faults: `
faults:
- {name: in Prepare, operation: CreateGpuInstanceWithPlacement, after: true, crash: true}
- {name: in Unprepare, operation: ComputeInstanceDestroy, call: 2, after: true, crash: true}
`})
	restarts := func() int32 {
		pod, err := e.PluginPod(t.Context())
		require.NoError(t, err)
		require.Len(t, pod.Status.ContainerStatuses, 1)
		return pod.Status.ContainerStatuses[0].RestartCount
	}
	e.Pod("first", kit.Requests("mig-2g.20gb.gpu.nvidia.com"))
	pods := e.Running("first")
	require.NoError(t, e.Verify(pods[0]))
	require.Equal(t, int32(1), restarts(), "it died while it prepared")
	require.NoError(t, e.CheckInstances(t.Context()))

	e.Delete(pods...)
	e.Eventually("the instance to be gone", e.CheckInstances)
	require.LessOrEqual(t, int32(1), restarts())
	e.Pod("next", kit.Requests("mig-7g.80gb.gpu.nvidia.com"))
	next := e.Running("next")
	require.NoError(t, e.Verify(next[0]))
	e.Delete(next...)
	e.Eventually("the instance to be gone", e.CheckInstances)
}

// A pod that is deleted by force has no claim any more at once, and the next pod gets its place before the node has let go of it.
func TestSuccessorOfAForceDeletedPod(t *testing.T) {
	e := kit.New(t, kit.Shape{Name: "one", Boards: "1xH100-SXM5-80GB"})
	e.Pod("first", kit.Requests("mig-7g.80gb.gpu.nvidia.com"))
	first := e.Running("first")[0]
	e.Pod("second", kit.Requests("mig-7g.80gb.gpu.nvidia.com"))
	now := int64(0)
	require.NoError(t, e.Client.CoreV1().Pods(e.Namespace).Delete(t.Context(), first.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}))
	second := e.Running("second")[0]
	require.NoError(t, e.Verify(second))
	e.Eventually("nothing but the second pod's instance to be there", func(ctx context.Context) error {
		if n := len(instances(t, e)); n != 1 {
			return errors.New("there are others")
		}
		return e.CheckInstances(ctx)
	})
	e.Delete(second)
	e.Eventually("the instance to be gone", e.CheckInstances)
}

// A plugin under which the driver is replaced starts anew, and what its pods have stays.
func TestDriverReplacedUnderThePlugin(t *testing.T) {
	e := kit.New(t, fleet)
	e.Pod("stays", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	pods := e.Running("stays")
	before, err := e.PluginPod(t.Context())
	require.NoError(t, err)
	e.ReplaceDriver()
	e.Eventually("the plugin to have started anew", func(ctx context.Context) error {
		pod, err := e.PluginPod(ctx)
		if err != nil {
			return err
		}
		status := pod.Status.ContainerStatuses[0]
		if status.RestartCount <= before.Status.ContainerStatuses[0].RestartCount || !status.Ready {
			return fmt.Errorf("it has been restarted %d times, and is ready: %t", status.RestartCount, status.Ready)
		}
		require.Contains(t, status.LastTerminationState.Terminated.Message, "the NVIDIA driver was replaced")
		return nil
	})
	require.NoError(t, e.Verify(pods[0]))
	e.Delete(pods...)
	e.Pod("next", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	require.NoError(t, e.Verify(e.Running("next")[0]))
}
