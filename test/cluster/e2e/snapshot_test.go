//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kerf-project/kerf/test/cluster/internal/layout"
)

// snapshot is everything of the host that a cluster could leave behind, one line each. Other clusters may run on the
// same machine, so what bears their names is not in it.
type snapshot map[string]bool

func take(t *testing.T) snapshot {
	t.Helper()
	s := snapshot{}
	for _, collect := range []func(snapshot) error{processes, mounts, cgroups, links, rules, files} {
		if err := collect(s); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// difference lists what is new and what is gone.
func (s snapshot) difference(before snapshot) []string {
	var all []string
	for line := range s {
		if !before[line] {
			all = append(all, "new: "+line)
		}
	}
	for line := range before {
		if !s[line] {
			all = append(all, "gone: "+line)
		}
	}
	slices.Sort(all)
	return all
}

// expectSame waits a moment, for a killed command's guardian works on its own, and fails with what differs.
func expectSame(t *testing.T, before snapshot, patience time.Duration) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		difference := take(t).difference(before)
		if len(difference) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind after %s:\n%s", patience, strings.Join(difference, "\n"))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// foreign says that a path or a cgroup belongs to a cluster of another name.
func foreign(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if name, ok := strings.CutPrefix(part, layout.CgroupPrefix); ok && !strings.HasPrefix(name, clusterName) {
			return true
		}
	}
	return false
}

// processes are those of our clusters: by their cgroup, by the mark in their environment, by their arguments. Other
// processes come and go on a machine that others use.
func processes(s snapshot) error {
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, dir := range all {
		if dir == "/proc/"+strconv.Itoa(os.Getpid()) {
			continue
		}
		// A process may end meanwhile; what cannot be read then is empty.
		group, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if strings.Contains(string(group), "/"+layout.CgroupPrefix+clusterName) ||
			strings.Contains(string(environment), layout.NameVariable+"="+clusterName) ||
			strings.Contains(string(command), filepath.Join(layout.Base, clusterName)) ||
			strings.Contains(string(command), "\x00"+clusterName+"\x00") {
			s["process "+filepath.Base(dir)+" "+strings.ReplaceAll(string(command), "\x00", " ")] = true
		}
	}
	return nil
}

func mounts(s snapshot) error {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		s["mount "+strings.TrimSpace(line)] = true
	}
	return nil
}

func cgroups(s snapshot) error {
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it went while it was listed
		}
		if !d.IsDir() {
			return nil
		}
		if foreign(path) {
			return filepath.SkipDir
		}
		// Other programs make cgroups as well; those of a cluster are its own and what the kubelet makes.
		if strings.Contains(path, layout.CgroupPrefix) || strings.Contains(path, "kubepods") {
			s["cgroup "+path] = true
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list cgroups: %w", err)
	}
	return nil
}

func links(s snapshot) error {
	all, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list network devices: %w", err)
	}
	for _, l := range all {
		s["link "+l.Name] = true
	}
	return nil
}

func rules(s snapshot) error {
	raw, err := exec.Command("iptables-save").Output()
	if err != nil {
		return fmt.Errorf("list iptables rules: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		// Comments have the time in them, and chains their counters.
		if line, _, _ = strings.Cut(strings.TrimSpace(line), " ["); !strings.HasPrefix(line, "#") {
			s["iptables "+line] = true
		}
	}
	return nil
}

// files are the entries of the directories that a node's software writes to. Not of /dev/shm, where any program of the
// machine may come and go: that the box has one of its own is tested by itself.
func files(s snapshot) error {
	for _, dir := range []string{
		"/etc", "/etc/cdi", "/etc/cni", "/opt", "/opt/cni", "/run", "/run/cdi", "/run/containerd", "/run/netns", layout.Base,
		"/var/lib", "/var/lib/kubelet", "/var/lib/cni", "/var/lib/containerd", "/var/lib/kerf", "/var/log", "/var/log/pods",
	} {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list files: %w", err)
		}
		for _, e := range entries {
			if dir != layout.Base || strings.HasPrefix(e.Name(), clusterName) {
				s["file "+filepath.Join(dir, e.Name())] = true
			}
		}
	}
	// Its existence depends on other clusters; its entries are compared above.
	delete(s, "file "+layout.Base)
	return nil
}
