package main

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

func TestSim(t *testing.T) {
	dir := t.TempDir()
	spec, err := nvmlsim.Parse("1xH100-SXM5-80GB,1xL40S,state=" + dir)
	require.NoError(t, err)
	node, err := nvmlsim.Open(spec)
	require.NoError(t, err)
	defer node.Close()
	sim := func(args ...string) (string, error) {
		var out bytes.Buffer
		root := newRootCommand()
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetArgs(append([]string{"sim", "--state", dir}, args...))
		err := root.Execute()
		return out.String(), err
	}
	do := func(args ...string) string {
		t.Helper()
		out, err := sim(args...)
		require.NoError(t, err)
		return out
	}

	do("mig", "0", "on")
	require.Contains(t, do("create-instance", "0", "3g.40gb", "--start", "4", "--size", "4"), "3g.40gb at 4:4 (GPU instance 1)")
	do("create-instance", "0", "1g.10gb", "--no-compute-instance")
	do("client", "add", "0", "4242", "--gi", "1", "--ci", "0", "--process", "--command", "python3")
	do("client", "add", "1", "17")
	do("xid", "0", "94", "--gi", "1", "--ci", "0")
	do("load", "0", "85", "--gi", "1", "--dram", "40", "--memory", "6000")
	_, err = sim("load", "0", "85")
	require.ErrorIs(t, err, nvml.ERROR_INVALID_ARGUMENT, "the GPU is in MIG mode")
	for _, refused := range [][]string{{"destroy-instance", "0", "1"}, {"mig", "0", "off"}, {"reset", "0"}} {
		_, err := sim(refused...)
		require.ErrorIs(t, err, nvml.ERROR_IN_USE, refused)
	}
	do("lose", "1")
	var boards []nvmlsim.Board
	require.NoError(t, json.Unmarshal([]byte(do("list", "-o", "json")), &boards))
	require.Len(t, boards[0].Instances, 2)
	require.Equal(t, "python3", boards[0].Clients[0].Command)
	require.True(t, boards[1].Lost)
	require.Equal(t, gpu.TimeSliceDefault, boards[1].TimeSlice)
	text := do("list")
	for _, part := range []string{boards[0].UUID, "MIG on, pending off", "GPU instance 1", "runs CUDA, of GPU instance 1, compute instance 0", "holds a handle, of the GPU", "the GPU is lost", "time slice Default, compute mode DEFAULT"} {
		require.Contains(t, text, part)
	}
	do("restore", "1")
	do("ecc", "1", "2")
	do("remap", "1", "pending")
	do("client", "remove", "0", "4242")
	do("destroy-instance", boards[0].UUID, "1")
	do("reset", "0")
	do("reboot")
	require.NotContains(t, do("list"), "instance")

	for _, bad := range [][]string{{"mig", "0", "maybe"}, {"list", "-o", "xml"}, {"client", "add", "0", "me"}, {"xid", "0", "x"}, {"ecc", "0", "x"}, {"remap", "0", "x"}, {"destroy-instance", "0", "x"}, {"client", "remove", "0", "x"}, {"lose"}, {"lose", "9"}} {
		_, err := sim(bad...)
		require.Error(t, err, bad)
	}
	dir = ""
	_, err = sim("list")
	require.ErrorContains(t, err, "--state")
}
