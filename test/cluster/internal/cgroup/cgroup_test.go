package cgroup

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestPlanV1(t *testing.T) {
	for _, c := range []struct {
		host string
		want []Group
	}{
		{"hybrid", []Group{
			{Version: 1, Name: "memory", Options: "memory", Origin: "/sys/fs/cgroup/memory/process/9edf", Dir: "/sys/fs/cgroup/memory/process/9edf/kerf-a"},
			{Version: 1, Name: "cpuset", Options: "cpuset", Origin: "/sys/fs/cgroup/cpuset", Dir: "/sys/fs/cgroup/cpuset/kerf-a"},
			{Version: 1, Name: "cpu,cpuacct", Options: "cpu,cpuacct", Origin: "/sys/fs/cgroup/cpu,cpuacct", Dir: "/sys/fs/cgroup/cpu,cpuacct/kerf-a"},
			{Version: 1, Name: "systemd", Options: "none,name=systemd", Origin: "/sys/fs/cgroup/systemd/user.slice", Dir: "/sys/fs/cgroup/systemd/user.slice/kerf-a"},
		}},
		{"container", []Group{
			{Version: 1, Name: "memory", Options: "memory", Origin: "/sys/fs/cgroup/memory", Dir: "/sys/fs/cgroup/memory/kerf-a"},
			{Version: 1, Name: "cpu", Options: "cpu", Origin: "/sys/fs/cgroup/cpu/inner", Dir: "/sys/fs/cgroup/cpu/inner/kerf-a"},
		}},
	} {
		t.Run(c.host, func(t *testing.T) {
			got, err := Plan(filepath.Join("testdata", c.host), "kerf-a")
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got:\n%+v\nwant:\n%+v", got, c.want)
			}
		})
	}
}

// unified makes a /proc and a v2 hierarchy; the mount point must be a real directory, for its files are read.
func unified(t *testing.T, controls map[string]string) (proc, hierarchy string) {
	t.Helper()
	proc, hierarchy = t.TempDir(), t.TempDir()
	write := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(proc, "self/cgroup"), "0::/user.slice/session.scope\n")
	write(filepath.Join(proc, "self/mountinfo"), "30 22 0:27 / "+hierarchy+" rw,relatime - cgroup2 cgroup2 rw\n")
	for dir, text := range controls {
		write(filepath.Join(hierarchy, dir, "cgroup.subtree_control"), text)
	}
	return proc, hierarchy
}

func TestPlanV2(t *testing.T) {
	proc, hierarchy := unified(t, map[string]string{
		"":                          "cpuset cpu io memory pids\n",
		"user.slice":                "cpu memory pids\n",
		"user.slice/session.scope/": "",
	})
	got, err := Plan(proc, "kerf-a")
	if err != nil {
		t.Fatal(err)
	}
	want := []Group{{
		Version: 2,
		Origin:  filepath.Join(hierarchy, "user.slice/session.scope"),
		Dir:     filepath.Join(hierarchy, "user.slice/kerf-a"),
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got:\n%+v\nwant:\n%+v", got, want)
	}
}

func TestPlanV2WithoutDelegation(t *testing.T) {
	proc, _ := unified(t, map[string]string{"": "", "user.slice": "memory\n", "user.slice/session.scope": ""})
	_, err := Plan(proc, "kerf-a")
	if err == nil || !strings.Contains(err.Error(), "cgroup.subtree_control") {
		t.Errorf("error %v does not say what to do", err)
	}
}

func TestRemoveTakesTheInnermostFirst(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "kerf-a/kubepods/besteffort"), 0o755); err != nil {
		t.Fatal(err)
	}
	groups := []Group{{Version: 1, Dir: filepath.Join(dir, "kerf-a")}}
	for range 2 { // the second finds nothing, which is fine
		if err := Remove(groups, time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(groups[0].Dir); err == nil {
		t.Error("the cgroup is still there")
	}
}
