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

// While the plugin of the node is replaced, pods come and go, and none of their claims has to wait for it.
func TestUpdateWithoutAGap(t *testing.T) {
	e := kit.New(t, kit.Shape{Name: "update", Boards: "2xH100-SXM5-80GB,mig=on"})
	e.Pod("stays", kit.Requests("mig-3g.40gb.gpu.nvidia.com"))
	stays := e.Running("stays")[0]
	before, err := e.PluginPod(t.Context())
	require.NoError(t, err)

	replaced := make(chan error, 1)
	go func() { replaced <- e.Replace() }()
	rounds := 0
	for done := false; !done || rounds < 3; rounds++ {
		name := fmt.Sprintf("round-%d", rounds)
		e.Pod(name, kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
		pods := e.Running(name)
		require.NoError(t, e.Verify(pods[0]))
		e.Delete(pods...)
		if !done {
			select {
			case err := <-replaced:
				require.NoError(t, err)
				done = true
			default:
			}
		}
	}
	t.Logf("%d pods came and went during the update", rounds)
	e.Eventually("one plugin, another than before", func(ctx context.Context) error {
		now, err := e.PluginPod(ctx)
		if err == nil && now.UID == before.UID {
			err = errors.New("it is the same")
		}
		return err
	})
	require.NoError(t, e.Verify(stays))
	events, err := e.Client.CoreV1().Events(e.Namespace).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	for _, event := range events.Items {
		require.False(t, event.Type == corev1.EventTypeWarning && event.Reason == "FailedPrepareDynamicResources", "%s: %s", event.InvolvedObject.Name, event.Message)
	}
	// The one that publishes now is the new one.
	e.Pod("after", kit.Requests("mig-2g.20gb.gpu.nvidia.com"))
	require.NoError(t, e.Verify(e.Running("after")[0]))
}
