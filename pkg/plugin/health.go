package plugin

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/health"
)

// healthInterval is within the 30 seconds after which the kubelet forgets a device's health.
const healthInterval = 10 * time.Second

// WatchHealthStatus tells the kubelet which devices are healthy: at once when that
// changes, and again and again.
func (d *Driver) WatchHealthStatus(ctx context.Context, reports chan<- kubeletplugin.DeviceHealthReport) error {
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for {
		// In this order: a change in between is reported with the next turn.
		conditions, changed := d.pool.Conditions()
		report := kubeletplugin.DeviceHealthReport{}
		for _, s := range d.pool.Resources().Pools[d.node.Name].Slices {
			for _, published := range s.Devices {
				device, _ := d.pool.Device(published.Name)
				report.Devices = append(report.Devices, d.health(published.Name, device, conditions))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case reports <- report:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-ticker.C:
		}
	}
}

func (d *Driver) health(name string, device gpu.Device, conditions []gpu.Condition) kubeletplugin.DeviceHealth {
	var wrong []string
	for _, c := range conditions {
		// A device that somebody keeps from being given back is in order.
		if c.Concerns(device) && c.Reason != reasonReleaseBlocked {
			wrong = append(wrong, c.Reason+": "+c.Message)
		}
	}
	answer := kubeletplugin.DeviceHealth{PoolName: d.node.Name, DeviceName: name, Health: kubeletplugin.HealthStatusHealthy, LastUpdated: time.Now()}
	if len(wrong) > 0 {
		answer.Health, answer.Message = kubeletplugin.HealthStatusUnhealthy, strings.Join(wrong, "; ")
	}
	return answer
}

// ClearHealth is what the node's operator wants cleared. See health.ClearAnnotation.
func (s Server) ClearHealth(ctx context.Context) (string, error) {
	node, err := s.Client.CoreV1().Nodes().Get(ctx, s.Node.Name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("read the annotation %s of the node: %w", health.ClearAnnotation, err)
	}
	return node.Annotations[health.ClearAnnotation], nil
}

// HealthEvents makes events of the node of what begins and ends on its GPUs.
func HealthEvents(node *corev1.ObjectReference, events record.EventRecorder) health.Report {
	return func(c gpu.Condition, cleared bool) {
		if cleared {
			events.Eventf(node, corev1.EventTypeNormal, c.Reason+"Cleared", "%s: cleared, it began at %s", c.Device, c.Since.Format(time.RFC3339))
			return
		}
		events.Eventf(node, corev1.EventTypeWarning, c.Reason, "%s (%s)", c.Message, c.Effect)
	}
}
