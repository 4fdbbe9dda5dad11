//go:build sweep

package sweep

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/claims/crash"
)

const driverName = "gpu.nvidia.com"

// binary is "kerf" built with the tag sweep, and smi the simulated nvidia-smi, which has to lie beside it.
const (
	binary = "../../bin/kerf-sweep"
	smi    = "../../bin/kerf-sim-nvidia-smi"
)

// process is a running "kerf plugin".
type process struct {
	cmd *exec.Cmd
	// dir has what is the process' own: the kubelet's directories and the published inventory.
	dir string
	// alive ends with the process.
	alive context.Context
	exit  error
}

// start runs a plugin on the node. The name is that of its directory: a restart has that of the process before it.
func (n *node) start(name string, o crash.Options, flags ...string) *process {
	n.t.Helper()
	p := &process{dir: filepath.Join(n.dir, name)}
	for _, sub := range []string{"plugins", "registry", "state"} {
		require.NoError(n.t, os.MkdirAll(filepath.Join(p.dir, sub), 0o700))
	}
	sim := "sim:" + boards + ",state=" + n.path("sim")
	if n.faults {
		sim += ",faults=" + n.path("faults.yaml")
	}
	p.cmd = exec.Command(binary, append([]string{
		"plugin", "--node-name=" + nodeName, "--nvml=" + sim, "--kubeconfig=" + n.path("kubeconfig"), "--config=" + n.path("config.yaml"),
		"--state-dir=" + filepath.Join(p.dir, "state"), "--run-dir=" + n.path("run"), "--cdi-root=" + n.path("cdi"),
		"--kubelet-plugins-dir=" + filepath.Join(p.dir, "plugins"), "--kubelet-registry-dir=" + filepath.Join(p.dir, "registry"),
		"--kubelet-pod-resources-dir=" + n.path("pods"), "--http-endpoint=", "--recover-every=1h",
	}, flags...)...)
	p.cmd.Env = append(os.Environ(), "KERF_SWEEP_AT="+o.At, "KERF_SWEEP_LOG="+o.Log, "KERF_SWEEP_BREAK="+string(o.Break))
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	require.NoError(n.t, err)
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// Not even a test that is killed leaves a process.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(n.t, p.cmd.Start(), "make bin/kerf-sweep first")
	alive, ended := context.WithCancel(context.Background())
	p.alive = alive
	go func() {
		p.exit = p.cmd.Wait()
		ended()
	}()
	n.t.Cleanup(p.kill)
	return p
}

// kill ends it as a crash does. It may have ended before.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.alive.Done()
}

// died waits for the process to end, and reports whether it was killed.
func (p *process) died() error {
	select {
	case <-p.alive.Done():
	case <-time.After(patience):
		return errors.New("the process goes on")
	}
	var exit *exec.ExitError
	if !errors.As(p.exit, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		return errors.Join(errors.New("the process was not killed but ended"), p.exit)
	}
	return nil
}

// logs shows what the processes of a node have said, if the test has failed.
func (n *node) logs() {
	if !n.t.Failed() {
		return
	}
	files, _ := filepath.Glob(n.path("*/log"))
	for _, f := range files {
		text, _ := os.ReadFile(f)
		n.t.Logf("%s:\n%s", f, text[max(0, len(text)-8000):])
	}
}
