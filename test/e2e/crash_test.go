//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// A plugin that is killed between the preparation of a claim and its release takes nothing with it and leaves nothing.
func TestPluginKilledBetweenPrepareAndUnprepare(t *testing.T) {
	e := kit.New(t, fleet)
	e.Pod("instances", kit.Requests("mig-3g.40gb.gpu.nvidia.com", "mig-1g.10gb.gpu.nvidia.com"))
	e.Pod("whole", kit.Requests(wholeClass))
	e.Pod("replica", kit.Requests(timesliceClass))
	pods := e.Running("instances", "whole", "replica")

	before := killPlugin(t, e)
	e.Eventually("the plugin to be back", func(ctx context.Context) error {
		pod, err := e.PluginPod(ctx)
		if err != nil {
			return err
		}
		if len(pod.Status.ContainerStatuses) == 0 || pod.Status.ContainerStatuses[0].RestartCount <= before || !pod.Status.ContainerStatuses[0].Ready {
			return fmt.Errorf("it is %s: %v", pod.Status.Phase, pod.Status.ContainerStatuses)
		}
		return nil
	})
	for _, pod := range pods {
		require.NoError(t, e.Verify(pod))
		now, err := e.Client.CoreV1().Pods(e.Namespace).Get(t.Context(), pod.Name, metav1.GetOptions{})
		require.NoError(t, err)
		require.Equal(t, containers(pod), containers(now), "the containers of pod %s were not touched", pod.Name)
	}
	require.NoError(t, e.CheckInstances(t.Context()))
	e.Delete(pods...)
	e.Eventually("the instances to be gone", e.CheckInstances)

	e.Pod("next", kit.Requests("mig-3g.40gb.gpu.nvidia.com"))
	require.NoError(t, e.Verify(e.Running("next")[0]))
}

// A pod that is deleted while there is no plugin goes as soon as there is one again.
func TestPodDeletedWhilePluginIsDead(t *testing.T) {
	e := kit.New(t, fleet)
	e.Pod("instance", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	pods := e.Running("instance")
	killPlugin(t, e)
	e.Delete(pods...)
	e.Eventually("the instance to be gone", e.CheckInstances)
}

// killPlugin kills the process and returns how often its container had been restarted before.
func killPlugin(t *testing.T, e *kit.Env) int32 {
	t.Helper()
	pod, err := e.PluginPod(t.Context())
	require.NoError(t, err)
	require.Len(t, pod.Status.ContainerStatuses, 1)
	pid := pluginProcess(t)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	return pod.Status.ContainerStatuses[0].RestartCount
}

// pluginProcess is the pid of the one "kerf plugin" of the node.
func pluginProcess(t *testing.T) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	var found []int
	for _, file := range files {
		command, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended meanwhile
		}
		if strings.HasPrefix(string(command), "/usr/bin/kerf\x00plugin\x00") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			require.NoError(t, err)
			found = append(found, pid)
		}
	}
	require.Len(t, found, 1, "processes of the plugin")
	return found[0]
}

// containers tells one life of a pod's containers from another.
func containers(pod *corev1.Pod) []string {
	var all []string
	for _, c := range pod.Status.ContainerStatuses {
		all = append(all, fmt.Sprintf("%s: %s, %d restarts", c.Name, c.ContainerID, c.RestartCount))
	}
	return all
}
