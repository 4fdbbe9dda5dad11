package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-project/kerf/test/cluster/internal/box"
	"github.com/kerf-project/kerf/test/cluster/internal/cgroup"
	"github.com/kerf-project/kerf/test/cluster/internal/layout"
	"github.com/kerf-project/kerf/test/cluster/internal/steps"
)

// The hidden commands by which this program calls itself.
const (
	GuardianCommand = "internal-guardian"
	InitCommand     = "internal-init"
	EnterCommand    = "internal-enter"
)

// Descriptors that the guardian inherits.
const (
	lifelineFD = 3 // the command that waits for the start holds the other end
	eventsFD   = 4 // progress, read by that command
	lockFD     = 5 // the lock of the run directory, held until the start is over
)

// commit is what the command writes when it has seen the cluster up. A lifeline that ends without it means that the
// command was killed.
const commit = "up"

// namespaces of a box. No user namespace: pods need real root.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP

// Guard is the guardian: it starts the box, and removes everything when the box ends, when it is told to end, or when the
// command that started it ends before the cluster is up.
func Guard(ctx context.Context, c layout.Cluster) error {
	// The box dies with the *thread* that started it (see start), so that thread must live as long as the guardian.
	runtime.LockOSThread()
	for fd := lifelineFD; fd <= lockFD; fd++ {
		unix.CloseOnExec(fd)
	}
	g := &guardian{
		cluster:  c,
		lifeline: os.NewFile(lifelineFD, "lifeline"),
		events:   os.NewFile(eventsFD, "events"),
		lock:     os.NewFile(lockFD, "lock"),
	}
	err := g.run(ctx)
	if err != nil {
		steps.NewSender(g.events).Send(steps.Event{Error: err.Error()})
	}
	// The command waits for the end of the events before it says that the start failed: all must be removed by then.
	return errors.Join(err, sweep(c, g.state, g.failed))
}

type guardian struct {
	cluster                layout.Cluster
	lifeline, events, lock *os.File
	state                  state
	// failed says that the box ended by itself: then its logs are worth keeping.
	failed bool
}

func (g *guardian) run(ctx context.Context) error {
	spec, err := box.ReadSpec(g.cluster.Spec())
	if err != nil {
		return err
	}
	g.state.Groups = spec.Groups
	if g.state.Guardian, err = identify(os.Getpid()); err != nil {
		return err
	}
	if err := g.state.write(g.cluster); err != nil {
		return err
	}
	var cmd *exec.Cmd
	err = steps.NewSender(g.events).Do(steps.Cgroups, func() error {
		cmd, err = g.start(spec)
		return err
	})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	committed := make(chan bool, 1)
	go func() {
		said, _ := io.ReadAll(g.lifeline) // an error is an end, too
		committed <- string(said) == commit
	}()
	for {
		select {
		case <-ctx.Done():
		case up := <-committed:
			if up {
				// From here on the cluster stands alone.
				if err := errors.Join(g.events.Close(), g.lock.Close()); err != nil {
					return fmt.Errorf("let go of the start: %w", err)
				}
				continue
			}
		case err := <-ended:
			g.failed = true
			fmt.Fprintf(os.Stderr, "%s the box ended: %v\n", time.Now().Format(time.RFC3339), err)
			return nil
		}
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("kill the box: %w", err)
		}
		fmt.Fprintf(os.Stderr, "%s the box was taken down: %v\n", time.Now().Format(time.RFC3339), <-ended)
		return nil
	}
}

// start starts the box's pid 1 in new namespaces.
func (g *guardian) start(spec box.Spec) (*exec.Cmd, error) {
	if err := cgroup.Create(spec.Groups); err != nil {
		return nil, err
	}
	// A cgroup namespace begins at the cgroup of the process that creates it: go there, and come back.
	if err := cgroup.Enter(spec.Groups, os.Getpid()); err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", InitCommand, "--name", g.cluster.Name)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{g.events}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: syscall.SIGKILL}
	started := cmd.Start()
	left := cgroup.Leave(spec.Groups, os.Getpid())
	if started != nil {
		return nil, errors.Join(fmt.Errorf("start the box: %w", started), left)
	}
	if err := errors.Join(left, g.remember(cmd.Process.Pid)); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	return cmd, nil
}

func (g *guardian) remember(pid int) (err error) {
	if g.state.Init, err = identify(pid); err != nil {
		return err
	}
	return g.state.write(g.cluster)
}

// Init is the box's pid 1, started by the guardian.
func Init(ctx context.Context, c layout.Cluster) error {
	unix.CloseOnExec(3)
	spec, err := box.ReadSpec(c.Spec())
	if err != nil {
		return err
	}
	return box.Run(ctx, spec, os.NewFile(3, "events"))
}
