package plugin

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// KeepMIGOn turns MIG on where the configuration keeps it on, on boards that
// nobody uses. Where that cannot be, the board stays as it is, and an event of the
// node says what to do: kerf neither resets a board nor ends anybody's programs.
func KeepMIGOn(ctx context.Context, hardware Hardware, config *configv1alpha1.NodeConfiguration, turnOn func(context.Context, string) error, node *corev1.ObjectReference, events record.EventRecorder) {
	looking, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	found, err := hardware.Node(looking)
	if err != nil {
		klog.FromContext(ctx).Error(err, "Some GPUs could not be read")
	}
	for _, g := range found.GPUs {
		if config.For(g.ProductName).MIG.Mode != configv1alpha1.MIGKeepOn || g.MIG.Current || !g.MIG.Capable {
			continue
		}
		err := turnOn(ctx, g.UUID)
		if err == nil {
			klog.FromContext(ctx).Info("MIG turned on", "gpu", g.UUID)
			continue
		}
		advice := "it is tried again when the plugin starts anew"
		switch {
		case errors.Is(err, gpu.ErrResetRequired):
			advice = fmt.Sprintf("drain the node and reset the GPU (nvidia-smi --gpu-reset -i %s), or reboot the node", g.UUID)
		case errors.Is(err, gpu.ErrInUse):
			advice = "end what uses the GPU and restart the plugin's pod"
		}
		klog.FromContext(ctx).Error(err, "MIG is to be kept on and could not be turned on", "gpu", g.UUID, "advice", advice)
		events.Eventf(node, corev1.EventTypeWarning, "MIGNotTurnedOn", "MIG of GPU %s (%s) is to be kept on and is off: %v: %s", g.UUID, g.ProductName, err, advice)
	}
}
