package plugin_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	metadatav1beta1 "k8s.io/dynamic-resource-allocation/api/metadata/v1beta1"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"

	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

// instanceEngine prepares a MIG instance for every device.
type instanceEngine struct{ fakeEngine }

func (e *instanceEngine) Prepare(ctx context.Context, c claims.Claim) ([]claims.Prepared, error) {
	all, err := e.fakeEngine.Prepare(ctx, c)
	for i := range all {
		all[i].Instance = &gpu.Instance{Compute: []gpu.ComputeInstance{{UUID: "MIG-5"}}}
	}
	return all, err
}

// A container finds in its file what is published about its device, and the UUID of its instance. The files go with the
// claim's record, whoever releases it.
func TestDeviceMetadata(t *testing.T) {
	w := newWorld(t)
	p := w.start()
	dir, err := os.MkdirTemp("", "kerf") // A path short enough for a socket.
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cdi := t.TempDir()
	c := claim(nil)
	c.Status.Allocation.Devices.Results[0].Device = "gpu-11111111-mig-1g10gb-6"
	client := fake.NewClientset(c)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	helper, err := kubeletplugin.Start(ctx, plugin.NewDriver(&instanceEngine{}, pool.Node{Name: "node", Driver: pool.DefaultDriver}, p, unobserved, unwritten, &record.FakeRecorder{}, cancel),
		kubeletplugin.KubeClient(client), kubeletplugin.NodeName("node"), kubeletplugin.DriverName(pool.DefaultDriver),
		kubeletplugin.RegistrarDirectoryPath(dir), kubeletplugin.PluginDataDirectoryPath(dir), kubeletplugin.CDIDirectory(cdi),
		kubeletplugin.EnableDeviceMetadata(true, []schema.GroupVersion{metadatav1beta1.SchemeGroupVersion}))
	require.NoError(t, err)
	defer helper.Stop()
	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "dra.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	answer, err := drapb.NewDRAPluginClient(conn).NodePrepareResources(ctx, &drapb.NodePrepareResourcesRequest{Claims: []*drapb.Claim{{Uid: "uid", Namespace: "ns", Name: "name"}}})
	require.NoError(t, err)
	require.Empty(t, answer.Claims["uid"].Error)
	require.Len(t, answer.Claims["uid"].Devices[0].CdiDeviceIds, 2, "the device, and the file about it")

	files := func() []string {
		specs, err := filepath.Glob(filepath.Join(cdi, "*"))
		require.NoError(t, err)
		texts, err := filepath.Glob(filepath.Join(dir, "dra-device-metadata", "*", "*", "*"))
		require.NoError(t, err)
		return append(specs, texts...)
	}
	require.Len(t, files(), 2)
	text, err := os.ReadFile(files()[1])
	require.NoError(t, err)
	require.Contains(t, string(text), "MIG-5")
	require.Contains(t, string(text), "1g.10gb")

	w.claims = []*journal.Claim{{UID: "uid", Namespace: "ns", Name: "name"}}
	sweep := plugin.Metadata{Driver: pool.DefaultDriver, CDIRoot: cdi, PluginDir: dir, Records: w}
	require.NoError(t, sweep.Sweep())
	require.Len(t, files(), 2, "the claim has a record")
	w.claims = nil
	require.NoError(t, sweep.Sweep())
	require.Empty(t, files())
}
