// Package prereq owns what a cluster needs of the machine, and says all that is missing in one go.
package prereq

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Host is what was found on the machine.
type Host struct {
	// CNIDir has the CNI plugins.
	CNIDir string
	// Busybox is a static busybox.
	Busybox string
}

// Finder looks around; its zero value looks at the real machine.
type Finder struct {
	// Root is put before absolute paths.
	Root string
	// LookPath is exec.LookPath.
	LookPath func(string) (string, error)
	// UID is the effective user.
	UID func() int
	// OS is runtime.GOOS.
	OS string
}

// need is one thing that may be missing, and the Debian package that has it.
type need struct {
	what, pkg string
}

// Find returns what a cluster uses of the machine, or an error that lists all that is missing. build says that tools have
// to be built as well.
func (f Finder) Find(build bool) (Host, error) {
	f = f.withDefaults()
	var problems []string
	if f.OS != "linux" {
		problems = append(problems, "Linux: a cluster is made of Linux namespaces, and this is "+f.OS)
	}
	if f.UID() != 0 {
		problems = append(problems, "root: namespaces, mounts and cgroups need it; run this with sudo -E")
	}
	if !f.hasFilesystem("overlay") {
		problems = append(problems, "overlayfs: load the kernel module with \"modprobe overlay\"")
	}
	var missing []need
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore"} {
		missing = f.executable(missing, name, "iptables")
	}
	for _, name := range []string{"mount", "umount"} {
		missing = f.executable(missing, name, "mount")
	}
	var host Host
	if host.CNIDir = f.cni(); host.CNIDir == "" {
		missing = append(missing, need{"CNI plugins (bridge, host-local, loopback) in /usr/lib/cni or /opt/cni/bin", "containernetworking-plugins"})
	}
	if host.Busybox = f.busybox(); host.Busybox == "" {
		missing = append(missing, need{"a statically linked busybox", "busybox-static"})
	}
	if build {
		missing = f.buildNeeds(missing)
	}
	if err := report(problems, missing); err != nil {
		return Host{}, err
	}
	return host, nil
}

func (f Finder) withDefaults() Finder {
	if f.LookPath == nil {
		f.LookPath = exec.LookPath
	}
	if f.UID == nil {
		f.UID = os.Geteuid
	}
	if f.OS == "" {
		f.OS = runtime.GOOS
	}
	return f
}

func (f Finder) buildNeeds(missing []need) []need {
	if _, err := f.LookPath("go"); err != nil {
		missing = append(missing, need{"the go command in PATH", ""})
	}
	missing = f.executable(missing, "gcc", "gcc")
	missing = f.executable(missing, "pkg-config", "pkg-config")
	if _, err := os.Stat(f.path("/usr/include/seccomp.h")); err != nil {
		missing = append(missing, need{"seccomp.h, to build runc", "libseccomp-dev"})
	}
	return missing
}

func (f Finder) executable(missing []need, name, pkg string) []need {
	if _, err := f.LookPath(name); err != nil {
		// Debian keeps administrators' tools out of other users' PATH, and sudo may hand that on.
		for _, dir := range []string{"/usr/sbin", "/sbin"} {
			if _, err := os.Stat(f.path(filepath.Join(dir, name))); err == nil {
				return missing
			}
		}
		return append(missing, need{name, pkg})
	}
	return missing
}

func (f Finder) cni() string {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"} {
		found := true
		for _, plugin := range []string{"bridge", "host-local", "loopback"} {
			if _, err := os.Stat(f.path(filepath.Join(dir, plugin))); err != nil {
				found = false
			}
		}
		if found {
			return dir
		}
	}
	return ""
}

func (f Finder) busybox() string {
	for _, name := range []string{"busybox", "busybox-static"} {
		path, err := f.LookPath(name)
		if err == nil && isStatic(path) {
			return path
		}
	}
	return ""
}

func isStatic(path string) bool {
	file, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	return !slices.ContainsFunc(file.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

func (f Finder) hasFilesystem(name string) bool {
	raw, err := os.ReadFile(f.path("/proc/filesystems"))
	return err == nil && slices.Contains(strings.Fields(string(raw)), name)
}

func (f Finder) path(path string) string { return filepath.Join("/", f.Root, path) }

func report(problems []string, missing []need) error {
	var packages []string
	for _, m := range missing {
		line := m.what
		if m.pkg != "" {
			line += fmt.Sprintf(" (Debian package %s)", m.pkg)
			packages = append(packages, m.pkg)
		}
		problems = append(problems, line)
	}
	if len(problems) == 0 {
		return nil
	}
	text := "this machine lacks what a cluster needs:\n  - " + strings.Join(problems, "\n  - ")
	if len(packages) > 0 {
		slices.Sort(packages)
		text += "\non Debian or Ubuntu: apt-get install -y --no-install-recommends " + strings.Join(slices.Compact(packages), " ")
	}
	return errors.New(text)
}
