package box

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kerf-project/kerf/test/cluster/internal/cgroup"
	"github.com/kerf-project/kerf/test/cluster/internal/kube"
)

// overlaid are the trees of the host that the box shows with a private layer above: the standard paths below them
// (/var/lib/kubelet, /etc/cdi, ...) can be made and written without the host noticing.
var overlaid = []string{"/etc", "/opt", "/var"}

// scratch is where the upper layers lie. /run itself is new in the box.
const scratch = "/run/kerf-cluster-layers"

// private are directories with a tmpfs of their own: overlayfs takes no other overlay as its upper layer, and what the
// kubelet mounts below its directory must propagate.
var private = []string{kube.DataDir, "/var/lib/containerd", "/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers"}

// standard are directories that a driver expects on a node.
var standard = []string{
	"/etc/cdi", "/etc/cni/net.d", "/opt/cni/bin", "/run/cdi", "/run/containerd", "/run/kerf", "/var/lib/kerf", kube.DataDir + "/tmp",
	"/var/lib/kubelet/plugins", "/var/lib/kubelet/plugins_registry",
}

// settings are values of the kernel that the kubelet insists on. They are the whole machine's, so it gets files of the
// box instead, which already say what it wants.
var settings = map[string]string{
	"vm/overcommit_memory":      "1",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
	"vm/panic_on_oom":           "0",
}

// setUpMounts makes the box's view of the file system. It begins by cutting the propagation to the host.
func setUpMounts(spec Spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make all mounts private: %w", err)
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	// A new instance, for it shows the network devices of the namespace in which it was mounted.
	if err := mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := cgroup.Mount(spec.Groups); err != nil {
		return err
	}
	kept, err := openKept(append([]string{spec.RunDir}, spec.Keep...))
	if err != nil {
		return err
	}
	if err := layer(); err != nil {
		return err
	}
	for _, dir := range private {
		if err := tmpfs(dir); err != nil {
			return err
		}
	}
	for _, dir := range standard {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("create a standard directory: %w", err)
		}
	}
	if err := kept.mount(); err != nil {
		return err
	}
	if err := coverSettings(); err != nil {
		return err
	}
	// The kubelet and CSI or CDI mounts propagate to pods that ask for it.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make all mounts shared: %w", err)
	}
	return nil
}

// layer replaces /run and /dev/shm and puts private layers over the overlaid trees.
func layer() error {
	for _, dir := range []string{"/run", "/dev/shm"} {
		if err := tmpfs(dir); err != nil {
			return err
		}
	}
	for _, dir := range overlaid {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			continue // an unusual system may do without one of them
		}
		upper := filepath.Join(scratch, dir, "upper")
		work := filepath.Join(scratch, dir, "work")
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return fmt.Errorf("create a private layer: %w", err)
			}
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
		if err := mount("overlay", dir, "overlay", 0, options); err != nil {
			return err
		}
	}
	// Debian has a link here; where it is a directory it must be the same as /run all the same.
	if info, err := os.Lstat("/var/run"); err == nil && info.IsDir() {
		return mount("/run", "/var/run", "", unix.MS_BIND, "")
	}
	return nil
}

func tmpfs(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create a mount point: %w", err)
	}
	return mount("tmpfs", dir, "tmpfs", 0, "mode=755")
}

// keptDirs are directories of the host, held open while something else is mounted above them.
type keptDirs map[string]*os.File

func openKept(dirs []string) (keptDirs, error) {
	kept := keptDirs{}
	for _, dir := range dirs {
		if !covered(dir) {
			continue
		}
		file, err := os.Open(dir)
		if err != nil {
			return nil, fmt.Errorf("keep a directory of the host: %w", err)
		}
		kept[dir] = file
	}
	return kept, nil
}

func covered(dir string) bool {
	for _, tree := range append([]string{"/run", "/dev/shm"}, overlaid...) {
		if dir == tree || strings.HasPrefix(dir, tree+"/") {
			return true
		}
	}
	return false
}

// mount shows the directories again at their own paths.
func (k keptDirs) mount() error {
	for dir, file := range k {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("create a mount point: %w", err)
		}
		if err := mount(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
		if err := file.Close(); err != nil {
			return fmt.Errorf("keep a directory of the host: %w", err)
		}
	}
	return nil
}

func coverSettings() error {
	for name, value := range settings {
		target := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(target); err != nil {
			continue // not every kernel has every setting
		}
		source := filepath.Join(scratch, "settings", name)
		if err := os.MkdirAll(filepath.Dir(source), 0o755); err != nil {
			return fmt.Errorf("cover a kernel setting: %w", err)
		}
		if err := os.WriteFile(source, []byte(value+"\n"), 0o644); err != nil {
			return fmt.Errorf("cover a kernel setting: %w", err)
		}
		if err := mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, target, err)
	}
	return nil
}
