// Package cgroup owns the cgroup that a cluster has in every hierarchy: below the caller's own, so that whatever limits
// the caller also limits the cluster's pods, and nothing outlives it.
//
// It handles cgroup v1, where there is one hierarchy for each controller, and v2.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Group is the cluster's cgroup in one hierarchy.
type Group struct {
	// Version is 1 or 2.
	Version int `json:"version"`
	// Name is the directory below /sys/fs/cgroup at which a v1 hierarchy is mounted, "cpu,cpuacct" for example.
	Name string `json:"name,omitempty"`
	// Options mount a v1 hierarchy.
	Options string `json:"options,omitempty"`
	// Origin is the caller's own cgroup, as a directory of the host.
	Origin string `json:"origin"`
	// Dir is the cluster's cgroup, as a directory of the host.
	Dir string `json:"dir"`
}

// Plan says which groups a cluster would have; it creates none. proc is /proc, but for tests.
func Plan(proc, name string) ([]Group, error) {
	memberships, err := readMemberships(filepath.Join(proc, "self/cgroup"))
	if err != nil {
		return nil, err
	}
	mounts, err := readMounts(filepath.Join(proc, "self/mountinfo"))
	if err != nil {
		return nil, err
	}
	var groups []Group
	var unified *membership
	for _, m := range memberships {
		if m.controllers == "" {
			unified = &m
			continue
		}
		mount, ok := mounts.v1(m.controllers)
		if !ok {
			continue // a controller that nobody mounted is one that nothing uses
		}
		origin, err := mount.dir(m.path)
		if err != nil {
			return nil, err
		}
		groups = append(groups, Group{
			Version: 1,
			Name:    filepath.Base(mount.point),
			Options: v1Options(m.controllers),
			Origin:  origin,
			Dir:     filepath.Join(origin, name),
		})
	}
	if len(groups) > 0 {
		return groups, nil
	}
	if unified == nil || mounts.unified == nil {
		return nil, errors.New("no cgroup hierarchy is mounted: mount one at /sys/fs/cgroup")
	}
	origin, err := mounts.unified.dir(unified.path)
	if err != nil {
		return nil, err
	}
	parent, err := delegating(origin, mounts.unified.point)
	if err != nil {
		return nil, err
	}
	return []Group{{Version: 2, Origin: origin, Dir: filepath.Join(parent, name)}}, nil
}

func v1Options(controllers string) string {
	if strings.HasPrefix(controllers, "name=") {
		return "none," + controllers
	}
	return controllers
}

// delegating finds the nearest cgroup that hands its controllers on to its children. On v2 a cgroup that has processes of
// its own cannot do so, which is why the caller's cgroup itself rarely serves.
func delegating(origin, root string) (string, error) {
	for dir := origin; strings.HasPrefix(dir, root); dir = filepath.Dir(dir) {
		raw, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
		if err != nil {
			return "", fmt.Errorf("read the controllers that a cgroup hands on: %w", err)
		}
		have := strings.Fields(string(raw))
		if slices.Contains(have, "cpu") && slices.Contains(have, "memory") && slices.Contains(have, "pids") {
			return dir, nil
		}
	}
	return "", fmt.Errorf("neither %s nor a cgroup above it hands cpu, memory and pids on to its children: "+
		"move the processes of the topmost cgroup into a child and write \"+cpu +cpuset +memory +pids\" to its cgroup.subtree_control", origin)
}

// Create makes the groups. Groups that exist already are used as they are.
func Create(groups []Group) error {
	for _, g := range groups {
		if err := os.Mkdir(g.Dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("create a cgroup: %w", err)
		}
		if err := inheritCpuset(g); err != nil {
			return err
		}
	}
	return nil
}

// inheritCpuset copies the processors and memory nodes: a new v1 cpuset has none, and takes no process until it does.
func inheritCpuset(g Group) error {
	if g.Version != 1 {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(g.Origin, file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the caller's cpuset: %w", err)
		}
		if err := os.WriteFile(filepath.Join(g.Dir, file), value, 0o644); err != nil {
			return fmt.Errorf("set the cluster's cpuset: %w", err)
		}
	}
	return nil
}

// Enter moves a process into the groups.
func Enter(groups []Group, pid int) error {
	for _, g := range groups {
		if err := move(g.Dir, pid); err != nil {
			return err
		}
	}
	return nil
}

// Leave moves a process back to where the caller is.
func Leave(groups []Group, pid int) error {
	for _, g := range groups {
		if err := move(g.Origin, pid); err != nil {
			return err
		}
	}
	return nil
}

func move(dir string, pid int) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("move a process to a cgroup: %w", err)
	}
	return nil
}

// Remove removes the groups and all below them. Their processes must have been killed; it waits up to the given time for
// the kernel to have let go of the last one.
func Remove(groups []Group, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	var all []error
	for _, g := range groups {
		for {
			err := removeTree(g.Dir)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				all = append(all, err)
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return errors.Join(all...)
}

// removeTree removes a cgroup, the innermost first. The files of a cgroup go with it and cannot be removed.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list a cgroup: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the cgroup %s: %w", dir, err)
	}
	return nil
}

// Processes lists the processes of the groups and all below them, without doubles.
func Processes(groups []Group) ([]int, error) {
	seen := map[int]bool{}
	for _, g := range groups {
		err := filepath.WalkDir(g.Dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			if err != nil || d.Name() != "cgroup.procs" {
				return err
			}
			raw, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			for field := range strings.FieldsSeq(string(raw)) {
				// A process outside of the reader's pid namespace is shown as 0.
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
					seen[pid] = true
				}
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list the processes of a cgroup: %w", err)
		}
	}
	var pids []int
	for pid := range seen {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}
