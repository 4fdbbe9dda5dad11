package plugin_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

// Bounds of waiting for another goroutine; nothing is said about speed.
const (
	waitLong = time.Minute
	waitStep = 5 * time.Millisecond
)

func TestReadyWhenRegisteredAndPublished(t *testing.T) {
	client := fake.NewClientset()
	registered := false
	taint := resourceapi.DeviceTaint{Key: "gpu.kerf.dev/GPULost", Effect: resourceapi.DeviceTaintEffectNoExecute}
	want := resourceslice.Pool{Slices: []resourceslice.Slice{{}, {Devices: []resourceapi.Device{{Name: "a", Taints: []resourceapi.DeviceTaint{taint}}}}}}
	server := plugin.Server{Client: client, Node: pool.Node{Name: "node", Driver: pool.DefaultDriver}}
	ready := &plugin.Ready{
		Registered: func() bool { return registered },
		Published:  func(ctx context.Context) error { return server.Complete(ctx, want) },
	}
	publish := func(generation int64, device string, taints ...resourceapi.DeviceTaint) {
		s := &resourceapi.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%d-%s", generation, device)}}
		s.Spec.Pool.Generation = generation
		if device != "" {
			s.Spec.Devices = []resourceapi.Device{{Name: device, Taints: taints}}
		}
		_, err := client.ResourceV1().ResourceSlices().Create(t.Context(), s, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	require.ErrorContains(t, ready.Check(t.Context()), "registered")
	registered = true
	publish(1, "a")
	require.ErrorContains(t, ready.Check(t.Context()), "1 of the pool's 2 slices")
	publish(2, "")
	publish(2, "b")
	require.ErrorContains(t, ready.Check(t.Context()), "device a is not published")
	publish(3, "")
	publish(3, "a")
	require.ErrorContains(t, ready.Check(t.Context()), "taint gpu.kerf.dev/GPULost of device a")
	publish(4, "")
	publish(4, "a", taint)
	require.NoError(t, ready.Check(t.Context()))

	// It has been ready: an API server without the slices is not its fault.
	require.NoError(t, client.ResourceV1().ResourceSlices().Delete(t.Context(), "4-a", metav1.DeleteOptions{}))
	require.NoError(t, ready.Check(t.Context()))
	registered = false
	require.Error(t, ready.Check(t.Context()))
}

func TestAllocated(t *testing.T) {
	result := func(driver, pool, device string) resourceapi.DeviceRequestAllocationResult {
		return resourceapi.DeviceRequestAllocationResult{Driver: driver, Pool: pool, Device: device}
	}
	allocated := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "allocated"}}
	allocated.Status.Allocation = &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{
		result(pool.DefaultDriver, "node", "ours"), result(pool.DefaultDriver, "other", "a"), result("nic", "node", "b"),
	}}}
	pending := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pending"}}
	names, err := plugin.Server{Client: fake.NewClientset(allocated, pending), Node: pool.Node{Name: "node", Driver: pool.DefaultDriver}}.Allocated(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"ours"}, names)
}

func TestServe(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	registry := prometheus.NewRegistry()
	metrics := plugin.NewMetrics(registry, "v1")
	require.NoError(t, plugin.CountInstances(registry, newWorld(t), func() int { return 2 }))

	d := plugin.NewDriver(&fakeEngine{}, pool.Node{Name: "node", Driver: pool.DefaultDriver}, catalogue{mig: {}}, metrics.Operation, unwritten, &record.FakeRecorder{}, nil)
	refused := claim(func(a *resourceapi.DeviceAllocationResult) { a.Results[0].Device = "gpu-9" })
	refused.UID = "refused"
	_, err = d.PrepareResourceClaims(t.Context(), []*resourceapi.ResourceClaim{claim(nil), refused})
	require.NoError(t, err)
	_, err = d.UnprepareResourceClaims(t.Context(), []kubeletplugin.NamespacedObject{{UID: "uid"}})
	require.NoError(t, err)
	j, err := journal.Open(t.TempDir())
	require.NoError(t, err)
	unlock, err := metrics.Locks(j).LockGPUs(t.Context(), "GPU-1")
	require.NoError(t, err)
	unlock()
	metrics.Call("create the GPU instance", "GPU-1", 0, gpu.ErrLost)

	require.NoError(t, plugin.ClaimInfo(registry, j))
	held := gpu.Instance{GPU: "GPU-1", Profile: "1g.10gb", ID: 9}
	require.NoError(t, j.PutClaim(&journal.Claim{UID: "u", Namespace: "ns", Name: "c", State: journal.ClaimPrepared, Devices: []journal.ClaimDevice{
		{Name: "gpu-1-mig-1g10gb-0", Device: held.Device(), Instance: &held},
	}}))

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- plugin.Serve(ctx, address, registry,
			plugin.Reachable(filepath.Join(t.TempDir(), "none.sock")), func(context.Context) error { return nil })
	}()
	get := func(path string) (int, string) {
		var code int
		var body []byte
		require.Eventually(t, func() bool {
			response, err := http.Get("http://" + address + path)
			if err != nil {
				return false
			}
			defer func() { _ = response.Body.Close() }()
			code = response.StatusCode
			body, err = io.ReadAll(response.Body)
			return err == nil
		}, waitLong, waitStep)
		return code, string(body)
	}
	code, _ := get("/readyz")
	require.Equal(t, http.StatusOK, code)
	code, body := get("/healthz")
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Contains(t, body, "none.sock")
	_, body = get("/metrics")
	for _, line := range []string{
		`kerf_build_info{version="v1"} 1`,
		`kerf_claim_operation_duration_seconds_count{operation="prepare",result="success"} 1`,
		`kerf_claim_operation_duration_seconds_count{operation="prepare",result="failure"} 1`,
		`kerf_claim_operation_duration_seconds_count{operation="unprepare",result="success"} 1`,
		`kerf_lock_wait_seconds_count{lock="gpu"} 1`,
		`kerf_nvml_call_duration_seconds_count{operation="create the GPU instance",result="failure"} 1`,
		`kerf_claim_device_info{GPU_I_ID="9",UUID="GPU-1",claim_name="c",claim_namespace="ns",claim_uid="u",device="gpu-1-mig-1g10gb-0",profile="1g.10gb",type="mig"} 1`,
		`kerf_instances{state="claimed"} 0`,
		`kerf_instances{state="foreign"} 2`,
	} {
		require.Contains(t, body, line+"\n")
	}
	cancel()
	require.NoError(t, <-done)
}
