package plugin_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/health"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

func atPlacement(start, size int) gpu.Device {
	return gpu.Device{Type: gpu.TypeMIG, GPU: firstGPU, Profile: "1g.10gb", Placement: gpu.Placement{Start: start, Size: size}}
}

func taint(d resourceapi.Device, key string) *resourceapi.DeviceTaint {
	for i := range d.Taints {
		if d.Taints[i].Key == key {
			return &d.Taints[i]
		}
	}
	return nil
}

func TestConditionsAreTaintsWithTheirTime(t *testing.T) {
	w := newWorld(t)
	since := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	w.health = []gpu.Condition{
		{Device: atPlacement(4, 1), Reason: "Xid94", Effect: gpu.EffectNoSchedule, Since: since},
		{Device: gpu.Device{GPU: secondGPU}, Reason: health.ReasonLost, Effect: gpu.EffectNoExecute, Since: since},
	}
	w.readErr = gpu.ReadErrors{{UUID: secondGPU, Err: gpu.ErrLost}}
	devices := published(w.start())
	for name, tainted := range map[string]bool{
		"gpu-11111111": true, "gpu-11111111-mig-1g10gb-4": true, "gpu-11111111-mig-3g40gb-4": true,
		"gpu-11111111-mig-1g10gb-5": false, "gpu-11111111-mig-3g40gb-0": false, "gpu-22222222-mig-1g10gb-4": false,
	} {
		got := taint(devices[name], "gpu.kerf.dev/Xid94")
		require.Equal(t, tainted, got != nil, name)
		if tainted {
			require.True(t, got.TimeAdded.Time.Equal(since), name)
		}
	}
	// What a look finds as well keeps the time of who has found it first.
	lost := devices["gpu-22222222"]
	require.Len(t, lost.Taints, 1)
	require.True(t, lost.Taints[0].TimeAdded.Time.Equal(since))

	w.health, w.readErr = nil, nil
	for name, d := range published(w.start()) {
		require.Empty(t, d.Taints, name)
	}
}

// The kubelet hears of what is wrong with a device, and of the end of it, at once.
func TestTheKubeletHearsOfConditions(t *testing.T) {
	w := newWorld(t)
	p := w.start()
	d := plugin.NewDriver(&fakeEngine{}, pool.Node{Name: "node", Driver: pool.DefaultDriver}, p, unobserved, unwritten, &record.FakeRecorder{}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	reports, done := make(chan kubeletplugin.DeviceHealthReport), make(chan error)
	go func() { done <- d.WatchHealthStatus(ctx, reports) }()
	unhealthy := func() map[string]string {
		messages := map[string]string{}
		for _, d := range (<-reports).Devices {
			if d.Health != kubeletplugin.HealthStatusHealthy {
				require.Equal(t, kubeletplugin.HealthStatusUnhealthy, d.Health)
				messages[d.DeviceName] = d.Message
			}
		}
		return messages
	}
	require.Empty(t, unhealthy())
	_, changed := p.Conditions()

	w.health = []gpu.Condition{{Device: atPlacement(6, 1), Reason: "Xid48", Message: "memory is broken", Effect: gpu.EffectNoSchedule}}
	require.NoError(t, p.Look(t.Context()))
	<-changed // Without it the report would come with the ticker.
	got := unhealthy()
	require.Equal(t, "Xid48: memory is broken", got["gpu-11111111-mig-1g10gb-6"])
	require.Contains(t, got, "gpu-11111111")
	require.NotContains(t, got, "gpu-11111111-mig-1g10gb-5")

	_, changed = p.Conditions()
	require.NoError(t, p.Look(t.Context()))
	select {
	case <-changed:
		t.Fatal("nothing has changed")
	default:
	}
	w.health = nil
	require.NoError(t, p.Look(t.Context()))
	<-changed
	require.Empty(t, unhealthy())
	cancel()
	require.NoError(t, <-done)
}

func TestWhatAnOperatorWantsCleared(t *testing.T) {
	client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", Annotations: map[string]string{"gpu.kerf.dev/clear-health": "2026-05-01T12:00:00Z"}}})
	got, err := plugin.Server{Client: client, Node: pool.Node{Name: "node"}}.ClearHealth(t.Context())
	require.NoError(t, err)
	require.Equal(t, "2026-05-01T12:00:00Z", got)
	_, err = plugin.Server{Client: client, Node: pool.Node{Name: "elsewhere"}}.ClearHealth(t.Context())
	require.ErrorContains(t, err, health.ClearAnnotation)
}

func TestHealthEvents(t *testing.T) {
	events := record.NewFakeRecorder(2)
	report := plugin.HealthEvents(&corev1.ObjectReference{Kind: "Node", Name: "node"}, events)
	c := gpu.Condition{Device: gpu.Device{GPU: firstGPU}, Reason: "Xid79", Message: "why", Effect: gpu.EffectNoExecute, Since: time.Unix(0, 0).UTC()}
	report(c, false)
	report(c, true)
	require.Equal(t, "Warning Xid79 why (NoExecute)", <-events.Events)
	require.Equal(t, "Normal Xid79Cleared "+firstGPU+": cleared, it began at 1970-01-01T00:00:00Z", <-events.Events)
}
