package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// run runs a command and returns what it prints.
func run(args ...string) (string, error) {
	var out bytes.Buffer
	root := newRootCommand()
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.Execute()
	return out.String(), err
}

// What is written is what Publish makes, in the form that kerf reads.
func TestExportSlices(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(config, []byte("apiVersion: config.kerf.dev/v1alpha1\nkind: NodeConfiguration\npolicies: [{timeSlicing: {replicas: 3}}]\n"), 0o600))
	text, err := run("export-slices", "--board", "2xH100-SXM5-80GB,L40S", "--node-name", "gpu-1", "--driver-name", "gpu.kerf.dev", "--config", config)
	require.NoError(t, err)
	var got fleet.Objects
	require.NoError(t, got.Read(bytes.NewBufferString(text)))

	parsed, err := readConfig(config)
	require.NoError(t, err)
	boards, err := gpu.ParseBoards("2xH100-SXM5-80GB,L40S")
	require.NoError(t, err)
	want, err := fleet.Publish("gpu-1", "gpu.kerf.dev", boards, parsed)
	require.NoError(t, err)
	require.True(t, apiequality.Semantic.DeepEqual(want, got.Slices))

	for _, bad := range [][]string{{}, {"--board", "8xB1000"}, {"--board", "L40S", "--config", "missing"}, {"--board", "L40S", "more"}} {
		_, err := run(append([]string{"export-slices"}, bad...)...)
		require.Error(t, err, bad)
	}
}
