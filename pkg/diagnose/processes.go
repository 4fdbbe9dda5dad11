package diagnose

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// self is the name of kerf's own processes.
const self = "kerf"

// holder is a process that has a board open, be it only a handle: that is
// enough to keep the MIG mode from changing.
type holder struct {
	PID     int
	Command string
	// Container and Pod are its container's id and its pod's UID, empty outside containers.
	Container, Pod string
}

func (h holder) String() string {
	text := fmt.Sprintf("pid %d", h.PID)
	if h.Command != "" {
		text += fmt.Sprintf(" (%s)", h.Command)
	}
	if h.Container != "" {
		text += " in container " + h.Container
	}
	if h.Pod != "" {
		text += " of pod " + h.Pod
	}
	return text
}

var (
	boardNode = regexp.MustCompile(`^/dev/nvidia([0-9]+)$`)
	// A container's cgroup ends with its id, of 64 digits, whatever the runtime and the cgroup driver put around it.
	containerID = regexp.MustCompile(`[0-9a-f]{64}`)
	// The kubelet's cgroups name the pod's UID, under systemd with underscores.
	podUID = regexp.MustCompile(`kubepods.*pod([0-9a-f]{8}([-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})`)
)

// openDevices are the processes that have boards open, by the boards' minors. A
// process that may not be looked into is not among them.
func openDevices(hostRoot string) (map[int][]holder, error) {
	pids, err := pidsIn(hostRoot)
	if err != nil {
		return nil, err
	}
	open := map[int][]holder{}
	for _, pid := range pids {
		dir := filepath.Join(hostRoot, "proc", strconv.Itoa(pid))
		files, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue // It has ended, or is somebody else's.
		}
		minors := map[int]bool{}
		for _, file := range files {
			target, err := os.Readlink(filepath.Join(dir, "fd", file.Name()))
			if err != nil {
				continue
			}
			if found := boardNode.FindStringSubmatch(target); found != nil {
				if minor, err := strconv.Atoi(found[1]); err == nil {
					minors[minor] = true
				}
			}
		}
		for minor := range minors {
			open[minor] = append(open[minor], describeHolder(dir, pid))
		}
	}
	return open, nil
}

func describeHolder(dir string, pid int) holder {
	h := holder{PID: pid, Command: readLine(filepath.Join(dir, "comm"))}
	cgroup, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return h
	}
	if id := containerID.Find(cgroup); id != nil {
		h.Container = string(id[:12])
	}
	if uid := podUID.FindSubmatch(cgroup); uid != nil {
		h.Pod = strings.ReplaceAll(string(uid[1]), "_", "-")
	} else if strings.Contains(string(cgroup), "kubepods") {
		h.Pod = "unknown"
	}
	return h
}

// withProcesses adds those processes that the driver lists and /proc did not show.
func withProcesses(open []holder, processes []gpu.Process) []holder {
	for _, p := range processes {
		if !slices.ContainsFunc(open, func(h holder) bool { return h.PID == p.PID }) {
			open = append(open, holder{PID: p.PID, Command: p.Command})
		}
	}
	slices.SortFunc(open, func(a, b holder) int { return a.PID - b.PID })
	return open
}

// outsiders are those who hold a board and are neither kerf nor, where claims use the board, in a pod.
func (f *facts) outsiders(uuid string) []holder {
	used := len(f.users(uuid)) > 0
	return slices.DeleteFunc(slices.Clone(f.holders[uuid]), func(h holder) bool { return h.Command == self || used && h.Pod != "" })
}

// program is a process of the node.
type program struct {
	pid int
	// name is that of its executable.
	name string
	args []string
}

func (p program) String() string { return fmt.Sprintf("pid %d (%s)", p.pid, p.name) }

func programsOf(nodeRoot string) ([]program, error) {
	pids, err := pidsIn(nodeRoot)
	if err != nil {
		return nil, err
	}
	var all []program
	for _, pid := range pids {
		dir := filepath.Join(nodeRoot, "proc", strconv.Itoa(pid))
		p := program{pid: pid, name: readLine(filepath.Join(dir, "comm"))}
		// The kernel cuts the other name off after 15 letters.
		if line, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && len(line) > 0 {
			p.args = strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
			if filepath.IsAbs(p.args[0]) {
				p.name = filepath.Base(p.args[0])
			}
		}
		all = append(all, p)
	}
	return all, nil
}

// option is the value of a program's flag, in any of the ways to write it.
func (p program) option(names ...string) string {
	for i, arg := range p.args {
		for _, name := range names {
			if value, ok := strings.CutPrefix(arg, name+"="); ok {
				return value
			}
			if arg == name && i+1 < len(p.args) {
				return p.args[i+1]
			}
		}
	}
	return ""
}

func pidsIn(root string) ([]int, error) {
	entries, err := os.ReadDir(filepath.Join(root, "proc"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// readLine reads a file of one line, empty where it can't be read.
func readLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
