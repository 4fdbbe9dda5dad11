package diagnose_test

import (
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kerf-project/kerf/pkg/diagnose"
)

func moreOfTheNode() []seed {
	stop := func() {}
	return []seed{
		{
			name:  "no plugin",
			spoil: func(w *world) { w.stopPlugin() },
			want:  []fault{{"kubelet", diagnose.Fail, "no plugin of driver gpu.nvidia.com answers", "start the plugin"}},
			cure:  (*world).servePlugin,
		},
		{
			name: "the socket of a plugin that was killed",
			spoil: func(w *world) {
				var pid int
				pid, stop = start(w.T, "register", w.path("registry", driver+"-old-reg.sock"), w.path("plugins", "dra.sock"))
				w.process(pid, "kerf")
				stop()
			},
			want: []fault{{"kubelet", diagnose.Warn, "nobody answers at this registration socket", "delete it"}},
			cure: func(w *world) { w.must(os.Remove(w.path("registry", driver+"-old-reg.sock"))) },
		},
		{
			name: "a plugin whose own socket is gone",
			spoil: func(w *world) {
				w.must(os.Rename(w.path("plugins", "dra.sock"), w.path("plugins", "gone.sock")))
			},
			want: []fault{{"kubelet", diagnose.Fail, "where nobody answers", "restart the plugin"}},
			cure: func(w *world) {
				w.must(os.Rename(w.path("plugins", "gone.sock"), w.path("plugins", "dra.sock")))
			},
		},
		{
			name: "the runtime looks elsewhere",
			spoil: func(w *world) {
				w.replaceIn(w.path("node/etc/containerd/config.toml"), w.path("cdi"), "/var/run/cdi")
			},
			want: []fault{{"runtime", diagnose.Fail, "it looks for CDI specs in /etc/cdi, /var/run/cdi, and kerf writes them to", "cdi_spec_dirs"}},
			cure: func(w *world) { w.containerd("enable_cdi = true") },
		},
		{
			name:  "no runtime is to be seen",
			spoil: func(w *world) { w.must(os.Rename(w.path("node"), w.path("elsewhere"))); w.runtime("") },
			want:  []fault{{"runtime", diagnose.Warn, "no containerd and no CRI-O is to be seen", "--node-root"}},
			cure:  func(w *world) { w.must(os.Rename(w.path("elsewhere"), w.path("node"))) },
		},
		{
			name:  "GPUs for whoever sets a variable",
			spoil: func(w *world) { w.write("disable-require = false\n", toolkit) },
			want:  []fault{{"visible-devices", diagnose.Warn, "past all claims", "accept-nvidia-visible-devices-envvar-when-unprivileged = false"}},
			cure: func(w *world) {
				w.write("accept-nvidia-visible-devices-envvar-when-unprivileged = false\n", toolkit)
			},
		},
		{
			name: "GPUs for every pod that sets a variable",
			spoil: func(w *world) {
				w.containerd("containerd.default_runtime_name = 'nvidia'\ncontainerd.runtimes.nvidia.options.BinaryName = '/usr/bin/nvidia-container-runtime'")
				w.write("", toolkit)
			},
			want: []fault{{"visible-devices", diagnose.Fail, "nvidia-container-runtime is the default runtime of containerd", "accept-nvidia-visible-devices-envvar-when-unprivileged = false"}},
			cure: func(w *world) {
				w.write("accept-nvidia-visible-devices-envvar-when-unprivileged = false\n", toolkit)
			},
		},
		{
			name:  "a device plugin's socket",
			spoil: func(w *world) { w.listen("device-plugins", "nvidia-gpu.sock") },
			want:  []fault{{"other-drivers", diagnose.Fail, "NVIDIA's device plugin hands out the same GPUs", "devicePlugin.enabled=false"}},
			cure:  func(w *world) { w.must(os.Remove(w.path("device-plugins", "nvidia-gpu.sock"))) },
		},
		{
			name: "a device plugin's offer",
			spoil: func(w *world) {
				w.changeNode(func(n *corev1.Node) {
					n.Status.Allocatable = corev1.ResourceList{"nvidia.com/gpu": resource.MustParse("4")}
				})
			},
			want: []fault{{"other-drivers", diagnose.Fail, "the node's status offers 4 of it", "uninstall the device plugin"}},
			cure: func(w *world) { w.changeNode(func(n *corev1.Node) { n.Status.Allocatable = nil }) },
		},
		{
			name: "another driver of the same GPUs",
			spoil: func(w *world) {
				w.sources.Driver = "gpu.kerf.dev"
				w.sources.Client, w.sources.NoClient = nil, "not in this test"
			},
			want: []fault{
				{"kubelet", diagnose.Fail, "no plugin of driver gpu.kerf.dev answers", "start the plugin"},
				{"other-drivers", diagnose.Warn, "the driver gpu.nvidia.com hands out the same GPUs as kerf's gpu.kerf.dev", "only one of them"},
			},
			cure: func(w *world) { w.sources.Driver = driver },
		},
		{
			name:  "MIG manager",
			spoil: func(w *world) { w.process(300, "nvidia-mig-mana", "/usr/bin/nvidia-mig-manager") },
			want:  []fault{{"mode-agents", diagnose.Fail, "an agent that changes MIG modes and instances runs beside kerf", "migManager.enabled=false"}},
			cure:  func(w *world) { w.must(os.RemoveAll(w.path("node/proc/300"))) },
		},
		{
			name: "MIG manager's label",
			spoil: func(w *world) {
				w.changeNode(func(n *corev1.Node) { n.Labels = map[string]string{"nvidia.com/mig.config": "all-1g.10gb"} })
			},
			want: []fault{{"mode-agents", diagnose.Warn, "nvidia.com/mig.config=all-1g.10gb", "remove the label"}},
			cure: func(w *world) { w.changeNode(func(n *corev1.Node) { n.Labels = nil }) },
		},
		{
			name: "an old server", spoil: func(w *world) { w.server("v1.35.4"); w.kubelet("v1.35.4") },
			want: []fault{{"versions", diagnose.Fail, "the API server is v1.35.4", "update the control plane"}},
			cure: func(w *world) { w.server("v1.36.0") },
		},
		{
			name: "a server newer than this kerf", spoil: func(w *world) { w.server("v1.39.0") },
			want: []fault{{"versions", diagnose.Warn, "this kerf was tested with 1.37", "newer kerf"}},
			cure: func(w *world) { w.server("v1.38.0") },
		},
		{
			name: "a kubelet newer than the server", spoil: func(w *world) { w.server("v1.36.1") },
			want: []fault{{"versions", diagnose.Warn, "is newer than the API server", "update the control plane first"}},
			cure: func(w *world) { w.kubelet("v1.36.1") },
		},
		{
			name: "a kubelet that is too old", spoil: func(w *world) { w.kubelet("v1.33.1") },
			want: []fault{{"versions", diagnose.Fail, "does not know resource.k8s.io/v1", "update the node"}},
			cure: func(w *world) { w.kubelet("v1.34.0") },
		},
		{
			name: "a kubelet that is far behind", spoil: func(w *world) { w.kubelet("v1.34.0"); w.server("v1.38.0") },
			want: []fault{{"versions", diagnose.Warn, "more than 3 minor versions older", "update the node"}},
			cure: func(w *world) { w.kubelet("v1.35.0") },
		},
	}
}
