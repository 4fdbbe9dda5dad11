package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// membership is a line of /proc/PID/cgroup; the controllers of v2 are empty.
type membership struct {
	controllers string
	path        string
}

func readMemberships(file string) ([]membership, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the caller's cgroups: %w", err)
	}
	var all []membership
	for line := range strings.Lines(string(raw)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			return nil, fmt.Errorf("%s: unexpected line %q", file, line)
		}
		all = append(all, membership{controllers: parts[1], path: parts[2]})
	}
	return all, nil
}

type mount struct {
	// root is the cgroup that the mount shows at its mount point: not "/" in a container without a cgroup namespace.
	root    string
	point   string
	options map[string]bool
}

// dir turns a path in the hierarchy into a directory.
func (m mount) dir(path string) (string, error) {
	inside, ok := strings.CutPrefix(path, strings.TrimSuffix(m.root, "/"))
	if !ok || (inside != "" && inside[0] != '/') {
		return "", fmt.Errorf("the caller's cgroup %s is not below %s, which is mounted at %s", path, m.root, m.point)
	}
	return filepath.Join(m.point, inside), nil
}

type mountTable struct {
	legacy  []mount
	unified *mount
}

// v1 finds the mount that has all the given controllers.
func (t mountTable) v1(controllers string) (mount, bool) {
	for _, m := range t.legacy {
		found := true
		for c := range strings.SplitSeq(controllers, ",") {
			found = found && m.options[c]
		}
		if found {
			return m, true
		}
	}
	return mount{}, false
}

func readMounts(file string) (mountTable, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return mountTable{}, fmt.Errorf("read the mounts: %w", err)
	}
	var table mountTable
	for line := range strings.Lines(string(raw)) {
		// 31 30 0:28 /root /point options [optional...] - fstype source superoptions
		left, right, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		fields, tail := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 6 || len(tail) < 3 {
			return mountTable{}, fmt.Errorf("%s: unexpected line %q", file, line)
		}
		m := mount{root: fields[3], point: fields[4], options: map[string]bool{}}
		switch tail[0] {
		case "cgroup":
			for option := range strings.SplitSeq(tail[2], ",") {
				m.options[option] = true
			}
			table.legacy = append(table.legacy, m)
		case "cgroup2":
			table.unified = &m
		}
	}
	return table, nil
}
