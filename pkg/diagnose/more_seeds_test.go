package diagnose_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/diagnose"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/nvml"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// changed is hardware that tells something else than the boards do.
type changed struct {
	*nvml.Adapter
	node func(*gpu.Node) error
}

func (c changed) Node(ctx context.Context) (gpu.Node, error) {
	node, err := c.Adapter.Node(ctx)
	return node, errors.Join(err, c.node(&node))
}

func (w *world) tell(node func(*gpu.Node) error) {
	w.wrap = func(a *nvml.Adapter) diagnose.Hardware { return changed{a, node} }
}

func (w *world) tellTruth() {
	w.wrap = func(a *nvml.Adapter) diagnose.Hardware { return a }
}

func (w *world) changeNode(change func(*corev1.Node)) {
	node, err := w.client.CoreV1().Nodes().Get(w.Context(), nodeName, metav1.GetOptions{})
	w.must(err)
	change(node)
	_, err = w.client.CoreV1().Nodes().Update(w.Context(), node, metav1.UpdateOptions{})
	w.must(err)
}

func (w *world) server(v string) {
	w.client.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: v}
}

func (w *world) kubelet(v string) {
	w.changeNode(func(n *corev1.Node) { n.Status.NodeInfo.KubeletVersion = v })
}

func (w *world) deleteClaim(name string) {
	w.must(w.client.ResourceV1().ResourceClaims("research").Delete(w.Context(), name, metav1.DeleteOptions{}))
}

// end is what happens when a pod and its claim are deleted.
func (w *world) end(name string) {
	w.deleteClaim(name)
	w.must(w.engine.Unprepare(w.Context(), uid(name)))
}

func (w *world) replaceIn(path, old, with string) {
	text, err := os.ReadFile(path)
	w.must(err)
	require.Contains(w.T, string(text), old)
	w.must(os.WriteFile(path, []byte(strings.Replace(string(text), old, with, 1)), 0o644))
}

// capability is the path of the device node of an instance's capability.
func (w *world) capability(i gpu.Instance) string {
	boards, err := w.sim.Boards()
	w.must(err)
	return filepath.Join(w.sim.HostRoot(), "dev/nvidia-caps", fmt.Sprintf("nvidia-cap%d", gpu.CapabilityMinor(boards[0].Minor, i.ID, gpu.Whole)))
}

func (w *world) cleanup() { w.must(w.engine.Cleanup(w.Context())) }

const toolkit = "node/etc/nvidia-container-runtime/config.toml"

func moreOfTheHardware() []seed {
	return []seed{
		{
			name:  "versions of driver and library differ",
			spoil: func(w *world) { w.tell(func(n *gpu.Node) error { n.NVMLVersion = "13.570.1"; return nil }) },
			want:  []fault{{"driver", diagnose.Fail, "the kernel driver is 580.95.05 and the NVML library 13.570.1", "reboot"}},
			cure:  (*world).tellTruth,
		},
		{
			name: "no nvidia-uvm", spoil: func(w *world) {
				w.replaceIn(filepath.Join(w.sim.HostRoot(), "proc/devices"), "nvidia-uvm", "other-uvm")
			},
			want: []fault{{"driver", diagnose.Fail, "nvidia-uvm is not in", "modprobe"}},
			cure: func(w *world) {
				w.replaceIn(filepath.Join(w.sim.HostRoot(), "proc/devices"), "other-uvm", "nvidia-uvm")
			},
		},
		{
			name: "a silent board",
			spoil: func(w *world) {
				w.tell(func(n *gpu.Node) error {
					return gpu.ReadErrors{{Index: 2, UUID: w.boards[2].UUID, Err: fmt.Errorf("read GPU: %w", gpu.ErrDeadline)}}
				})
			},
			want: []fault{{"gpus", diagnose.Fail, "the driver did not answer in time", "end what hangs"}},
			cure: (*world).tellTruth,
		},
		{
			name: "an Xid",
			spoil: func(w *world) {
				w.write(fmt.Sprintf(`{"version":1,"problems":[{"device":{"gpu":%q},"reason":"Xid79","effect":"NoExecute","message":"fallen off the bus","since":"2026-11-24T11:00:00Z"}]}`, w.boards[1].UUID), "state/health.json")
			},
			want: []fault{{"health", diagnose.Fail, "Xid79 since 2026-11-24 11:00:00Z (NoExecute): fallen off the bus", "docs/health.md"}},
			// What a monitor saves when it is over.
			cure: func(w *world) { w.write(`{"version":1,"problems":[]}`, "state/health.json") },
		},
		{
			name:  "the conditions cannot be read",
			spoil: func(w *world) { w.write("{", "state/health.json") },
			want:  []fault{{"health", diagnose.Warn, "is not known", "the plugin writes it again"}},
			cure:  func(w *world) { w.write(`{"version":1,"problems":[]}`, "state/health.json") },
		},
		{
			name: "somebody holds a board that claims may want in another mode",
			spoil: func(w *world) {
				w.must(w.sim.AddClient("2", nvmlsim.Client{PID: 77, Command: "nv-hostengine"}))
			},
			want: []fault{{"mig-mode", diagnose.Warn, "no claim can have it changed: the GPU is held by pid 77 (nv-hostengine)", "end it"}},
			cure: func(w *world) { w.must(w.sim.RemoveClient("2", 77)) },
		},
		{
			name: "a mode that waits for a reset", boards: "1xA100-SXM4-80GB", bare: true,
			spoil: func(w *world) { require.Error(w.T, w.adapter.SetMIGMode(w.Context(), w.boards[0].UUID, true)) },
			want:  []fault{{"mig-mode", diagnose.Warn, "a change to on waits for a reset", "nvidia-smi --gpu-reset"}},
			cure:  func(w *world) { w.must(w.sim.Reset("0")) },
		},
		{
			name: "a mode that is not kept", boards: "1xH100-PCIe-80GB", bare: true,
			spoil: func(w *world) {
				w.sources.Config = &configv1alpha1.NodeConfiguration{Policies: []configv1alpha1.Policy{{MIG: configv1alpha1.MIG{Mode: configv1alpha1.MIGKeepOn}}}}
			},
			want: []fault{{"mig-mode", diagnose.Warn, "the configuration keeps MIG on, and it is off", "restart the plugin"}},
			cure: func(w *world) { w.must(w.engine.TurnMIGOn(w.Context(), w.boards[0].UUID)) },
		},
		{
			name: "a capability's node is missing",
			spoil: func(w *world) {
				w.must(os.Remove(w.capability(gpu.Instance{ID: 1})))
			},
			want: []fault{{"capabilities", diagnose.Warn, "is missing", "nvidia-modprobe -f /proc/driver/nvidia/capabilities/gpu4/mig/gi1/access"}},
			// The simulated driver's own way to make it.
			cure: func(w *world) {
				again, err := nvmlsim.OpenExisting(w.path("sim"))
				w.must(err)
				w.must(again.Close())
			},
		},
		{
			name: "the driver contradicts its table of minors",
			spoil: func(w *world) {
				w.replaceIn(filepath.Join(w.sim.HostRoot(), "proc/driver/nvidia/capabilities/gpu4/mig/gi1/access"), "DeviceFileMinor: ", "DeviceFileMinor: 9")
			},
			want: []fault{{"capabilities", diagnose.Fail, "in mig-minors and 9", "reload the driver"}},
			cure: func(w *world) {
				w.replaceIn(filepath.Join(w.sim.HostRoot(), "proc/driver/nvidia/capabilities/gpu4/mig/gi1/access"), "DeviceFileMinor: 9", "DeviceFileMinor: ")
			},
		},
	}
}

func moreOfTheRecords() []seed {
	return []seed{
		{
			name: "an idle instance without its compute instance",
			spoil: func(w *world) {
				g, err := w.adapter.GPU(w.Context(), w.boards[0].UUID)
				w.must(err)
				idle, ok := g.InstanceAt("1g.10gb", *place(3, 1))
				require.True(w.T, ok)
				_, err = w.adapter.DestroyComputeInstance(w.Context(), idle)
				w.must(err)
			},
			want: []fault{{"instances", diagnose.Fail, "has no compute instance: a creation or a destruction of kerf's was cut off", "kerf cleanup"}},
			cure: (*world).cleanup,
		},
		{
			name:  "an idle instance that somebody destroyed",
			spoil: func(w *world) { w.must(w.sim.DestroyInstance("0", 8)) },
			want:  []fault{{"instances", diagnose.Warn, "it has a record and is not there", "kerf cleanup"}},
			cure:  (*world).cleanup,
		},
		{
			name:  "an instance in use that somebody destroyed",
			spoil: func(w *world) { w.must(w.sim.DestroyInstance("0", 1)) },
			want:  []fault{{"claims", diagnose.Fail, "the instance of gpu-f7b3d578-mig-3g40gb-4 is not there", "delete its pod and the claim"}},
			cure:  func(w *world) { w.end("train") },
		},
		{
			name: "a claim that was lost",
			spoil: func(w *world) {
				w.must(w.sim.DestroyInstance("0", 1))
				require.Error(w.T, w.engine.Recover(w.Context()))
			},
			want: []fault{{"claims", diagnose.Fail, "an instance of it vanished while it was in use", "delete its pod and the claim"}},
			cure: func(w *world) { w.end("train") },
		},
		{
			name: "a release that somebody blocks",
			spoil: func(w *world) {
				gi, ci := 1, 0
				w.must(w.sim.AddClient("0", nvmlsim.Client{PID: 88, Command: "profiler", GI: &gi, CI: &ci, Process: true}))
				w.deleteClaim("train")
				require.Error(w.T, w.engine.Unprepare(w.Context(), uid("train")))
			},
			want: []fault{
				{"claims", diagnose.Warn, "it has ended, and somebody keeps its devices", "end who holds it"},
				{"api-claims", diagnose.Warn, "it has a record, and the API has no such claim", "kerf cleanup"},
			},
			cure: func(w *world) {
				w.must(w.sim.RemoveClient("0", 88))
				w.must(w.engine.Recover(w.Context()))
			},
		},
		{
			name: "a claim that a killed plugin had begun",
			spoil: func(w *world) {
				w.allocate("research", "begun", nil, w.mig(2, "1g.10gb", 0, 1))
				w.must(w.records.PutClaim(&journal.Claim{UID: uid("begun"), Namespace: "research", Name: "begun", State: journal.ClaimIntent}))
				old := w.sources.Now().Add(-10 * time.Minute)
				w.must(os.Chtimes(w.recordPath(uid("begun")), old, old))
			},
			want: []fault{{"claims", diagnose.Warn, `it has been in the state "intent" for 10m0s`, "kerf cleanup"}},
			cure: (*world).cleanup,
		},
		{
			name: "two claims of one device",
			spoil: func(w *world) {
				w.allocate("research", "twin", nil, w.mig(0, "1g.10gb", 2, 1))
				record, err := w.records.Claim(uid("notebook"))
				w.must(err)
				record.UID, record.Name = uid("twin"), "twin"
				w.must(w.records.PutClaim(record))
				spec, err := os.ReadFile(w.specPath(uid("notebook")))
				w.must(err)
				w.write(strings.ReplaceAll(string(spec), uid("notebook"), uid("twin")), "cdi", strings.ReplaceAll(filepath.Base(w.specPath(uid("notebook"))), uid("notebook"), uid("twin")))
			},
			want: []fault{{"claims", diagnose.Fail, "cannot be in use at once", "delete the younger pod"}},
			cure: func(w *world) { w.end("twin") },
		},
		{
			name: "a CDI spec of an earlier mode",
			spoil: func(w *world) {
				w.replaceIn(w.specPath(uid("train")), `"path":"/dev/nvidia4"`, `"path":"/dev/nvidia0"`)
			},
			want: []fault{{"cdi-specs", diagnose.Fail, "gpu-f7b3d578-mig-3g40gb-4 lacks the node /dev/nvidia4", "rm /"}},
			cure: func(w *world) {
				w.must(os.Remove(w.specPath(uid("train"))))
				w.cleanup()
			},
		},
		{
			name: "a CDI spec that does not parse", spoil: func(w *world) { w.must(os.WriteFile(w.specPath(uid("train")), []byte("{"), 0o644)) },
			want: []fault{{"cdi-specs", diagnose.Fail, "it does not parse", "rm /"}},
			cure: func(w *world) {
				w.must(os.Remove(w.specPath(uid("train"))))
				w.cleanup()
			},
		},
		{
			name: "a CDI spec that nobody has",
			spoil: func(w *world) {
				g, err := w.adapter.GPU(w.Context(), w.boards[2].UUID)
				w.must(err)
				d := gpu.Device{Type: gpu.TypeGPU, GPU: g.UUID}
				_, err = w.specs.Write(w.Context(), uid("nobody"), "", []cdispec.Device{{Name: w.names().Device(d), Request: "gpu", GPU: g, Device: d}})
				w.must(err)
			},
			want: []fault{{"cdi-specs", diagnose.Warn, "no claim with a record has it", "kerf cleanup"}},
			cure: (*world).cleanup,
		},
		{
			name:  "a claim that the API no longer has",
			spoil: func(w *world) { w.deleteClaim("notebook") },
			want:  []fault{{"api-claims", diagnose.Warn, "it has a record, and the API has no such claim", "the plugin releases it"}},
			// What the plugin does then.
			cure: func(w *world) { w.must(w.engine.Unprepare(w.Context(), uid("notebook"))) },
		},
		{
			name: "a claim that is allocated another device",
			spoil: func(w *world) {
				w.deleteClaim("notebook")
				w.allocate("research", "notebook", []string{"notebook-0"}, w.mig(2, "1g.10gb", 0, 1))
			},
			want: []fault{{"api-claims", diagnose.Fail, "it is recorded with other devices than it is allocated: gpu-846e10bd-mig-1g10gb-0", "delete its pod"}},
			cure: func(w *world) { w.end("notebook") },
		},
	}
}

// runtime is the version of the container runtime that the kubelet has reported.
func (w *world) runtime(v string) {
	w.changeNode(func(n *corev1.Node) { n.Status.NodeInfo.ContainerRuntimeVersion = v })
}

// Beside the ten, every other fault that a check knows.
func TestMoreSeededNodes(t *testing.T) {
	for of, seeds := range map[string][]seed{"hardware": moreOfTheHardware(), "records": moreOfTheRecords(), "node": moreOfTheNode(), "pool": moreOfThePool()} {
		for _, s := range seeds {
			t.Run(of+"/"+s.name, func(t *testing.T) { s.run(t, false) })
		}
	}
}
