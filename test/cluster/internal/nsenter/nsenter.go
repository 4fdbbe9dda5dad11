// Package nsenter runs commands inside a box: in all its namespaces and its cgroups.
package nsenter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Box is where commands run.
type Box struct {
	// Init is a pidfd of the box's pid 1.
	Init int
	// Helper is the hidden command of this program that calls Arrive.
	Helper string
}

const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP

// Run runs a command inside the box and returns when it ends. The command's path is looked up inside, and its directory
// is one inside. Signals that this process gets are handed on.
func (b Box) Run(ctx context.Context, cmd *exec.Cmd) error {
	result := make(chan error, 1)
	go func() {
		// The thread stays in the box and ends with this goroutine, for it is never unlocked. The command's life hangs
		// on the thread (see Arrive), which is why this goroutine waits for it.
		runtime.LockOSThread()
		result <- b.run(ctx, cmd)
	}()
	return <-result
}

func (b Box) run(ctx context.Context, cmd *exec.Cmd) error {
	// A mount namespace cannot be entered while the working directory is shared with other threads.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter the box: %w", err)
	}
	if err := unix.Setns(b.Init, namespaces); err != nil {
		return fmt.Errorf("enter the box: %w", err)
	}
	if cmd.Dir != "" {
		if _, err := os.Stat(cmd.Dir); err != nil {
			return fmt.Errorf("the working directory is not visible inside the box, change to another one: %w", err)
		}
	}
	// The helper is this very program, whatever its path means inside.
	cmd.Path = "/proc/self/exe"
	cmd.Args = append([]string{"cluster", b.Helper, "--"}, cmd.Args...)
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a command inside the box: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	terminal := hasTerminal()
	for {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			_ = cmd.Process.Kill() // it may have ended
			return errors.Join(ctx.Err(), <-ended)
		case s := <-signals:
			if number, ok := s.(unix.Signal); ok && handOn(number, terminal) {
				_ = cmd.Process.Signal(number) // it may have ended
			}
		}
	}
}

// handOn tells which signals are the command's. What the terminal sends, it sends to the command as well.
func handOn(s unix.Signal, terminal bool) bool {
	switch s {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE:
		return false
	case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGWINCH, unix.SIGCONT, unix.SIGTTIN, unix.SIGTTOU:
		return !terminal
	}
	return true
}

func hasTerminal() bool {
	_, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS)
	return err == nil
}

// Arrive is called by the helper inside the box, and becomes the command. It returns only an error.
func Arrive(args []string) error {
	if len(args) == 0 {
		return errors.New("no command given")
	}
	runtime.LockOSThread()
	// The command ends with the process outside that waits for it. SysProcAttr.Pdeathsig cannot do that, for it takes a
	// parent outside of the pid namespace, which has number 0 here, for a dead one.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("bind the command's life to its caller's: %w", err)
	}
	if err := joinCgroups("/sys/fs/cgroup"); err != nil {
		return err
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("find the command inside the box: %w", err)
	}
	if err := unix.Exec(path, args, os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// joinCgroups moves this process to where the box's own processes are, so that it is counted there.
func joinCgroups(root string) error {
	files := []string{filepath.Join(root, "box/cgroup.procs")} // cgroup v2
	if _, err := os.Stat(files[0]); errors.Is(err, fs.ErrNotExist) {
		files, err = filepath.Glob(filepath.Join(root, "*/cgroup.procs"))
		if err != nil {
			return fmt.Errorf("list the box's cgroups: %w", err)
		}
	}
	for _, file := range files {
		if strings.Contains(filepath.Base(filepath.Dir(file)), ",") {
			continue // the same hierarchy has a link for each of its controllers
		}
		if err := os.WriteFile(file, []byte("0"), 0o644); err != nil {
			return fmt.Errorf("join the box's cgroups: %w", err)
		}
	}
	return nil
}
