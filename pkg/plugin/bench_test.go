package plugin_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/klog/v2"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/nvml"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

// bench is an engine on eight simulated H100 in MIG mode, all that it writes on a
// tmpfs, as on a node.
type bench struct {
	engine *claims.Engine
	gpus   []gpu.GPU
	dir    string
	// driver is the time that the (simulated) driver has taken so far, and created
	// is how many GPU instances it was asked for.
	driver, created atomic.Int64
	// withLocks is another engine on the same node, that takes its locks elsewhere.
	withLocks func(claims.Journal) *claims.Engine
	records   *journal.Journal
}

// newBench has so many idle instances kept a GPU. The options are the simulator's.
func newBench(b testing.TB, options string, idle int) *bench {
	b.Helper()
	klog.LogToStderr(false)
	klog.SetOutput(discard{})
	dir, err := os.MkdirTemp("/dev/shm", "kerf-bench-")
	if err != nil {
		dir = b.TempDir() // No tmpfs here: the figures are then the disk's.
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	spec, err := nvmlsim.Parse("8xH100-SXM5-80GB,mig=on" + options + ",state=" + filepath.Join(dir, "sim"))
	require.NoError(b, err)
	sim, err := nvmlsim.Open(spec)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, sim.Close()) })
	x := &bench{dir: dir}
	adapter := nvml.New(sim.Interface(), nvml.WithHostRoot(sim.HostRoot()), nvml.WithObserver(func(op, _ string, took time.Duration, _ error) {
		x.driver.Add(int64(took))
		if op == "create GPU instance" {
			x.created.Add(1)
		}
	}))
	require.NoError(b, adapter.Open(b.Context()))
	b.Cleanup(func() { require.NoError(b, adapter.Close()) })
	x.records, err = journal.Open(filepath.Join(dir, "run"))
	require.NoError(b, err)
	specs, err := cdispec.New(cdispec.Options{
		Lib: sim.Interface(), CDIRoot: filepath.Join(dir, "cdi"), HostRoot: sim.HostRoot(), DriverRoot: sim.DriverRoot(), HostDriverRoot: sim.DriverRoot(),
		Logger: klog.Background(),
	})
	require.NoError(b, err)
	node, err := adapter.Node(b.Context())
	require.NoError(b, err)
	x.gpus = node.GPUs
	policy := (*configv1alpha1.NodeConfiguration)(nil).For("")
	policy.IdleInstances.MaxPerGPU = &idle
	x.withLocks = func(j claims.Journal) *claims.Engine {
		return claims.New(adapter, j, specs, func(string) configv1alpha1.Policy { return policy }, func(gpu.Device) bool { return false })
	}
	x.engine = x.withLocks(x.records)
	return x
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// device is the n-th 1g.10gb of the node, GPU by GPU.
func (x *bench) device(n int) gpu.Device {
	p, _ := x.gpus[0].Profile("1g.10gb")
	return gpu.Device{Type: gpu.TypeMIG, GPU: x.gpus[n/7%8].UUID, Profile: p.Name, Placement: p.Placements[n%7]}
}

// claim asks for the n-th device.
func (x *bench) claim(uid string, n int) claims.Claim {
	return claims.Claim{UID: uid, Namespace: "ns", Name: uid, Devices: []journal.ClaimDevice{{Request: "gpu", Name: "d", Device: x.device(n)}}}
}

// report adds percentiles, which say more than an average of what users wait for.
func report(b *testing.B, what string, took []time.Duration) {
	slices.Sort(took)
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(took[(len(took)-1)*p/100])/float64(time.Millisecond), fmt.Sprintf("%s-p%d-ms", what, p))
	}
}

// BenchmarkPrepare prepares claims of one 1g.10gb each: instance, records and CDI spec. "engine" is without the time that
// the simulated driver takes, which is the simulator's own: it keeps boards in a file, for all processes of the node.
func BenchmarkPrepare(b *testing.B) {
	x := newBench(b, "", 0)
	var took, own []time.Duration
	for n := 0; b.Loop(); n++ {
		uid := fmt.Sprintf("claim-%d", n)
		driver, began := x.driver.Load(), time.Now()
		_, err := x.engine.Prepare(b.Context(), x.claim(uid, n))
		took = append(took, time.Since(began))
		own = append(own, took[n]-time.Duration(x.driver.Load()-driver))
		require.NoError(b, err)
		b.StopTimer()
		require.NoError(b, x.engine.Unprepare(b.Context(), uid))
		b.StartTimer()
	}
	report(b, "all", took)
	report(b, "engine", own)
}

// BenchmarkPrepareGRPC is BenchmarkPrepare as the kubelet sees it: through the
// plugin's socket, with the claim read from a (fake) API server.
func BenchmarkPrepareGRPC(b *testing.B) {
	x := newBench(b, "", 0)
	dir, err := os.MkdirTemp("", "kerf") // A path short enough for a socket.
	require.NoError(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	client := fake.NewClientset()
	catalogued := catalogue(gpu.Catalogue(x.gpus))
	ctx, cancel := context.WithCancelCause(b.Context())
	defer cancel(nil)
	helper, err := kubeletplugin.Start(ctx, plugin.NewDriver(x.engine, pool.Node{Name: "node", Driver: pool.DefaultDriver}, catalogued, unobserved, unwritten, &record.FakeRecorder{}, cancel),
		kubeletplugin.KubeClient(client), kubeletplugin.NodeName("node"), kubeletplugin.DriverName(pool.DefaultDriver),
		kubeletplugin.RegistrarDirectoryPath(dir), kubeletplugin.PluginDataDirectoryPath(dir), kubeletplugin.Serialize(false))
	require.NoError(b, err)
	defer helper.Stop()
	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "dra.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(b, err)
	defer func() { _ = conn.Close() }()
	kubelet := drapb.NewDRAPluginClient(conn)

	names := map[gpu.Device]string{}
	for name, d := range catalogued {
		names[d] = name
	}
	var took []time.Duration
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{UID: types.UID(fmt.Sprintf("uid-%d", n)), Namespace: "ns", Name: fmt.Sprintf("claim-%d", n)}}
		c.Status.Allocation = &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{
			{Request: "gpu", Driver: pool.DefaultDriver, Pool: "node", Device: names[x.device(n)]},
		}}}
		_, err := client.ResourceV1().ResourceClaims("ns").Create(ctx, c, metav1.CreateOptions{})
		require.NoError(b, err)
		asked := []*drapb.Claim{{Uid: string(c.UID), Namespace: c.Namespace, Name: c.Name}}
		b.StartTimer()
		began := time.Now()
		prepared, err := kubelet.NodePrepareResources(ctx, &drapb.NodePrepareResourcesRequest{Claims: asked})
		took = append(took, time.Since(began))
		b.StopTimer()
		require.NoError(b, err)
		require.Empty(b, prepared.Claims[string(c.UID)].Error)
		_, err = kubelet.NodeUnprepareResources(ctx, &drapb.NodeUnprepareResourcesRequest{Claims: asked})
		require.NoError(b, err)
		require.NoError(b, client.ResourceV1().ResourceClaims("ns").Delete(ctx, c.Name, metav1.DeleteOptions{}))
		b.StartTimer()
	}
	report(b, "all", took)
}
