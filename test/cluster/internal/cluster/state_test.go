package cluster

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kerf-project/kerf/test/cluster/internal/layout"
)

func sleeper(t *testing.T) (process, *exec.Cmd) {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return p, cmd
}

func TestProcessEnds(t *testing.T) {
	for name, polite := range map[string]time.Duration{"killed": 0, "politely": 5 * time.Second} {
		t.Run(name, func(t *testing.T) {
			p, cmd := sleeper(t)
			if !p.alive() {
				t.Fatal("a living process is taken for dead")
			}
			if err := p.end(polite); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if p.alive() {
				t.Error("it lives on")
			}
			if err := p.end(polite); err != nil {
				t.Errorf("ending a dead process: %v", err)
			}
		})
	}
}

func TestReusedPidIsAnotherProcess(t *testing.T) {
	p, _ := sleeper(t)
	stranger := p
	stranger.Start-- // an earlier process of the same number
	if stranger.alive() {
		t.Error("a stranger is taken for the process")
	}
	if err := stranger.end(0); err != nil {
		t.Fatal(err)
	}
	if !p.alive() {
		t.Error("a stranger was killed")
	}
}

func testCluster(t *testing.T) layout.Cluster {
	t.Helper()
	c, err := layout.NewIn(filepath.Join(t.TempDir(), "base"), "a")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLockIsExclusiveAndLeavesNothing(t *testing.T) {
	c := testCluster(t)
	first, err := lock(t.Context(), c, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(t.Context(), c, 50*time.Millisecond); !errors.Is(err, errBusy) {
		t.Errorf("a second lock: %v, want busy", err)
	}
	// The holder removes the directory while another waits: the other must not hold a lock on what is gone.
	got := make(chan *os.File)
	go func() {
		second, err := lock(t.Context(), c, 5*time.Second)
		if err != nil {
			t.Error(err)
		}
		got <- second
	}()
	time.Sleep(50 * time.Millisecond)
	if err := errors.Join(sweep(c, state{}, false), first.Close()); err != nil {
		t.Fatal(err)
	}
	second := <-got
	if second == nil || !sameDir(second, c.Dir()) {
		t.Fatal("the second lock is on a directory that is gone")
	}
	if err := errors.Join(sweep(c, state{}, false), second.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.Parent()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
}

func TestSweepKeepsLogs(t *testing.T) {
	c := testCluster(t)
	if err := os.MkdirAll(c.Logs(), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{c.Log("etcd"), c.State()} {
		if err := os.WriteFile(file, []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := sweep(c, state{}, true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.Log("etcd")); err != nil {
		t.Errorf("the log is gone: %v", err)
	}
	if _, err := os.Stat(c.State()); err == nil {
		t.Error("the state is still there")
	}
}
