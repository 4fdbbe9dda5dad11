package nvmlsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/kerf-project/kerf/pkg/nvmlsim/identity"
)

// tree is the part of a host's file system that belongs to the driver. It is
// derived from the state: what a killed process left behind is put right by the next that opens the node.
type tree struct {
	// root stands for the host's root, driver for the driver's.
	root, driver string
	// last is what was made of the state at. Only who has the kernel's lock uses them.
	at   *state
	last content
}

// content is what the tree holds at one state, by path.
type content struct {
	files map[string]string
	nodes map[string]node
	// links are the targets of symbolic links.
	links map[string]string
}

// node is a character device.
type node struct {
	major, minor int
	mode         fs.FileMode
}

const (
	gpusDir         = "proc/driver/nvidia/gpus"
	capabilitiesDir = "proc/driver/nvidia/capabilities"
	devDir          = "dev"
	// podCgroup is the cgroup of a client in a pod, in the form that the kubelet and containerd give it under systemd.
	podCgroup = "0::/kubepods.slice/kubepods-pod6a1e2c34_5b6d_4f70_8192_a3b4c5d6e7f8.slice/cri-containerd-1f0c3a5e7b9d1f0c3a5e7b9d1f0c3a5e7b9d1f0c3a5e7b9d1f0c3a5e7b9d1f0c.scope\n"
	// controlMinor is that of /dev/nvidiactl, among the boards' minors.
	controlMinor = 255
)

// changing is what changes with the state.
func (t *tree) changing(s *state) (content, error) {
	c := content{files: map[string]string{}, nodes: map[string]node{}, links: map[string]string{}}
	file := func(text, format string, args ...any) {
		c.files[filepath.Join(t.root, fmt.Sprintf(format, args...))] = text
	}
	device := func(n node, format string, args ...any) {
		c.nodes[filepath.Join(t.root, devDir, fmt.Sprintf(format, args...))] = n
	}
	capability := func(minor int, format string, args ...any) {
		file(fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: 292\nDeviceFileModify: 1\n", minor), capabilitiesDir+"/"+format, args...)
		device(node{s.Majors.Caps, minor, 0o444}, "nvidia-caps/nvidia-cap%d", minor)
	}
	// The kernel draws one with every boot.
	file(uuid.NewSHA1(uuid.NameSpaceOID, fmt.Appendf(nil, "kerf simulated boot %s/%d", s.Seed, s.Boot)).String()+"\n", "proc/sys/kernel/random/boot_id")
	device(node{s.Majors.GPU, controlMinor, 0o666}, "nvidiactl")
	device(node{s.Majors.UVM, 0, 0o666}, "nvidia-uvm")
	device(node{s.Majors.UVM, 1, 0o666}, "nvidia-uvm-tools")
	capability(1, "mig/config")
	capability(2, "mig/monitor")
	for index := range s.GPUs {
		g := &s.GPUs[index]
		device(node{s.Majors.GPU, g.Minor, 0o666}, "nvidia%d", g.Minor)
		file(fmt.Sprintf("Model: \t\t %s\nGPU UUID: \t %s\nBus Type: \t PCIe\nBus Location: \t %s\nDevice Minor: \t %d\nGPU Excluded:\t No\n",
			g.table.ProductName, g.UUID, busID(index), g.Minor), "%s/%s/information", gpusDir, busID(index))
		for _, i := range g.Instances {
			capability(giMinor(g.Minor, i.ID), "gpu%d/mig/gi%d/access", g.Minor, i.ID)
			for _, ci := range i.Compute {
				capability(ciMinor(g.Minor, i.ID, ci.ID), "gpu%d/mig/gi%d/ci%d/access", g.Minor, i.ID, ci.ID)
			}
		}
		for _, client := range g.Clients {
			// So that who holds a board has a name.
			file(client.Command+"\n", "proc/%d/comm", client.PID)
			cgroup := "0::/system.slice/client.service\n"
			if client.InPod {
				cgroup = podCgroup
			}
			file(cgroup, "proc/%d/cgroup", client.PID)
			// Whoever talks to a board has its device node open, also who runs nothing on it.
			c.links[filepath.Join(t.root, fmt.Sprintf("proc/%d/fd/%d", client.PID, 3+index))] = fmt.Sprintf("/dev/nvidia%d", g.Minor)
		}
	}
	who, err := json.Marshal(s.identity())
	c.files[filepath.Join(t.driver, identity.Dir, identity.File)] = string(who)
	return c, err
}

func (s *state) identity() identity.Node {
	n := identity.Node{
		DriverVersion: DriverVersion, CUDAVersion: fmt.Sprintf("%d.%d", cudaVersion/1000, cudaVersion%1000/10),
		GPUMajor: uint32(s.Majors.GPU), CapsMajor: uint32(s.Majors.Caps),
	}
	for index := range s.GPUs {
		g := &s.GPUs[index]
		who := identity.GPU{Minor: uint32(g.Minor), Name: g.table.ProductName, UUID: g.UUID, PCIBusID: busID(index), MemoryMiB: g.table.MemoryMiB}
		switch {
		case g.MIG:
			who.MIGMode = "Enabled"
		case len(g.table.Profiles) > 0:
			who.MIGMode = "Disabled"
		}
		order := map[string]int{}
		for _, i := range g.Instances {
			p, _ := profileByID(g.table, i.Profile)
			for _, c := range i.Compute {
				mig := identity.Instance{
					Profile: found{profile: p, compute: c}.name(), UUID: g.migUUID(i.ID, c.ID), GPUInstanceID: i.ID, ComputeInstanceID: c.ID,
					GPUInstanceCapMinor: uint32(giMinor(g.Minor, i.ID)), ComputeInstanceCapMinor: uint32(ciMinor(g.Minor, i.ID, c.ID)),
				}
				order[mig.UUID] = c.Index
				who.Instances = append(who.Instances, mig)
			}
		}
		slices.SortFunc(who.Instances, func(a, b identity.Instance) int { return order[a.UUID] - order[b.UUID] })
		n.GPUs = append(n.GPUs, who)
	}
	return n
}

// update makes the tree follow a change of state.
func (t *tree) update(before, after *state) error {
	was, err := t.last, error(nil)
	if t.at != before {
		if was, err = t.changing(before); err != nil {
			return err
		}
	}
	is, err := t.changing(after)
	if err != nil {
		return err
	}
	t.at, t.last = after, is
	for path, text := range is.files {
		if old, ok := was.files[path]; !ok || old != text {
			if err := writeFile(path, text); err != nil {
				return err
			}
		}
	}
	for path, n := range is.nodes {
		if old, ok := was.nodes[path]; !ok || old != n {
			if err := makeNode(path, n); err != nil {
				return err
			}
		}
	}
	for path, target := range is.links {
		if err := relink(target, path); err != nil {
			return err
		}
	}
	for path := range was.links {
		if _, ok := is.links[path]; !ok {
			if err := t.remove(path); err != nil {
				return err
			}
		}
	}
	for path := range was.files {
		if _, ok := is.files[path]; !ok {
			if err := t.remove(path); err != nil {
				return err
			}
		}
	}
	for path := range was.nodes {
		if _, ok := is.nodes[path]; !ok {
			if err := t.remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// rebuild makes the changing part as the state says, whatever there was.
func (t *tree) rebuild(s *state) error {
	c, err := t.changing(s)
	if err != nil {
		return err
	}
	for path, text := range c.files {
		if old, err := os.ReadFile(path); err != nil || string(old) != text {
			if err := writeFile(path, text); err != nil {
				return err
			}
		}
	}
	for path, n := range c.nodes {
		if err := makeNode(path, n); err != nil {
			return err
		}
	}
	for path, target := range c.links {
		if err := relink(target, path); err != nil {
			return err
		}
	}
	var stale []string
	for _, dir := range []string{gpusDir, capabilitiesDir, devDir} {
		err := filepath.WalkDir(filepath.Join(t.root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if _, ok := c.files[path]; ok {
				return nil
			}
			if _, ok := c.nodes[path]; !ok {
				stale = append(stale, path)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, pattern := range []string{"proc/[0-9]*/c*", "proc/[0-9]*/fd/*"} {
		processes, err := filepath.Glob(filepath.Join(t.root, pattern))
		if err != nil {
			return err
		}
		for _, path := range processes {
			_, file := c.files[path]
			if _, link := c.links[path]; !file && !link {
				stale = append(stale, path)
			}
		}
	}
	for _, path := range stale {
		if err := t.remove(path); err != nil {
			return err
		}
	}
	return nil
}

// remove removes a file and the directories that it leaves empty.
func (t *tree) remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for dir := filepath.Dir(path); dir != t.root && strings.HasPrefix(dir, t.root); dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil {
			break
		}
	}
	return nil //nolint:nilerr // what is not there is removed
}

func writeFile(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return replaceFile(path, []byte(text), 0o644)
}

// relink makes a symbolic link, instead of one with another target.
func relink(target, link string) error {
	if old, err := os.Readlink(link); err == nil && old != target {
		if err := os.Remove(link); err != nil {
			return err
		}
	}
	return symlink(target, link)
}

// makeNode makes a device node, or, where that is not allowed, a file that only
// holds its place: a container's nodes are made by its runtime from the numbers.
func makeNode(path string, n node) error {
	number := unix.Mkdev(uint32(n.major), uint32(n.minor))
	var is unix.Stat_t
	if err := unix.Lstat(path, &is); err == nil {
		if is.Mode&unix.S_IFMT == unix.S_IFCHR && uint64(is.Rdev) == number { //nolint:unconvert // its type differs between architectures
			return nil
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(path, unix.S_IFCHR|uint32(n.mode), int(number)); err != nil {
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("make the device node %s: %w", path, err)
		}
		return os.WriteFile(path, nil, 0o600)
	}
	// The umask may have taken something away.
	return os.Chmod(path, n.mode)
}

// differs reports whether a file has to be written.
func differs(path string, data []byte) bool {
	old, err := os.ReadFile(path)
	return err != nil || !bytes.Equal(old, data)
}
