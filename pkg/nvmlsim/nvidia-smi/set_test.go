package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvml"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// onHost runs the program as on the node that has its state there.
func onHost(dir, line string) (string, int) {
	var out bytes.Buffer
	code := tool{devices: container{}, identity: filepath.Join(dir, "none"), state: filepath.Join(dir, "state.json"), out: &out}.run(strings.Fields(line))
	return out.String(), code
}

func simulated(t *testing.T, boards string) (*nvmlsim.Node, string) {
	t.Helper()
	dir := t.TempDir()
	spec, err := nvmlsim.Parse(boards + ",state=" + dir)
	require.NoError(t, err)
	n, err := nvmlsim.Open(spec)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close()) })
	return n, dir
}

// is what the simulated node says of its boards.
func is(t *testing.T, n *nvmlsim.Node) []string {
	t.Helper()
	boards, err := n.Boards()
	require.NoError(t, err)
	var all []string
	for _, b := range boards {
		all = append(all, string(b.TimeSlice)+" "+b.ComputeMode)
	}
	return all
}

func TestSettingsReachTheNode(t *testing.T) {
	n, dir := simulated(t, "2xL40S,1xH100-SXM5-80GB,mig=on")
	boards, err := n.Boards()
	require.NoError(t, err)
	made, err := n.CreateInstance("2", "3g.40gb", nil, true)
	require.NoError(t, err)
	uuid := boards[1].UUID
	for _, step := range []struct{ line, want string }{
		{"compute-policy -i " + uuid + " --set-timeslice=1", "Short DEFAULT"},
		{"-i " + uuid + " -c EXCLUSIVE_PROCESS", "Short EXCLUSIVE_PROCESS"},
		{"compute-policy -i 1 --set-timeslice 3", "Long EXCLUSIVE_PROCESS"},
		{"-i 1 -c 0", "Long DEFAULT"},
		{"compute-policy --id=1 --set-timeslice=2", "Medium DEFAULT"},
	} {
		_, code := onHost(dir, step.line)
		require.Zero(t, code, step.line)
		require.Equal(t, []string{"Default DEFAULT", step.want, "Default DEFAULT"}, is(t, n), step.line)
	}
	// The rest of the state is as it was, and goes on.
	after, err := n.Boards()
	require.NoError(t, err)
	require.Equal(t, []gpu.Instance{made}, after[2].Instances)
	require.NoError(t, n.Reset("1"))
	require.Equal(t, []string{"Default DEFAULT", "Default DEFAULT", "Default DEFAULT"}, is(t, n))
}

func TestSettingsAreRefused(t *testing.T) {
	n, dir := simulated(t, "2xL40S,1xH100-SXM5-80GB,mig=on")
	require.NoError(t, n.Lose("1"))
	for line, want := range map[string]int{
		"compute-policy -i 2 --set-timeslice=1":     exitNotSupported,
		"-i 2 -c DEFAULT":                           exitNotSupported,
		"compute-policy -i 1 --set-timeslice=1":     exitLost,
		"compute-policy -i 7 --set-timeslice=1":     exitNotFound,
		"compute-policy -i 0 --set-timeslice=4":     exitArgument,
		"compute-policy -i 0 --set-timeslice=short": exitArgument,
		"compute-policy -i 0":                       exitArgument,
		"compute-policy -i 0 -c DEFAULT":            exitArgument,
		"-i 0 --set-timeslice=1":                    exitArgument,
		"-i 0 -c SHARED":                            exitArgument,
		"-i 0":                                      exitArgument,
	} {
		_, code := onHost(dir, line)
		require.Equal(t, want, code, line)
	}
	require.Equal(t, []string{"Default DEFAULT", "Default DEFAULT", "Default DEFAULT"}, is(t, n))

	// A container has the program and not the node's state.
	for _, line := range []string{"compute-policy -i 0 --set-timeslice=1", "-i 0 -c DEFAULT"} {
		out, code := run(t, container{"nvidia1": "195:1"}, strings.Fields(line)...)
		require.Equal(t, exitNoPermission, code)
		require.Contains(t, out, "Insufficient Permissions")
	}
}

// Nobody's change is lost when several programs and the driver change the state at once.
func TestSettingsBesideOtherChanges(t *testing.T) {
	n, dir := simulated(t, "8xL40S")
	var wg sync.WaitGroup
	for index := range 8 {
		wg.Go(func() {
			for _, slice := range []int{3, 2, 1} {
				_, code := onHost(dir, fmt.Sprintf("compute-policy -i %d --set-timeslice=%d", index, slice))
				assert.Zero(t, code)
			}
		})
		wg.Go(func() {
			for pid := range 5 {
				assert.NoError(t, n.AddClient(fmt.Sprint(index), nvmlsim.Client{PID: pid + 1}))
			}
		})
	}
	wg.Wait()
	boards, err := n.Boards()
	require.NoError(t, err)
	for _, b := range boards {
		require.Equal(t, gpu.TimeSliceShort, b.TimeSlice)
		require.Len(t, b.Clients, 5)
	}
}

// The program that is built and installed does for the adapter what a real one does, and nothing for a container.
func TestTheProgramOnTheNode(t *testing.T) {
	program := filepath.Join(t.TempDir(), "nvidia-smi")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	spec, err := nvmlsim.Parse("1xL40S,state=" + t.TempDir())
	require.NoError(t, err)
	n, err := nvmlsim.Open(spec, nvmlsim.WithSMI(program))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close()) })
	adapter := nvml.New(n.Interface(), nvml.WithDriver(n.DriverRoot(), ""))
	require.NoError(t, adapter.Open(t.Context()))
	t.Cleanup(func() { require.NoError(t, adapter.Close()) })
	boards, err := n.Boards()
	require.NoError(t, err)

	installed := filepath.Join(n.DriverRoot(), "usr/bin/nvidia-smi")
	require.NoError(t, exec.CommandContext(t.Context(), installed, "-c", "EXCLUSIVE_PROCESS").Run())
	require.Equal(t, []string{"Default EXCLUSIVE_PROCESS"}, is(t, n))
	require.NoError(t, adapter.SetTimeSlice(t.Context(), boards[0].UUID, gpu.TimeSliceShort))
	require.Equal(t, []string{"Short DEFAULT"}, is(t, n))

	// Elsewhere than in the node's state directory it is as in a container.
	var exit *exec.ExitError
	require.ErrorAs(t, exec.CommandContext(t.Context(), program, "compute-policy", "--set-timeslice=3").Run(), &exit)
	require.Equal(t, exitNoPermission, exit.ExitCode())
	require.Equal(t, []string{"Short DEFAULT"}, is(t, n))
}
