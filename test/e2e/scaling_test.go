//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
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
		return h.has(ctx, "model-a", 3)
	})
	h.RunningPods(2, b)
	require.NotNil(t, said.find("model-a", func(s v1alpha1.GPUScalingHintStatus) bool { return s.Reason == v1alpha1.ReasonUtilizationLow }))
}
