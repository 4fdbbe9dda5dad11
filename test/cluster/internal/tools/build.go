package tools

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Builder builds what the cache lacks.
type Builder struct {
	// Tools to build.
	Tools []Tool
	// Cache is the directory of the cache.
	Cache string
	// Out gets the progress.
	Out io.Writer
	// Go is the go command; empty for the one in PATH.
	Go string
}

// Missing lists the tools that the cache lacks.
func (b Builder) Missing() ([]Tool, error) {
	var missing []Tool
	for _, t := range b.Tools {
		_, dir, err := b.place(t)
		if err != nil {
			return nil, err
		}
		if !isDir(dir) {
			missing = append(missing, t)
		}
	}
	return missing, nil
}

// Build returns the path of every executable, having built those that the cache lacks.
func (b Builder) Build(ctx context.Context) (map[string]string, error) {
	missing, err := b.Missing()
	if err != nil {
		return nil, err
	}
	for i, t := range missing {
		if err := b.build(ctx, t, i+1, len(missing)); err != nil {
			return nil, err
		}
	}
	binaries := map[string]string{}
	for _, t := range b.Tools {
		_, dir, err := b.place(t)
		if err != nil {
			return nil, err
		}
		for name := range t.Packages {
			binaries[name] = filepath.Join(dir, name)
		}
	}
	return binaries, nil
}

func (b Builder) place(t Tool) (version, dir string, err error) {
	if version, err = t.Version(); err != nil {
		return "", "", err
	}
	id, err := t.id(version)
	if err != nil {
		return "", "", err
	}
	return version, filepath.Join(b.Cache, "tools", id), nil
}

func (b Builder) build(ctx context.Context, t Tool, n, of int) (err error) {
	version, dir, err := b.place(t)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("create the cache: %w", err)
	}
	begin := time.Now()
	names := slices.Sorted(maps.Keys(t.Packages))
	fmt.Fprintf(b.Out, "  build %d/%d: %s %s (%s)\n", n, of, t.Name, version, strings.Join(names, ", "))
	unlock, err := b.lock(ctx, dir+".lock", t.Name)
	if err != nil {
		return err
	}
	defer unlock()
	if isDir(dir) {
		return nil // another process built it while this one waited
	}
	// Under the lock, whatever is left of an earlier build of this tool is dead.
	temporary := dir + ".unfinished"
	if err := os.RemoveAll(temporary); err != nil {
		return fmt.Errorf("remove an unfinished build: %w", err)
	}
	if err := os.Mkdir(temporary, 0o755); err != nil {
		return fmt.Errorf("create the cache: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temporary))
		}
	}()
	if err := b.compile(ctx, t, version, temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, dir); err != nil {
		return fmt.Errorf("finish the build of %s: %w", t.Name, err)
	}
	fmt.Fprintf(b.Out, "  build %d/%d: %s done in %s\n", n, of, t.Name, time.Since(begin).Round(100*time.Millisecond))
	return nil
}

func (b Builder) compile(ctx context.Context, t Tool, version, out string) error {
	// One output directory takes the executables of several packages, each under the last part of its path; a single
	// package may end in a version instead.
	target := out + "/"
	if len(t.Packages) == 1 {
		for name := range t.Packages {
			target = filepath.Join(out, name)
		}
	}
	args := append(t.args(version), "-o", target)
	args = append(args, slices.Sorted(maps.Values(t.Packages))...)
	goCommand := b.Go
	if goCommand == "" {
		goCommand = "go"
	}
	stop := b.tick(ctx)
	defer stop()
	cmd := exec.CommandContext(ctx, goCommand, args...)
	cmd.Dir = t.Dir
	cmd.Env = append(append(os.Environ(), "GOWORK=off"), t.Env...)
	// Compilers are children of the go command, and must end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	output, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return fmt.Errorf("build %s: %w", t.Name, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("build %s in %s: %w\n%s", t.Name, t.Dir, err, lastLines(string(output), 20))
	}
	return nil
}

// tick shows every half minute that a long build is alive.
func (b Builder) tick(ctx context.Context) (stop func()) {
	ctx, stop = context.WithCancel(ctx)
	go func() {
		begin := time.Now()
		ticker := time.NewTicker(30 * time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				fmt.Fprintf(b.Out, "    ... still building after %s\n", time.Since(begin).Round(time.Second))
			}
		}
	}()
	return stop
}

// lock waits for other builders of the same tool. The lock ends with the process, however it ends.
func (b Builder) lock(ctx context.Context, path, name string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the lock of a build: %w", err)
	}
	for told := false; ; told = true {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock the build of %s: %w", name, err), file.Close())
		}
		if !told {
			fmt.Fprintf(b.Out, "    another process is building %s: waiting for it\n", name)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for another build of %s: %w", name, ctx.Err()), file.Close())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
