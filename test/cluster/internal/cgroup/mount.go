package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const root = "/sys/fs/cgroup"

// Mount shows the groups at /sys/fs/cgroup as if they were the whole hierarchies. It is called inside the box, whose
// cgroup namespace begins at the groups, after /sys was mounted.
func Mount(groups []Group) error {
	if len(groups) == 1 && groups[0].Version == 2 {
		return mountUnified()
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", root, err)
	}
	for _, g := range groups {
		dir := filepath.Join(root, g.Name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("prepare the mount of a cgroup hierarchy: %w", err)
		}
		if err := unix.Mount("cgroup", dir, "cgroup", 0, g.Options); err != nil {
			return fmt.Errorf("mount the cgroup hierarchy %s: %w", g.Options, err)
		}
		// Controllers that share a hierarchy are looked for under their own names, too.
		if !strings.Contains(g.Name, ",") {
			continue
		}
		for single := range strings.SplitSeq(g.Name, ",") {
			if err := os.Symlink(g.Name, filepath.Join(root, single)); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("name a cgroup controller: %w", err)
			}
		}
	}
	return nil
}

// mountUnified mounts v2 and moves the caller into a child: a v2 cgroup that hands controllers on to its children, as the
// kubelet wants of the topmost one, may have no processes of its own.
func mountUnified() error {
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount cgroup v2: %w", err)
	}
	own := filepath.Join(root, "box")
	if err := os.Mkdir(own, 0o755); err != nil {
		return fmt.Errorf("create the cgroup of the cluster's own processes: %w", err)
	}
	if err := move(own, os.Getpid()); err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read the cgroup controllers: %w", err)
	}
	for c := range strings.FieldsSeq(string(raw)) {
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil {
			return fmt.Errorf("hand the cgroup controller %s on: %w", c, err)
		}
	}
	return nil
}
