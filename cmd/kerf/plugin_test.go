package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A machine without the driver's library gets one line that says so, and what simulated GPUs are for.
func TestPluginWithoutTheDriversLibrary(t *testing.T) {
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	require.NoError(t, os.WriteFile(kubeconfig, []byte(`{"apiVersion":"v1","kind":"Config","clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],"contexts":[{"name":"c","context":{"cluster":"c"}}],"current-context":"c"}`), 0o600))
	cmd := newRootCommand()
	cmd.SetArgs([]string{"plugin", "--node-name=n", "--kubeconfig=" + kubeconfig, "--nvml=real:" + filepath.Join(dir, "libnvidia-ml.so.1"), "--run-dir=" + dir})
	err := cmd.ExecuteContext(t.Context())
	require.ErrorContains(t, err, "libnvidia-ml.so.1")
	require.ErrorContains(t, err, "--nvml=sim:")
	require.NotContains(t, err.Error(), "\n")
}

func TestPluginRefusesWhatItCannotRead(t *testing.T) {
	for _, args := range [][]string{
		{"plugin", "--node-name="},
		{"plugin", "--node-name=n", "--sample-every=15ms"},
		{"plugin", "--node-name=n", "--config=/nonexistent"},
		{"plugin", "--node-name=n", "--kubeconfig=/nonexistent"},
	} {
		cmd := newRootCommand()
		cmd.SetArgs(args)
		require.Error(t, cmd.ExecuteContext(t.Context()), "%v", args)
	}
}
