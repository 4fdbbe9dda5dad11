package nvmlsim

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/kerf-project/kerf/pkg/nvmlsim/identity"
)

// ExtraMounts are what a container needs beside the driver's files: the
// directory that tells its nvidia-smi what the device nodes stand for. The
// argument is the driver's root as the host names it; empty is DriverRoot.
func (n *Node) ExtraMounts(hostDriverRoot string) []specs.Mount {
	if hostDriverRoot == "" {
		hostDriverRoot = n.DriverRoot()
	}
	return []specs.Mount{{
		HostPath: filepath.Join(hostDriverRoot, identity.Dir), ContainerPath: identity.Dir,
		Options: []string{"ro", "nosuid", "nodev", "rbind", "rprivate"},
	}}
}

// build makes the whole tree: what never changes, and what the state says.
func (t *tree) build(s *state, proc string) error {
	devices, err := procDevices(proc, s.Majors)
	if err != nil {
		return err
	}
	files := map[string]string{
		filepath.Join(t.root, "proc/devices"): devices,
		filepath.Join(t.root, "proc/driver/nvidia/version"): fmt.Sprintf("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  %s  Release Build  (simulated)\nGCC version:  simulated\n",
			DriverVersion),
		filepath.Join(t.root, "proc/driver/nvidia-caps/mig-minors"): migMinors(),
	}
	for index, g := range s.GPUs {
		id, host, port := busID(index), fmt.Sprintf("pci0000:%02x", bus(index)-1), fmt.Sprintf("0000:%02x:01.0", bus(index)-1)
		dir := filepath.Join(t.root, "sys/devices", host, port, id)
		for name, text := range map[string]string{
			"vendor": "0x10de", "device": fmt.Sprintf("%#04x", g.table.PCIDevice), "class": "0x030200", "numa_node": strconv.Itoa(numaNode(index, len(s.GPUs))),
		} {
			files[filepath.Join(dir, name)] = text + "\n"
		}
		link := filepath.Join(t.root, "sys/bus/pci/devices", id)
		if err := symlink(filepath.Join("../../../devices", host, port, id), link); err != nil {
			return err
		}
	}
	for path, text := range files {
		if differs(path, []byte(text)) {
			if err := writeFile(path, text); err != nil {
				return err
			}
		}
	}
	if err := t.libraries(); err != nil {
		return err
	}
	return t.rebuild(s)
}

// libraries makes the driver's libraries, with the links that its installer and ldconfig make.
func (t *tree) libraries() error {
	dir := filepath.Join(t.driver, "usr/lib/x86_64-linux-gnu")
	if runtime.GOARCH == "arm64" {
		dir = filepath.Join(t.driver, "usr/lib/aarch64-linux-gnu")
	}
	for _, name := range []string{"libcuda.so", "libnvidia-ml.so", "libnvidia-ptxjitcompiler.so"} {
		stub, err := stubLibrary(name + ".1")
		if err != nil {
			return err
		}
		if path := filepath.Join(dir, name+"."+DriverVersion); differs(path, stub) {
			if err := writeFile(path, string(stub)); err != nil {
				return err
			}
		}
		if err := symlink(name+"."+DriverVersion, filepath.Join(dir, name+".1")); err != nil {
			return err
		}
		if err := symlink(name+".1", filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func symlink(target, link string) error {
	if old, err := os.Readlink(link); err == nil && old == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	return os.Symlink(target, link)
}

// installSMI puts the static nvidia-smi into the driver's root.
func (t *tree) installSMI(o options) error {
	from := o.smi
	if from == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		from = filepath.Join(filepath.Dir(self), SMIProgram)
	}
	data, err := os.ReadFile(from)
	if o.smi == "" && errors.Is(err, fs.ErrNotExist) {
		o.logger.Info("Containers of the simulated node will have no nvidia-smi", "missing", from)
		return nil
	}
	if err != nil {
		return fmt.Errorf("install the simulated nvidia-smi: %w", err)
	}
	to := filepath.Join(t.driver, "usr/bin/nvidia-smi")
	if !differs(to, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return replaceFile(to, data, 0o755)
}

// migMinors is the driver's table of capabilities. It is the same on all nodes,
// whatever boards there are, so a driver that reads it must know a board's minor.
func migMinors() string {
	var text strings.Builder
	text.WriteString("config 1\nmonitor 2\n")
	for g := range maxMinor + 1 {
		for gi := range 15 {
			fmt.Fprintf(&text, "gpu%d/gi%d/access %d\n", g, gi, giMinor(g, gi))
			for ci := range 8 {
				fmt.Fprintf(&text, "gpu%d/gi%d/ci%d/access %d\n", g, gi, ci, ciMinor(g, gi, ci))
			}
		}
	}
	return text.String()
}

// procDevices is the running kernel's table of devices with those of the simulated driver in it.
func procDevices(path string, m majors) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	ours := []string{
		fmt.Sprintf("%3d nvidia", m.GPU), fmt.Sprintf("%3d nvidiactl", m.GPU), fmt.Sprintf("%3d nvidia-caps", m.Caps), fmt.Sprintf("%3d nvidia-uvm", m.UVM),
	}
	var text strings.Builder
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// A real driver's devices are not the simulated node's.
		if fields := strings.Fields(lines.Text()); len(fields) == 2 && strings.HasPrefix(fields[1], "nvidia") {
			continue
		}
		text.WriteString(lines.Text() + "\n")
		if lines.Text() == "Character devices:" {
			text.WriteString(strings.Join(ours, "\n") + "\n")
		}
	}
	return text.String(), lines.Err()
}

// freeMajors chooses majors that no driver of the running kernel has, so that a
// simulated node never opens a real device.
func freeMajors(path string) (majors, error) {
	f, err := os.Open(path)
	if err != nil {
		return majors{}, err
	}
	defer f.Close()
	taken := map[int]bool{}
	lines := bufio.NewScanner(f)
	for lines.Scan() && lines.Text() != "Block devices:" {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 {
			if n, err := strconv.Atoi(fields[0]); err == nil {
				taken[n] = true
			}
		}
	}
	if err := lines.Err(); err != nil {
		return majors{}, err
	}
	// 195 is NVIDIA's own; the rest are the kernel's ranges for dynamic majors (devices.txt), from their ends.
	free := func(ranges ...[2]int) int {
		for _, r := range ranges {
			for n := r[0]; n >= r[1]; n-- {
				if !taken[n] {
					taken[n] = true
					return n
				}
			}
		}
		return 0
	}
	dynamic := [][2]int{{511, 384}, {254, 234}}
	m := majors{GPU: free(append([][2]int{{195, 195}}, dynamic...)...), UVM: free(dynamic...), Caps: free(dynamic...)}
	if slices.Contains([]int{m.GPU, m.UVM, m.Caps}, 0) {
		return majors{}, fmt.Errorf("no majors for character devices are free in %s", path)
	}
	return m, nil
}
