// Package cluster owns the life of a cluster as seen from the host: it starts, watches, enters and removes boxes.
//
// A box's guardian, a process outside the box, owns what the kernel does not remove with the box: cgroups and the run
// directory. Whoever starts or stops a cluster holds the lock of its run directory.
package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-project/kerf/test/cluster/internal/cgroup"
	"github.com/kerf-project/kerf/test/cluster/internal/layout"
)

// state is what a later command needs to stop the cluster, also when its guardian is dead. It is written before what it
// names exists.
type state struct {
	Groups   []cgroup.Group `json:"groups"`
	Guardian process        `json:"guardian"`
	Init     process        `json:"init"`
}

// process names a process for good: a pid alone may be reused.
type process struct {
	Pid int `json:"pid"`
	// Start is its start time in clock ticks since boot.
	Start uint64 `json:"start"`
}

func readState(c layout.Cluster) (state, error) {
	var s state
	raw, err := os.ReadFile(c.State())
	if err != nil {
		return s, fmt.Errorf("read the state of cluster %s: %w", c.Name, err)
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, fmt.Errorf("read the state of cluster %s in %s: %w", c.Name, c.State(), err)
	}
	return s, nil
}

func (s state) write(c layout.Cluster) error { return writeJSON(c.State(), s) }

// writeJSON replaces a file as a whole.
func writeJSON(path string, value any) error {
	raw, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, raw, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// identify returns the identity of a living process.
func identify(pid int) (process, error) {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return process{}, fmt.Errorf("look at process %d: %w", pid, err)
	}
	// The second field is a name in parentheses that may contain anything; the start time is the 22nd.
	_, rest, _ := strings.Cut(string(raw[strings.LastIndexByte(string(raw), ')'):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return process{}, fmt.Errorf("look at process %d: unexpected %q", pid, raw)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("look at process %d: %w", pid, err)
	}
	return process{Pid: pid, Start: start}, nil
}

// open returns a handle of exactly this process, or false when it is gone.
func (p process) open() (handle, bool) {
	if p.Pid == 0 {
		return handle{}, false
	}
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if err != nil {
		return handle{}, false
	}
	// Compared after the handle was taken: from here on the pid cannot mean another process.
	now, err := identify(p.Pid)
	if err != nil || now != p {
		_ = unix.Close(fd)
		return handle{}, false
	}
	return handle{fd}, true
}

func (p process) alive() bool {
	h, ok := p.open()
	if ok {
		h.close()
	}
	return ok
}

// handle is a pidfd.
type handle struct{ fd int }

func (h handle) close() { _ = unix.Close(h.fd) }

func (h handle) signal(s unix.Signal) error {
	if err := unix.PidfdSendSignal(h.fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal a process: %w", err)
	}
	return nil
}

// wait returns whether the process ended in time.
func (h handle) wait(limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0
	}
}

// end makes a process end: politely, where it knows what that means, and for certain.
func (p process) end(polite time.Duration) error {
	h, ok := p.open()
	if !ok {
		return nil
	}
	defer h.close()
	if polite > 0 {
		if err := h.signal(unix.SIGTERM); err != nil {
			return err
		}
		if h.wait(polite) {
			return nil
		}
	}
	if err := h.signal(unix.SIGKILL); err != nil {
		return err
	}
	if !h.wait(10 * time.Second) {
		return fmt.Errorf("process %d does not end, though it was killed: a system call of it hangs", p.Pid)
	}
	return nil
}

// sweep ends what is left of a cluster and removes all of it, but the logs when they are to be kept. It may be called any
// number of times. The lock must be held.
func sweep(c layout.Cluster, s state, keepLogs bool) error {
	if err := s.Init.end(0); err != nil {
		return err
	}
	if err := cgroup.Remove(s.Groups, 5*time.Second); err != nil {
		return err
	}
	entries, err := os.ReadDir(c.Dir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list the run directory: %w", err)
	}
	for _, e := range entries {
		if keepLogs && filepath.Join(c.Dir(), e.Name()) == c.Logs() {
			continue
		}
		if err := os.RemoveAll(filepath.Join(c.Dir(), e.Name())); err != nil {
			return fmt.Errorf("remove the run directory: %w", err)
		}
	}
	if keepLogs {
		return nil
	}
	if err := os.RemoveAll(c.Dir()); err != nil {
		return fmt.Errorf("remove the run directory: %w", err)
	}
	// Other clusters may be there; then it stays.
	_ = os.Remove(c.Parent())
	return nil
}
