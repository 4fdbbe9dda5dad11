package diagnose_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/klog/v2"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/diagnose"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/nvml"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
	"github.com/kerf-project/kerf/pkg/pool"
)

const (
	// usual are the boards of most nodes here.
	usual    = "3xH100-SXM5-80GB,1xL40S"
	nodeName = "node-a"
	driver   = pool.DefaultDriver
)

// world is a node with everything that a diagnosis looks at.
type world struct {
	*testing.T
	dir     string
	sim     *nvmlsim.Node
	adapter *nvml.Adapter
	records *journal.Journal
	specs   *cdispec.Writer
	engine  *claims.Engine
	client  *fake.Clientset
	sources diagnose.Sources
	boards  []nvmlsim.Board
	// wrap changes what the boards tell.
	wrap func(*nvml.Adapter) diagnose.Hardware
	// stopPlugin ends the plugin that serves the kubelet.
	stopPlugin func()
}

// hardware sets time slices without the driver's nvidia-smi.
type hardware struct {
	*nvml.Adapter
	sim *nvmlsim.Node
}

func (h hardware) SetTimeSlice(_ context.Context, uuid string, slice gpu.TimeSlice) error {
	return h.sim.SetTimeSlice(uuid, slice)
}

// newWorld makes a node on which a plugin of kerf's serves, and nothing is prepared.
func newWorld(t *testing.T, boards string) *world {
	// Sockets have short paths.
	dir, err := os.MkdirTemp("", "kd")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	w := &world{T: t, dir: dir, wrap: func(a *nvml.Adapter) diagnose.Hardware { return a }}
	spec, err := nvmlsim.Parse(boards + ",state=" + w.path("sim"))
	w.must(err)
	w.sim, err = nvmlsim.Open(spec, nvmlsim.WithLogger(klog.Background().V(9)))
	w.must(err)
	w.adapter = nvml.New(w.sim.Interface(), nvml.WithHostRoot(w.sim.HostRoot()))
	w.must(w.adapter.Open(t.Context()))
	t.Cleanup(func() { require.NoError(t, w.sim.Close()) })
	w.boards, err = w.sim.Boards()
	w.must(err)
	w.records, err = journal.Open(w.path("run"))
	w.must(err)
	w.must(os.Mkdir(w.path("cdi"), 0o755))
	w.specs, err = cdispec.New(cdispec.Options{Lib: w.sim.Interface(), CDIRoot: w.path("cdi"), HostRoot: w.sim.HostRoot(), DriverRoot: w.sim.DriverRoot()})
	w.must(err)
	config, err := configv1alpha1.Parse([]byte("apiVersion: config.kerf.dev/v1alpha1\nkind: NodeConfiguration\npolicies: [{products: [NVIDIA L40S], timeSlicing: {replicas: 4}}]"))
	w.must(err)
	w.engine = claims.New(hardware{w.adapter, w.sim}, w.records, w.specs, config.For, func(gpu.Device) bool { return false })
	w.serveCluster(config)
	w.serveNode()
	w.sources = diagnose.Sources{
		Simulated: true, Config: config, HostRoot: w.sim.HostRoot(), NodeRoot: w.path("node"), RunDir: w.path("run"), StateDir: w.path("state"), CDIRoot: w.path("cdi"),
		RegistryDir: w.path("registry"), DevicePluginsDir: w.path("device-plugins"), NodeName: nodeName, Driver: driver, Client: w.client, Version: "v0.0.0",
		Now: func() time.Time { return time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC) },
	}
	return w
}

func (w *world) must(err error) {
	w.Helper()
	require.NoError(w.T, err)
}

func (w *world) path(parts ...string) string {
	return filepath.Join(append([]string{w.dir}, parts...)...)
}

func (w *world) write(text string, parts ...string) {
	w.Helper()
	path := w.path(parts...)
	w.must(os.MkdirAll(filepath.Dir(path), 0o755))
	w.must(os.WriteFile(path, []byte(text), 0o644))
}

// serveNode makes the node's own files, the runtime's process and the plugin's sockets.
func (w *world) serveNode() {
	node, err := w.adapter.Node(w.Context())
	w.must(err)
	for i := range node.GPUs {
		node.GPUs[i].Instances = nil
	}
	inventory, err := json.Marshal(map[string]any{"version": 1, "gpus": node.GPUs})
	w.must(err)
	w.write(string(inventory), "state", "inventory.json")
	w.process(200, "containerd", "/usr/bin/containerd")
	w.containerd("enable_cdi = true")
	w.process(os.Getpid(), "kerf", "/usr/bin/kerf", "plugin")
	w.must(os.Mkdir(w.path("device-plugins"), 0o755))
	w.must(os.MkdirAll(w.path("registry"), 0o755))
	w.must(os.MkdirAll(w.path("plugins"), 0o755))
	w.listen("plugins", "dra.sock")
	w.servePlugin()
}

func (w *world) servePlugin() {
	w.stopPlugin = serveRegistration(w.T, w.path("registry", driver+"-reg.sock"), w.path("plugins", "dra.sock"))
	w.Cleanup(w.stopPlugin)
}

func (w *world) containerd(settings string) {
	w.write(fmt.Sprintf("version = 3\n[plugins.'io.containerd.cri.v1.runtime']\n%s\ncdi_spec_dirs = ['/etc/cdi', '%s']\n", settings, w.path("cdi")), "node/etc/containerd/config.toml")
}

// listen makes a socket at which somebody listens.
func (w *world) listen(parts ...string) string {
	listener, err := net.Listen("unix", w.path(parts...))
	w.must(err)
	w.Cleanup(func() { _ = listener.Close() })
	return w.path(parts...)
}

func (w *world) process(pid int, comm string, args ...string) {
	dir := fmt.Sprintf("node/proc/%d", pid)
	w.write(comm+"\n", dir, "comm")
	w.write(strings.Join(args, "\x00")+"\x00", dir, "cmdline")
}

// serveRegistration answers the kubelet as a DRA plugin does, until the returned function is called.
func serveRegistration(t require.TestingT, socket, endpoint string) func() {
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := grpc.NewServer()
	registerPlugin(server, endpoint)
	go func() { _ = server.Serve(listener) }()
	return server.Stop
}

// serveCluster makes the API server, with the node's whole pool.
func (w *world) serveCluster(config *configv1alpha1.NodeConfiguration) {
	found, err := w.adapter.Node(w.Context())
	w.must(err)
	offers := map[string]pool.Offer{}
	for _, g := range found.GPUs {
		offers[g.UUID] = pool.Desired(g, config.For(g.ProductName), nil)
	}
	resources, err := pool.Build(pool.Node{Name: nodeName, Driver: driver, Node: found}, offers, nil)
	w.must(err)
	w.client = fake.NewClientset(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName},
		Status:     corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1.37.2", ContainerRuntimeVersion: "containerd://2.1.4"}},
	})
	w.client.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: "v1.37.2"}
	all := resources.Pools[nodeName].Slices
	name := nodeName
	for i, s := range all {
		_, err := w.client.ResourceV1().ResourceSlices().Create(w.Context(), &resourceapi.ResourceSlice{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", nodeName, i)},
			Spec: resourceapi.ResourceSliceSpec{
				Driver: driver, NodeName: &name, SharedCounters: s.SharedCounters, Devices: s.Devices,
				Pool: resourceapi.ResourcePool{Name: nodeName, Generation: 1, ResourceSliceCount: int64(len(all))},
			},
		}, metav1.CreateOptions{})
		w.must(err)
	}
}

// names are those of the node's devices.
func (w *world) names() gpu.Names {
	var uuids []string
	for _, b := range w.boards {
		uuids = append(uuids, b.UUID)
	}
	return gpu.NewNames(uuids)
}

// mig is a device on a board.
func (w *world) mig(board int, profile string, start, size int) gpu.Device {
	return gpu.Device{Type: gpu.TypeMIG, GPU: w.boards[board].UUID, Profile: profile, Placement: gpu.Placement{Start: start, Size: size}}
}

func uid(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(name)))[:12] }

// allocate makes a claim of the API that is allocated devices, with the pods that may use it.
func (w *world) allocate(namespace, name string, pods []string, devices ...gpu.Device) {
	claim := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid(name))}}
	claim.Status.Allocation = &resourceapi.AllocationResult{}
	for _, d := range devices {
		claim.Status.Allocation.Devices.Results = append(claim.Status.Allocation.Devices.Results,
			resourceapi.DeviceRequestAllocationResult{Request: "gpu", Driver: driver, Pool: nodeName, Device: w.names().Device(d)})
	}
	for _, pod := range pods {
		claim.Status.ReservedFor = append(claim.Status.ReservedFor, resourceapi.ResourceClaimConsumerReference{Resource: "pods", Name: pod, UID: types.UID(uid(pod))})
	}
	_, err := w.client.ResourceV1().ResourceClaims(namespace).Create(w.Context(), claim, metav1.CreateOptions{})
	w.must(err)
}

// prepare is what the kubelet asks for when the pods of an allocated claim start.
func (w *world) prepare(namespace, name string, devices ...gpu.Device) {
	claim := claims.Claim{UID: uid(name), Namespace: namespace, Name: name}
	for _, d := range devices {
		claim.Devices = append(claim.Devices, journal.ClaimDevice{Request: "gpu", Pool: nodeName, Name: w.names().Device(d), Device: d})
	}
	_, err := w.engine.Prepare(w.Context(), claim)
	w.must(err)
}

func (w *world) run(namespace, name string, devices ...gpu.Device) {
	w.allocate(namespace, name, []string{name + "-0"}, devices...)
	w.prepare(namespace, name, devices...)
}

// inhabit puts something of every kind on the node.
func (w *world) inhabit() *world {
	w.run("research", "notebook", w.mig(0, "1g.10gb", 2, 1))
	w.run("research", "train", w.mig(0, "3g.40gb", 4, 4))
	w.prepare("research", "gone", w.mig(0, "1g.10gb", 3, 1))
	w.must(w.engine.Unprepare(w.Context(), uid("gone")))
	w.allocate("research", "next", nil, w.mig(0, "2g.20gb", 0, 2))
	w.run("serving", "large", gpu.Device{Type: gpu.TypeGPU, GPU: w.boards[1].UUID})
	w.run("serving", "chat", gpu.Device{Type: gpu.TypeTimeSlice, GPU: w.boards[3].UUID})
	w.run("serving", "embed", gpu.Device{Type: gpu.TypeTimeSlice, GPU: w.boards[3].UUID, Replica: 1})
	return w
}

// diagnose looks at the node, and makes sure that looking has changed nothing.
func (w *world) diagnose() *diagnose.Report {
	w.Helper()
	before, asked := w.hash(), len(w.client.Actions())
	// As a process of its own does, it knows nothing of what was read before.
	w.sources.Hardware = w.wrap(nvml.New(w.sim.Interface(), nvml.WithHostRoot(w.sim.HostRoot())))
	report := diagnose.Run(w.Context(), w.sources)
	require.Equal(w.T, before, w.hash(), "looking has changed files")
	for _, action := range w.client.Actions()[asked:] {
		require.Contains(w.T, []string{"get", "list"}, action.GetVerb(), "looking has changed the API's objects")
	}
	return report
}

// hash is all of the node: every path with what it is, when it was changed, and what is in it.
func (w *world) hash() map[string]string {
	all := map[string]string{}
	w.must(filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := fmt.Sprint(info.Mode(), info.ModTime().UnixNano())
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %x", sha256.Sum256(data))
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " " + target
		}
		all[path] = text
		return nil
	}))
	return all
}
