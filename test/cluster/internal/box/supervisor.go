package box

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kerf-project/kerf/test/cluster/internal/kube"
	"github.com/kerf-project/kerf/test/cluster/internal/proc"
)

// supervisor starts the components and remembers how they fare. It restarts none that dies, which is a finding, but only
// those that it is asked to restart.
type supervisor struct {
	reaper *proc.Reaper
	binary map[string]string
	logDir string
	env    []string

	mu      sync.Mutex
	running []*component
}

type component struct {
	name    string
	args    []string
	process *proc.Process
}

// start starts a component of the cluster. Its log is name.log in the log directory.
func (s *supervisor) start(c kube.Component) error {
	process, err := s.run(c.Name, c.Args)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = append(s.running, &component{name: c.Name, args: c.Args, process: process})
	return nil
}

// restart kills a component, so that it can save nothing more, and starts it again as it was started.
func (s *supervisor) restart(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.running, func(c *component) bool { return c.name == name })
	if i < 0 {
		return fmt.Errorf("no component %q was started", name)
	}
	c := s.running[i]
	if err := unix.Kill(c.process.Pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: %w", name, err)
	}
	<-c.process.Done()
	process, err := s.run(name, c.args)
	if err != nil {
		return err
	}
	c.process = process
	return nil
}

func (s *supervisor) run(name string, args []string) (*proc.Process, error) {
	path := s.binary[name]
	if path == "" {
		return nil, fmt.Errorf("%s was not built", name)
	}
	log, err := os.OpenFile(s.log(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", name, err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), log.Close())
	}
	process, err := s.reaper.Start(path, args, &os.ProcAttr{Dir: "/", Env: s.env, Files: []*os.File{null, log, log}})
	return process, errors.Join(err, null.Close(), log.Close())
}

// command runs a program to its end.
func (s *supervisor) command(ctx context.Context, name string, args ...string) error {
	process, err := s.run(name, args)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", name, ctx.Err())
	case <-process.Done():
	}
	if err := process.Err(); err != nil {
		return fmt.Errorf("%s: %w%s", name, err, s.tail(name))
	}
	return nil
}

// died returns an error for the first component that has ended, with the last lines of its log.
func (s *supervisor) died() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.running {
		if state := c.state(); state != stateRunning {
			return fmt.Errorf("%s has ended: %s%s", c.name, state, s.tail(c.name))
		}
	}
	return nil
}

// states tells of every component that was started.
func (s *supervisor) states() []ComponentStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []ComponentStatus
	for _, c := range s.running {
		all = append(all, ComponentStatus{Name: c.name, Pid: c.process.Pid, State: c.state()})
	}
	return all
}

const stateRunning = "running"

func (c *component) state() string {
	select {
	case <-c.process.Done():
	default:
		return stateRunning
	}
	if err := c.process.Err(); err != nil {
		return err.Error()
	}
	return "exit code 0"
}

func (s *supervisor) log(name string) string { return filepath.Join(s.logDir, name+".log") }

// tail is the end of a log, indented below an error message.
func (s *supervisor) tail(name string) string {
	const lines, window = 20, 16 << 10
	file, err := os.Open(s.log(name))
	if err != nil {
		return fmt.Sprintf(" (no log: %v)", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fmt.Sprintf(" (no log: %v)", err)
	}
	raw := make([]byte, min(info.Size(), window))
	n, err := file.ReadAt(raw, info.Size()-int64(len(raw)))
	if n == 0 {
		return fmt.Sprintf(" (its log %s is empty: %v)", s.log(name), err)
	}
	all := strings.Split(strings.TrimRight(string(raw[:n]), "\n"), "\n")
	return fmt.Sprintf("; the end of %s:\n    %s", s.log(name), strings.Join(all[max(0, len(all)-lines):], "\n    "))
}
