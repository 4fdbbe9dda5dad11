//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// clusterName begins the names of all clusters that these tests start.
const clusterName = "e2e-box"

// patience bounds the wait for what happens by itself. It says nothing about speed: a busy machine is slow.
const patience = time.Minute

// binary is the program under test.
var binary string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("these tests start clusters: run them as root")
	}
	dir, err := os.MkdirTemp("", "cluster-e2e-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary = filepath.Join(dir, "cluster")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "..")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return 1, fmt.Errorf("build the program under test: %w", err)
	}
	// Not measured with the first start, and not interrupted.
	tools := exec.Command(binary, "build")
	tools.Stdout, tools.Stderr = os.Stdout, os.Stderr
	if err := tools.Run(); err != nil {
		return 1, fmt.Errorf("build the tools: %w", err)
	}
	return m.Run(), nil
}

// command is a call of the program under test. It cannot hang: a start has a timeout, but the test's is shorter.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, binary, args...)
}

// try runs the program and returns its output and error.
func try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := command(t, args...).CombinedOutput()
	return string(out), err
}

// must runs the program, which has to succeed, and returns its output.
func must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := try(t, args...)
	if err != nil {
		t.Fatalf("cluster %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// up starts a cluster that is down again at the end of the test.
func up(t *testing.T, name string) string {
	t.Helper()
	t.Cleanup(func() {
		// The test's context is over by now.
		var out bytes.Buffer
		down := exec.Command(binary, "down", "--name", name)
		down.Stdout, down.Stderr = &out, &out
		if err := down.Run(); err != nil {
			t.Errorf("down: %v\n%s", err, out.String())
		}
	})
	return must(t, "up", "--name", name)
}
