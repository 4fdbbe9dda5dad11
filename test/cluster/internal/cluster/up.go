package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-project/kerf/test/cluster/internal/box"
	"github.com/kerf-project/kerf/test/cluster/internal/cgroup"
	"github.com/kerf-project/kerf/test/cluster/internal/kube"
	"github.com/kerf-project/kerf/test/cluster/internal/layout"
	"github.com/kerf-project/kerf/test/cluster/internal/prereq"
	"github.com/kerf-project/kerf/test/cluster/internal/steps"
)

// NodeName is the name of the node in every cluster.
const NodeName = "kerf-node"

// Options of a start.
type Options struct {
	Kit
	// FeatureGates, RuntimeConfig and Verbosity go to the components of Kubernetes.
	FeatureGates, RuntimeConfig string
	Verbosity                   int
	// AtStep is called when a step begins; tests interrupt a start there.
	AtStep func(steps.Step)
}

// Up starts the cluster and returns when it can be used. For one that runs already it does nothing.
func Up(ctx context.Context, c layout.Cluster, o Options) error {
	running, err := reuse(ctx, c, o)
	if err != nil || running {
		return err
	}
	printer := steps.NewPrinter(o.Out, time.Now, o.AtStep)
	var host prereq.Host
	err = printer.Do(steps.Check, func() (err error) {
		host, err = o.Check()
		return err
	})
	if err != nil {
		return err
	}
	var parts Parts
	err = printer.Do(steps.Tools, func() (err error) {
		o.Out = &lineBreaker{printer: printer, out: o.Out}
		parts, err = o.Kit.Make(ctx, host)
		return err
	})
	if err != nil {
		return err
	}
	s := &start{cluster: c, printer: printer}
	if err := printer.Do(steps.Guardian, func() error { return s.launch(ctx, o, host, parts) }); err != nil {
		return errors.Join(err, s.abort(0))
	}
	return s.follow(ctx)
}

// reuse says whether the cluster runs already, as it was asked for.
func reuse(ctx context.Context, c layout.Cluster, o Options) (bool, error) {
	s, err := readState(c)
	if err != nil || !s.Init.alive() {
		return false, nil //nolint:nilerr // no readable state is no running cluster; what is left of one is removed later
	}
	spec, err := box.ReadSpec(c.Spec())
	if err != nil {
		return false, err
	}
	if spec.Settings != o.settings() {
		return false, fmt.Errorf("cluster %s runs with other settings (%s): take it down first", c.Name, spec.Settings)
	}
	status, err := box.AskStatus(ctx, c.Socket())
	if err != nil {
		return false, fmt.Errorf("cluster %s does not answer, or is being started (\"down\" ends it): %w", c.Name, err)
	}
	if status.Problem != "" {
		return false, fmt.Errorf("cluster %s runs, but cannot be used (see \"status\" and \"logs\", or take it down): %s", c.Name, status.Problem)
	}
	_, err = fmt.Fprintf(o.Out, "cluster %s is up\n", c.Name)
	return true, err
}

func (o Options) settings() string {
	return fmt.Sprintf("kubernetes=%s feature-gates=%s runtime-config=%s", o.Kubernetes, o.FeatureGates, o.RuntimeConfig)
}

// start is a start between its guardian's launch and its end.
type start struct {
	cluster  layout.Cluster
	printer  *steps.Printer
	guardian *exec.Cmd
	lifeline *os.File
	events   *os.File
	lock     *os.File
	groups   []cgroup.Group
}

// launch clears what an earlier cluster of this name left, and starts the guardian.
func (s *start) launch(ctx context.Context, o Options, host prereq.Host, parts Parts) (err error) {
	if s.lock, err = lock(ctx, s.cluster, 10*time.Second); err != nil {
		return err
	}
	old, err := readState(s.cluster)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := clear(s.cluster, old); err != nil {
		return err
	}
	if s.groups, err = cgroup.Plan("/proc", s.cluster.Cgroup()); err != nil {
		return err
	}
	spec, err := s.spec(o, host, parts)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.cluster.Logs(), 0o700); err != nil {
		return fmt.Errorf("create the log directory: %w", err)
	}
	if err := errors.Join(writeJSON(s.cluster.Spec(), spec), state{Groups: s.groups}.write(s.cluster)); err != nil {
		return err
	}
	return s.startGuardian()
}

// clear removes what a dead cluster left, without giving up the lock of the run directory.
func clear(c layout.Cluster, old state) error {
	if err := old.Guardian.end(5 * time.Second); err != nil {
		return err
	}
	if err := sweep(c, old, true); err != nil {
		return err
	}
	if err := os.RemoveAll(c.Logs()); err != nil {
		return fmt.Errorf("remove old logs: %w", err)
	}
	return nil
}

func (s *start) spec(o Options, host prereq.Host, parts Parts) (box.Spec, error) {
	keep := []string{o.Cache, o.Source}
	for _, find := range []func() (string, error){os.Getwd, os.UserHomeDir} {
		// Where it cannot be found it need not be kept.
		if dir, err := find(); err == nil {
			keep = append(keep, dir)
		}
	}
	return box.Spec{
		Name:     s.cluster.Name,
		Settings: o.settings(),
		Groups:   s.groups,
		RunDir:   s.cluster.Dir(),
		LogDir:   s.cluster.Logs(),
		Socket:   s.cluster.Socket(),
		Keep:     keep,
		Images:   parts.Images,
		Tools:    parts.Path(),
		Kube: kube.Spec{
			NodeName:      NodeName,
			ConfigDir:     s.cluster.Config(),
			Binary:        parts.Binaries,
			CNIDir:        host.CNIDir,
			FeatureGates:  o.FeatureGates,
			RuntimeConfig: o.RuntimeConfig,
			Verbosity:     o.Verbosity,
		},
	}, nil
}

func (s *start) startGuardian() (err error) {
	log, err := os.Create(s.cluster.Log("guardian"))
	if err != nil {
		return fmt.Errorf("create the guardian's log: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	theirLifeline, lifeline, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("create the guardian's lifeline: %w", err)
	}
	events, theirEvents, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("create the progress stream: %w", err)
	}
	s.lifeline, s.events = lifeline, events
	s.guardian = exec.Command("/proc/self/exe", GuardianCommand, "--name", s.cluster.Name)
	s.guardian.Dir = "/"
	s.guardian.Env = append(os.Environ(), layout.NameVariable+"="+s.cluster.Name)
	s.guardian.Stdout, s.guardian.Stderr = log, log
	s.guardian.ExtraFiles = []*os.File{theirLifeline, theirEvents, s.lock}
	// A session of its own: neither the end of the terminal nor a signal to the command's group ends it.
	s.guardian.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := s.guardian.Start(); err != nil {
		return fmt.Errorf("start the guardian: %w", err)
	}
	return errors.Join(theirLifeline.Close(), theirEvents.Close())
}

// follow shows the start until the cluster is up, and then leaves it to itself.
func (s *start) follow(ctx context.Context) error {
	followed := make(chan error, 1)
	go func() { followed <- s.printer.Follow(s.events) }()
	select {
	case err := <-followed:
		if err != nil {
			return errors.Join(err, s.abort(5*time.Second), s.hint())
		}
	case <-ctx.Done():
		s.printer.Break()
		return errors.Join(ctx.Err(), s.abort(0))
	}
	if _, err := s.lifeline.WriteString(commit); err != nil {
		return errors.Join(fmt.Errorf("tell the guardian that the cluster is up: %w", err), s.abort(0))
	}
	return errors.Join(s.lifeline.Close(), s.lock.Close())
}

// abort makes the guardian remove everything and waits until it has. A box that failed ends by itself: given that time,
// the guardian sees that it did, and keeps its logs.
func (s *start) abort(patience time.Duration) error {
	if s.guardian == nil || s.guardian.Process == nil {
		if s.lock == nil {
			return nil
		}
		return errors.Join(sweep(s.cluster, state{}, false), s.lock.Close())
	}
	impatient := time.AfterFunc(patience, func() { _ = s.lifeline.Close() })
	defer impatient.Stop()
	var failed *exec.ExitError
	if err := s.guardian.Wait(); err != nil && !errors.As(err, &failed) {
		return fmt.Errorf("wait for the guardian: %w", err)
	}
	if failed == nil {
		return s.lock.Close()
	}
	// It could not do its work, or was killed: do it here. It holds the lock no more, this process does.
	current, err := readState(s.cluster)
	if errors.Is(err, os.ErrNotExist) {
		current, err = state{Groups: s.groups}, nil
	}
	return errors.Join(err, sweep(s.cluster, current, true), s.lock.Close())
}

// hint tells where the logs are, if there are any.
func (s *start) hint() error {
	if _, err := os.Stat(s.cluster.Logs()); err != nil {
		return nil //nolint:nilerr // no logs, no hint
	}
	return fmt.Errorf("the logs are kept in %s until the next \"up\" or \"down\"", s.cluster.Logs())
}

// lineBreaker ends the printer's unfinished line before the output of what a step does.
type lineBreaker struct {
	printer *steps.Printer
	out     io.Writer
}

func (l *lineBreaker) Write(p []byte) (int, error) {
	l.printer.Break()
	return l.out.Write(p)
}

// StopAt returns an AtStep function that kills this process at one step, and nil for the empty name.
func StopAt(name string) (func(steps.Step), error) {
	if name == "" {
		return nil, nil
	}
	if steps.Index(steps.Step(name)) == 0 {
		var all []string
		for _, s := range steps.All() {
			all = append(all, string(s))
		}
		return nil, fmt.Errorf("step %q is none of: %s", name, strings.Join(all, "; "))
	}
	return func(step steps.Step) {
		if string(step) == name {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {} // the signal may take a moment
		}
	}, nil
}

// logName is the name of a log file without its ending.
func logName(path string) string { return strings.TrimSuffix(filepath.Base(path), ".log") }
