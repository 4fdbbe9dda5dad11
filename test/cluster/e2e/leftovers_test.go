//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kerf-project/kerf/test/cluster/internal/layout"
	"github.com/kerf-project/kerf/test/cluster/internal/steps"
)

func TestUpAndDownLeaveNothing(t *testing.T) {
	before := take(t)
	out := up(t, clusterName)
	rest := out
	for _, s := range steps.All() {
		_, after, found := strings.Cut(rest, string(s))
		if !found {
			t.Errorf("step %q was not shown, or not in its order:\n%s", s, out)
			continue
		}
		rest = after
	}
	if len(take(t).difference(before)) == 0 {
		t.Error("a running cluster is not seen: the snapshots see nothing")
	}
	must(t, "down", "--name", clusterName)
	expectSame(t, before, 0)
	if out := must(t, "down", "--name", clusterName); !strings.Contains(out, "was not up") {
		t.Errorf("a second down says %q", out)
	}
}

func TestUpKilledAtAnyStepLeavesNothing(t *testing.T) {
	before := take(t)
	for _, step := range steps.All() {
		t.Run(strings.ReplaceAll(string(step), " ", "-"), func(t *testing.T) {
			cmd := command(t, "up", "--name", clusterName)
			cmd.Env = append(os.Environ(), "KERF_CLUSTER_KILL_AT="+string(step))
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("up was not killed: %v\n%s", err, out)
			}
			if !strings.Contains(string(out), string(step)) {
				t.Fatalf("up was killed before it showed the step:\n%s", out)
			}
			expectSame(t, before, patience)
		})
	}
}

func TestUpInterruptedLeavesNothing(t *testing.T) {
	before := take(t)
	cmd := command(t, "up", "--name", clusterName)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// In the middle: there is something of everything.
	await(t, out, string(steps.Containerd))
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("an interrupted start succeeds")
	}
	// Unlike after kill -9, all is removed when the command returns.
	expectSame(t, before, 0)
}

// await reads until the text has come.
func await(t *testing.T, from io.Reader, text string) {
	t.Helper()
	var seen []byte
	for buffer := make([]byte, 512); !bytes.Contains(seen, []byte(text)); {
		n, err := from.Read(buffer)
		if err != nil {
			t.Fatalf("%q does not come: %v\n%s", text, err, seen)
		}
		seen = append(seen, buffer[:n]...)
	}
}

func TestDownAfterGuardianWasKilled(t *testing.T) {
	before := take(t)
	up(t, clusterName)
	killGuardian(t)
	must(t, "down", "--name", clusterName)
	expectSame(t, before, 0)
}

func TestUpAfterGuardianWasKilled(t *testing.T) {
	before := take(t)
	up(t, clusterName)
	killGuardian(t)
	if out, err := try(t, "status", "--name", clusterName); err == nil {
		t.Errorf("status of a dead cluster succeeds:\n%s", out)
	}
	must(t, "up", "--name", clusterName)
	must(t, "status", "--name", clusterName)
	must(t, "down", "--name", clusterName)
	expectSame(t, before, 0)
}

// killGuardian kills the guardian and waits until the box, which has to die with it, is dead.
func killGuardian(t *testing.T) {
	t.Helper()
	c, err := layout.New(clusterName)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(c.State())
	if err != nil {
		t.Fatal(err)
	}
	var state struct{ Guardian, Init struct{ Pid int } }
	if err := json.Unmarshal(raw, &state); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(state.Guardian.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); syscall.Kill(state.Init.Pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the box outlives its guardian")
		}
	}
}

func TestFailedStartShowsTheLogAndKeepsIt(t *testing.T) {
	before := take(t)
	t.Cleanup(func() { expectSame(t, before, 0) })
	out, err := try(t, "up", "--name", clusterName, "--feature-gates", "NoSuchGate=true")
	if err == nil {
		t.Error("a start with an unknown feature gate succeeds")
	}
	if !strings.Contains(out, "kube-apiserver has ended: exit code 1") || !strings.Contains(out, "NoSuchGate") {
		t.Errorf("the failure does not name the component and its words:\n%s", out)
	}
	if log := must(t, "logs", "--name", clusterName, "kube-apiserver"); !strings.Contains(log, "NoSuchGate") {
		t.Errorf("the log was not kept:\n%s", log)
	}
	must(t, "down", "--name", clusterName)
}
