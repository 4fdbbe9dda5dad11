package diagnose

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

// checkKubelet looks at how the kubelet reaches the plugin.
func checkKubelet(f *facts) (string, []Finding) {
	start := "start the plugin, or look at its log: kubectl logs -n NAMESPACE daemonset/kerf-plugin"
	if _, err := os.Stat(f.RegistryDir); err != nil {
		return "", []Finding{fail("", "say where the kubelet looks: --kubelet-registry-dir", "the kubelet's directory of registration sockets: %v", err)}
	}
	var faults []Finding
	for _, r := range f.registrations {
		if r.Err != nil && strings.HasPrefix(filepath.Base(r.Path), f.Driver) {
			faults = append(faults, warn(r.Path, "delete it, if no plugin is just starting: rm "+r.Path, "nobody answers at this registration socket: a plugin was killed"))
		}
	}
	ours, _ := f.ours()
	if len(ours) == 0 {
		return "", append(faults, fail("", start, "no plugin of driver %s answers in %s: the kubelet can prepare no claim", f.Driver, f.RegistryDir))
	}
	for _, r := range ours {
		if r.Unreachable != nil {
			faults = append(faults, fail(r.Path, "restart the plugin: a socket whose file is gone comes back with a new process only", "the plugin registers %s, where nobody answers: %v", r.Info.Endpoint, r.Unreachable))
		}
	}
	if len(faults) == 0 && f.notReady != "" {
		faults = append(faults, fail("", start, "the plugin is not ready: %s", f.notReady))
	}
	return fmt.Sprintf("%s of driver %s answers", plural(len(ours), "plugin"), f.Driver), faults
}

// checkRuntime looks at whether the container runtime injects what the specs say.
func checkRuntime(f *facts) (string, []Finding) {
	var faults []Finding
	if info, err := os.Stat(f.CDIRoot); err != nil {
		faults = append(faults, warn(f.CDIRoot, "the plugin makes it with the first claim; see that it is mounted from the host", "the CDI directory: %v", err))
	} else if !info.IsDir() {
		faults = append(faults, fail(f.CDIRoot, "make it a directory", "the CDI directory is none"))
	}
	r, err := f.runtime()
	if errors.Is(err, errNoRuntime) {
		return "", append(faults, warn("", "say where the node's files are seen: --node-root; and see that the runtime has CDI on", "%v: whether CDI is on is not known", err))
	}
	if err != nil {
		return "", append(faults, warn("", "run this as root, and see that the file is valid", "the configuration of %s cannot be read: %v", r.name, err))
	}
	turnOn := fmt.Sprintf(`set enable_cdi = true and cdi_spec_dirs = ["/etc/cdi", %q] in the section of the CRI plugin of %s, and restart containerd`, f.CDIRoot, r.file)
	switch {
	case r.unknown:
		faults = append(faults, warn(r.name, turnOn, "%s does not say whether CDI is on, and the version of containerd is not known: before 2.0 it is off", r.file))
	case !r.cdi:
		faults = append(faults, fail(r.name, turnOn, "CDI is off in %s: containers with claims do not start", r.file))
	case !r.looksIn(f.CDIRoot):
		faults = append(faults, fail(r.name, fmt.Sprintf("add %q to cdi_spec_dirs in %s and restart %s, or give the plugin one of them as --cdi-root", f.CDIRoot, r.file, r.name),
			"it looks for CDI specs in %s, and kerf writes them to %s", strings.Join(r.specDirs, ", "), f.CDIRoot))
	}
	return fmt.Sprintf("%s has CDI on and looks in %s", r.name, f.CDIRoot), faults
}

const (
	toolkitConfig = "/etc/nvidia-container-runtime/config.toml"
	acceptEnvvar  = "accept-nvidia-visible-devices-envvar-when-unprivileged"
)

// checkVisibleDevices looks for the way around claims: where NVIDIA's own
// runtime runs containers, it gives GPUs to whoever sets a variable.
func checkVisibleDevices(f *facts) (string, []Finding) {
	config, err := readTOML(f.NodeRoot, toolkitConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return "NVIDIA's container runtime is not configured on the node", nil
	}
	if err != nil {
		return "", []Finding{warn(toolkitConfig, "run this as root, and see that the file is valid", "%v", err)}
	}
	// NVIDIA's toolkit accepts the variable unless told otherwise.
	if accepts, ok := config.Get(acceptEnvvar).(bool); ok && !accepts {
		return "the variable gives no GPU to unprivileged containers", nil
	}
	cure := fmt.Sprintf("set %s = false in %s", acceptEnvvar, toolkitConfig)
	if r, err := f.runtime(); err == nil && strings.HasPrefix(r.defaultRuntime, "nvidia") {
		return "", []Finding{fail(toolkitConfig, cure, "every pod that sets NVIDIA_VISIBLE_DEVICES is given GPUs past all claims: %s is the default runtime of %s", r.defaultRuntime, r.name)}
	}
	return "", []Finding{warn(toolkitConfig, cure, "a pod with NVIDIA's runtime class that sets NVIDIA_VISIBLE_DEVICES is given GPUs past all claims")}
}

// checkOtherDrivers looks for others who hand out the same GPUs.
func checkOtherDrivers(f *facts) (string, []Finding) {
	var faults []Finding
	_, rivals := f.ours()
	for _, r := range rivals {
		faults = append(faults, fail(r.Path, "run one of the two on this node: uninstall the other, keep it off with a node selector, or give kerf another driverName", "another program, %s, registers the driver %s too: the kubelet asks whichever registered last", r.Program, f.Driver))
	}
	for _, r := range f.registrations {
		if r.Info != nil && r.Info.Type == registerapi.DRAPlugin && r.Info.Name == pool.DefaultDriver && r.Info.Name != f.Driver {
			faults = append(faults, warn(r.Path, "let only one of them have each GPU", "the driver %s hands out the same GPUs as kerf's %s, and neither knows of the other's claims", r.Info.Name, f.Driver))
		}
	}
	for _, path := range f.devicePlugins {
		faults = append(faults, fail(path, "uninstall NVIDIA's device plugin, or keep it off this node (with the GPU operator: devicePlugin.enabled=false)", "NVIDIA's device plugin hands out the same GPUs"))
	}
	if f.api.node != nil && len(faults) == 0 {
		for name, quantity := range f.api.node.Status.Allocatable {
			if strings.HasPrefix(string(name), "nvidia.com/") && !quantity.IsZero() {
				faults = append(faults, fail(string(name), "uninstall the device plugin on this node", "the node's status offers %s of it: a device plugin hands out the same GPUs", quantity.String()))
			}
		}
		slices.SortFunc(faults, func(a, b Finding) int { return strings.Compare(a.About, b.About) })
	}
	return "nobody else hands out GPUs", faults
}

// checkModeAgents looks for programs that change MIG modes and instances beside kerf.
func checkModeAgents(f *facts) (string, []Finding) {
	const cure = "keep it off this node (with the GPU operator: migManager.enabled=false) and remove the label " + plugin.MIGConfigLabel
	var faults []Finding
	for _, p := range f.programs {
		// The kernel's name of a process has 15 letters.
		if strings.HasPrefix(p.name, "nvidia-mig-mana") || strings.HasPrefix(p.name, "nvidia-mig-part") {
			faults = append(faults, fail(p.String(), cure, "an agent that changes MIG modes and instances runs beside kerf"))
		}
	}
	if f.api.node != nil {
		if layout := f.api.node.Labels[plugin.MIGConfigLabel]; layout != "" {
			faults = append(faults, warn(f.NodeName, cure, "the node's label %s=%s asks NVIDIA's MIG manager for a layout", plugin.MIGConfigLabel, layout))
		}
	}
	if len(f.programs) == 0 && f.api.node == nil {
		return "", nil
	}
	return "nobody else changes MIG modes", faults
}
