package diagnose

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/gpu"
)

func checkDriver(f *facts) (string, []Finding) {
	if f.noHardware != nil {
		return "", []Finding{fail("", "install or load the NVIDIA driver, and say where it is: --nvml, --driver-root; then run this again", "%v", f.noHardware)}
	}
	driver, library := f.node.DriverVersion, f.node.NVMLVersion
	if !strings.HasSuffix(library, driver) {
		return "", []Finding{fail("", "reload the driver (rmmod and modprobe nvidia, with nothing on the GPUs) or reboot the node, so that both are of one version",
			"the kernel driver is %s and the NVML library %s: one was updated without the other", driver, library)}
	}
	if err := f.host.Check(); err != nil {
		return "", []Finding{fail("", "load what is missing: modprobe nvidia nvidia-uvm", "no container can be given a GPU: %v", err)}
	}
	return fmt.Sprintf("driver %s, NVML %s, CUDA %s", driver, library, f.node.CUDADriverVersion), nil
}

func checkGPUs(f *facts) (string, []Finding) {
	if f.noHardware != nil {
		return "", nil
	}
	var faults []Finding
	for _, g := range f.picture() {
		if g.Unread == "" {
			continue
		}
		cure := fmt.Sprintf("look for its Xid in the kernel log (dmesg | grep -i xid), then reset it (nvidia-smi --gpu-reset -i %s) or reboot the node; replace it if that does not help", orDefault(g.PCIBusID, strconv.Itoa(g.Index)))
		if err := f.readError(g.UUID); errors.Is(err, gpu.ErrDeadline) {
			cure = "look at the kernel log; end what hangs on the GPU (nvidia-smi pmon), and reboot the node if the driver stays silent"
		}
		faults = append(faults, fail(g.Name, cure, "it cannot be read: %s", g.Unread))
	}
	if len(f.node.GPUs) == 0 && len(faults) == 0 {
		return "", []Finding{fail("", "look at lspci -d 10de: and at the kernel log", "the driver lists no GPU")}
	}
	return fmt.Sprintf("%s answer", plural(len(f.node.GPUs), "GPU")), faults
}

func checkHealth(f *facts) (string, []Finding) {
	if f.noConditions != nil {
		return "", []Finding{warn("", "the plugin writes it again; if it stays, look at the disk of "+f.StateDir, "what was wrong with the GPUs is not known: %v", f.noConditions)}
	}
	var faults []Finding
	for _, c := range f.conditions {
		about := f.about(c.Device.GPU)
		if c.Device.Type != "" {
			about = f.names.Device(c.Device)
		}
		finding := warn(about, "see docs/health.md for "+c.Reason+" and what ends it", "%s since %s (%s): %s", c.Reason, c.Since.UTC().Format("2006-01-02 15:04:05Z"), c.Effect, c.Message)
		if c.Effect == gpu.EffectNoExecute {
			finding.Status = Fail
		}
		faults = append(faults, finding)
	}
	return "no condition of a GPU is known", faults
}

func checkMIGMode(f *facts) (string, []Finding) {
	var faults []Finding
	capable := 0
	for _, g := range f.node.GPUs {
		if !g.MIG.Capable || f.readError(g.UUID) != nil {
			continue
		}
		capable++
		if fault, bad := f.modeOf(g); bad {
			faults = append(faults, fault)
		}
	}
	if capable == 0 {
		return "", nil
	}
	return fmt.Sprintf("as asked for on %s, and nobody is in the way of a change", plural(capable, "GPU")), faults
}

// modeOf says what is wrong with the MIG mode of a board.
func (f *facts) modeOf(g gpu.GPU) (Finding, bool) {
	onOff := map[bool]string{true: "on", false: "off"}
	blockers := f.outsiders(g.UUID)
	who := list(blockers, holder.String)
	set := fmt.Sprintf("nvidia-smi -i %s -mig %d", g.UUID, map[bool]int{true: 1, false: 0}[g.MIG.Current])
	switch mode := f.Config.For(g.ProductName).MIG.Mode; {
	case g.MIG.Current != g.MIG.Pending && len(blockers) > 0:
		return fail(f.about(g.UUID), fmt.Sprintf("end it, then ask for the mode again, or take the request back: %s", set),
			"MIG is %s, a change to %s is pending, and the GPU is held by %s", onOff[g.MIG.Current], onOff[g.MIG.Pending], who), true
	case g.MIG.Current != g.MIG.Pending && g.ToggleNeedsReset:
		return warn(f.about(g.UUID), fmt.Sprintf("drain the node and reset the GPU (nvidia-smi --gpu-reset -i %s), or take the request back: %s", g.UUID, set),
			"MIG is %s, and a change to %s waits for a reset of the GPU", onOff[g.MIG.Current], onOff[g.MIG.Pending]), true
	case g.MIG.Current != g.MIG.Pending:
		return fail(f.about(g.UUID), fmt.Sprintf("ask for the mode again, or take the request back: %s", set),
			"MIG is %s, and a change to %s is pending that should have taken effect at once", onOff[g.MIG.Current], onOff[g.MIG.Pending]), true
	case mode == configv1alpha1.MIGKeepOn && !g.MIG.Current:
		return warn(f.about(g.UUID), "look at the events of the node; restart the plugin when nothing is on the GPU", "the configuration keeps MIG on, and it is off"), true
	case mode == configv1alpha1.MIGOnDemand && !g.ToggleNeedsReset && len(g.Instances) == 0 && len(f.users(g.UUID)) == 0 && len(blockers) > 0:
		return warn(f.about(g.UUID), "end it (for DCGM: systemctl stop nvidia-dcgm, or its exporter's pod), or fix the mode of this product in the configuration: mig.mode keepOn or off",
			"MIG is %s, and no claim can have it changed: the GPU is held by %s", onOff[g.MIG.Current], who), true
	}
	return Finding{}, false
}

// checkCapabilities compares, for every instance that a container can be given,
// the driver's table of minors with what it says of each capability and with the device nodes.
func checkCapabilities(f *facts) (string, []Finding) {
	var faults []Finding
	usable := 0
	for _, g := range f.node.GPUs {
		for _, i := range g.Instances {
			if !i.Usable() {
				continue
			}
			usable++
			if fault, bad := f.capabilitiesOf(g, i); bad {
				faults = append(faults, fault)
			}
		}
	}
	if usable == 0 {
		return "", nil
	}
	return fmt.Sprintf("the device nodes of %s have the driver's minors", plural(usable, "MIG instance")), faults
}

func (f *facts) capabilitiesOf(g gpu.GPU, i gpu.Instance) (Finding, bool) {
	about := f.names.Device(i.Device())
	nodes, err := f.host.Nodes(cdispec.Device{GPU: g, Device: i.Device(), Instance: &i})
	if err != nil {
		return fail(about, "load the driver's capability support (modprobe nvidia, nvidia-modprobe) and look at /proc/driver/nvidia-caps", "no container can be given it: %v", err), true
	}
	said := []string{
		fmt.Sprintf("gpu%d/mig/gi%d/access", g.Minor, i.ID),
		fmt.Sprintf("gpu%d/mig/gi%d/ci%d/access", g.Minor, i.ID, i.Compute[0].ID),
	}
	for n, node := range nodes[1:] {
		file := filepath.Join("/proc/driver/nvidia/capabilities", said[n])
		make := fmt.Sprintf("nvidia-modprobe -f %s", file)
		if minor, ok := f.deviceFileMinor(file); ok && minor != node.Minor {
			return fail(about, "reload the driver or reboot the node", "%s has minor %d in mig-minors and %d in %s", node.Path, node.Minor, minor, file), true
		}
		info, err := os.Lstat(filepath.Join(f.HostRoot, node.Path))
		if errors.Is(err, fs.ErrNotExist) {
			return warn(about, make, "%s is missing: containers get it all the same, programs of the node do not", node.Path), true
		}
		if err != nil {
			return warn(about, "run this as root", "%v", err), true
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || info.Mode()&os.ModeCharDevice == 0 {
			continue // A simulated node without root has files in their place.
		}
		if major, minor := int64(unix.Major(stat.Rdev)), int64(unix.Minor(stat.Rdev)); major != node.Major || minor != node.Minor {
			return fail(about, fmt.Sprintf("rm %s && %s", node.Path, make), "%s is device %d:%d, and the driver's is %d:%d", node.Path, major, minor, node.Major, node.Minor), true
		}
	}
	return Finding{}, false
}

// deviceFileMinor reads what the driver says of one capability.
func (f *facts) deviceFileMinor(file string) (int64, bool) {
	text, err := os.ReadFile(filepath.Join(f.HostRoot, file))
	if err != nil {
		return 0, false
	}
	lines := slices.Collect(strings.Lines(string(text)))
	for _, line := range lines {
		if value, ok := strings.CutPrefix(line, "DeviceFileMinor:"); ok {
			minor, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return minor, err == nil
		}
	}
	return 0, false
}
