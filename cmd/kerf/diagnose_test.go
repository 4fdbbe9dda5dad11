package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/kerf-project/kerf/pkg/diagnose"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// diagnosed runs kerf diagnose on a simulated node and returns what it prints and its exit code.
func diagnosed(t *testing.T, dir string, args ...string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	root := newRootCommand()
	root.SetOut(&out)
	root.SetArgs(append([]string{
		"diagnose", "--nvml=sim:1xH100-SXM5-80GB,state=" + filepath.Join(dir, "sim"), "--run-dir=" + filepath.Join(dir, "run"), "--state-dir=" + filepath.Join(dir, "state"),
		"--cdi-root=" + filepath.Join(dir, "cdi"), "--node-root=" + filepath.Join(dir, "node"), "--kubelet-registry-dir=" + filepath.Join(dir, "registry"),
	}, args...))
	err := root.ExecuteContext(t.Context())
	if err == nil {
		return out.String(), 0
	}
	var exit *exitError
	require.ErrorAs(t, err, &exit)
	return out.String(), exit.code
}

func TestDiagnoseExitCodes(t *testing.T) {
	dir := t.TempDir()
	_, code := diagnosed(t, dir)
	require.Equal(t, exitBlind, code, "there is no such node, and none is made")
	require.NoDirExists(t, filepath.Join(dir, "sim"))

	spec, err := nvmlsim.Parse("1xH100-SXM5-80GB,mig=on,state=" + filepath.Join(dir, "sim"))
	require.NoError(t, err)
	sim, err := nvmlsim.Open(spec)
	require.NoError(t, err)
	require.NoError(t, sim.Close())
	out, code := diagnosed(t, dir)
	require.Equal(t, exitFailures, code, "no plugin")
	require.Contains(t, out, "gpu-f7b3d578  NVIDIA H100 80GB HBM3")
	require.Contains(t, out, "not looked at: the API server")
	require.NotContains(t, out, "\x1b", "colours are for terminals")
	require.NoDirExists(t, filepath.Join(dir, "run"), "it makes nothing")

	for _, args := range [][]string{{"--output=xml"}, {"--bogus"}, {"what"}, {"--config=/nonexistent"}, {"--http-endpoint=x"}, {"--nvml=real:" + filepath.Join(dir, "libnvidia-ml.so.1")}} {
		out, code = diagnosed(t, dir, args...)
		require.Equal(t, exitBlind, code, args)
	}
	require.Contains(t, out, "libnvidia-ml.so.1 cannot be loaded", "the rest is reported all the same")
}

func TestExitCodes(t *testing.T) {
	looked := diagnose.Node{DriverVersion: "580"}
	for _, c := range []struct {
		node   diagnose.Node
		status diagnose.Status
		strict bool
		want   int
	}{
		{looked, diagnose.OK, true, 0},
		{looked, diagnose.Warn, false, 0},
		{looked, diagnose.Warn, true, exitWarnings},
		{looked, diagnose.Fail, false, exitFailures},
		{diagnose.Node{}, diagnose.Fail, false, exitBlind},
	} {
		require.Equal(t, c.want, exitCode(&diagnose.Report{Node: c.node, Status: c.status}, c.strict), "%+v", c)
	}
}

// A terminal gets colours, unless its user wants none.
func TestDiagnoseColors(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here: ", err)
	}
	defer master.Close()
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	defer terminal.Close()
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	defer file.Close()
	t.Setenv("NO_COLOR", "")
	require.True(t, colored(terminal))
	require.False(t, colored(file))
	require.False(t, colored(&bytes.Buffer{}))
	t.Setenv("NO_COLOR", "1")
	require.False(t, colored(terminal))
}

func TestDiagnoseForms(t *testing.T) {
	dir := t.TempDir()
	spec, err := nvmlsim.Parse("1xH100-SXM5-80GB,state=" + filepath.Join(dir, "sim"))
	require.NoError(t, err)
	sim, err := nvmlsim.Open(spec)
	require.NoError(t, err)
	require.NoError(t, sim.Close())
	for form, start := range map[string]string{"text": "node", "json": "{\n", "yaml": "at: ", "html": "<!DOCTYPE html>"} {
		out, code := diagnosed(t, dir, "-o", form)
		require.Equal(t, exitFailures, code)
		require.Equal(t, start, out[:len(start)])
	}
	out, _ := diagnosed(t, dir, "-o", "json", "--selfcheck", "--node-name=n")
	var report diagnose.Report
	require.NoError(t, json.Unmarshal([]byte(out), &report))
	require.Equal(t, "n", report.Node.Name)
	require.True(t, report.Node.Simulated)
	require.NotEmpty(t, report.SelfCheck.Inferred)
}

// Variables stand for flags that are not given, so that nothing needs to be given in the plugin's pod.
func TestFlagsFromTheEnvironment(t *testing.T) {
	for _, command := range []func() *cobra.Command{newPluginCommand, newDiagnoseCommand, newCleanupCommand} {
		cmd := command()
		t.Setenv("KERF_HOST_ROOT", "/host")
		t.Setenv("KERF_RUN_DIR", "/elsewhere")
		require.NoError(t, cmd.ParseFlags([]string{"--run-dir=/given"}))
		require.NoError(t, fromEnvironment(cmd.Flags()))
		require.Equal(t, "/host", cmd.Flag("host-root").Value.String())
		require.Equal(t, "/given", cmd.Flag("run-dir").Value.String())
	}
	t.Setenv("KERF_STRICT", "perhaps")
	require.ErrorContains(t, fromEnvironment(newDiagnoseCommand().Flags()), "KERF_STRICT")
}

// Every variable that the chart sets in the plugin's pod is a flag of the plugin, and of who looks after it.
func TestVariablesOfTheChart(t *testing.T) {
	files, err := filepath.Glob("../../test/chart/testdata/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		set := regexp.MustCompile(`KERF_[A-Z_]+`).FindAllString(string(text), -1)
		require.Contains(t, set, "KERF_RUN_DIR", file)
		for _, name := range set {
			flag := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, "KERF_"), "_", "-"))
			require.NotNil(t, newPluginCommand().Flag(flag), name)
			require.NotNil(t, newDiagnoseCommand().Flag(flag), name)
		}
	}
}

func TestExitError(t *testing.T) {
	cause := errors.New("cause")
	require.ErrorIs(t, &exitError{code: 3, err: cause}, cause)
	require.Equal(t, "cause", (&exitError{code: 3, err: cause}).Error())
	require.Equal(t, "exit code 2", (&exitError{code: 2}).Error())
	require.NoError(t, blind(nil))
}
