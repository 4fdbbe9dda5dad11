package plugin_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/plugin"
)

func TestKeepMIGOn(t *testing.T) {
	w := newWorld(t)
	w.node.GPUs = append(w.node.GPUs, gpu.GPU{UUID: "on", MIG: gpu.MIGMode{Capable: true, Current: true}}, gpu.GPU{UUID: "never"})
	w.config = &configv1alpha1.NodeConfiguration{Policies: []configv1alpha1.Policy{{MIG: configv1alpha1.MIG{Mode: configv1alpha1.MIGKeepOn}}}}
	events := record.NewFakeRecorder(9)
	var turned []string
	plugin.KeepMIGOn(t.Context(), w, w.config, func(_ context.Context, uuid string) error {
		turned = append(turned, uuid)
		if uuid == secondGPU {
			return gpu.ErrResetRequired
		}
		return nil
	}, &corev1.ObjectReference{Kind: "Node", Name: "node"}, events)
	require.Equal(t, []string{firstGPU, secondGPU}, turned)
	require.Len(t, events.Events, 1)
	require.Contains(t, <-events.Events, "nvidia-smi --gpu-reset -i "+secondGPU)

	turned = nil
	plugin.KeepMIGOn(t.Context(), w, nil, func(_ context.Context, uuid string) error { turned = append(turned, uuid); return nil }, nil, events)
	require.Empty(t, turned, "by default the mode follows the claim")
}
