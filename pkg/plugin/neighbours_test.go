package plugin_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

// registrar registers a DRA driver with the kubelet.
type registrar struct {
	registerapi.UnimplementedRegistrationServer
	driver string
}

func (r registrar) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.DRAPlugin, Name: r.driver}, nil
}

// neighbourhood is a node on which this process is a program of that name, which registers a driver.
func neighbourhood(t *testing.T, programName, driver string, node *corev1.Node) (*plugin.Neighbours, *record.FakeRecorder) {
	t.Helper()
	dir, err := os.MkdirTemp("", "kerf") // A path short enough for a socket.
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	proc := filepath.Join(dir, "proc", strconv.Itoa(os.Getpid()))
	require.NoError(t, os.MkdirAll(proc, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(proc, "comm"), []byte(programName+"\n"), 0o600))
	listener, err := net.Listen("unix", filepath.Join(dir, driver+"-reg.sock"))
	require.NoError(t, err)
	server := grpc.NewServer()
	registerapi.RegisterRegistrationServer(server, registrar{driver: driver})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	events := record.NewFakeRecorder(10)
	return &plugin.Neighbours{Client: fake.NewClientset(node), Events: events, Node: "node", Driver: pool.DefaultDriver, Program: "kerf", RegistryDir: dir, NodeRoot: dir}, events
}

func node(change func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", Labels: map[string]string{}}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{"nvidia.com/gpu": resource.MustParse("0")}}}
	if change != nil {
		change(n)
	}
	return n
}

func TestAnotherPluginOfThisDriverIsRefused(t *testing.T) {
	n, events := neighbourhood(t, "gpu-kubelet-plu", pool.DefaultDriver, node(nil))
	require.ErrorContains(t, n.Refuse(t.Context()), "gpu-kubelet-plu")
	require.Contains(t, <-events.Events, "DriverTaken")
	n.Warn(t.Context()) // One that comes later.
	require.Contains(t, <-events.Events, "DriverTaken")

	n, _ = neighbourhood(t, "kerf", pool.DefaultDriver, node(nil))
	require.NoError(t, n.Refuse(t.Context()), "an update of kerf")
	n, _ = neighbourhood(t, "other", "nic.example.com", node(nil))
	require.NoError(t, n.Refuse(t.Context()), "another driver")
}

func TestNeighboursAreToldOfOnce(t *testing.T) {
	n, events := neighbourhood(t, "kerf", pool.DefaultDriver, node(func(n *corev1.Node) {
		n.Status.Allocatable["nvidia.com/mig-1g.10gb"] = resource.MustParse("7")
		n.Labels[plugin.MIGConfigLabel] = "all-1g.10gb"
	}))
	for range 2 {
		n.Warn(t.Context())
	}
	require.Len(t, events.Events, 2)
	require.Contains(t, <-events.Events, "nvidia.com/mig-1g.10gb: 7")
	require.Contains(t, <-events.Events, "nvidia.com/mig.config=all-1g.10gb")

	n, events = neighbourhood(t, "kerf", pool.DefaultDriver, node(nil))
	n.Warn(t.Context())
	require.Empty(t, events.Events)
}
