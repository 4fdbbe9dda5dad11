package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const day = "../../pkg/scaling/testdata/day.csv"

func TestHint(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hint.yaml")
	require.NoError(t, os.WriteFile(file, []byte(`apiVersion: scaling.kerf.dev/v1alpha1
kind: GPUScalingHint
spec:
  targetRef: {apiVersion: apps/v1, kind: Deployment, name: x}
  thresholds: {scaleUpAbove: 90, scaleDownBelow: 1}
  maxReplicas: 6
`), 0o600))
	table, err := run("hint", "-f", day, "--class=Realtime")
	require.NoError(t, err)
	require.Contains(t, table, "3 to 8 replicas")
	own, err := run("hint", "-f", day, "--hint", file)
	require.NoError(t, err)
	require.NotEqual(t, table, own)
	require.Contains(t, own, "replica hours")
	svg, err := run("hint", "-f", day, "-o", "svg")
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(svg, "<svg"))
}

func TestHintRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hint.yaml")
	hint := func(spec string) string {
		require.NoError(t, os.WriteFile(file, []byte("apiVersion: scaling.kerf.dev/v1alpha1\nkind: GPUScalingHint\nspec: "+spec), 0o600))
		return file
	}
	for want, args := range map[string][]string{
		`required flag(s) "filename"`:              {"hint"},
		"no such file":                             {"hint", "-f", "nothing.csv"},
		"--output=png: expected table or svg":      {"hint", "-f", day, "-o", "png"},
		`"Fast" is no class`:                       {"hint", "-f", day, "--class=Fast"},
		"0 to 8 replicas":                          {"hint", "-f", day, "--min=0"},
		"either a class or thresholds of your own": {"hint", "-f", day, "--hint", hint("{maxReplicas: 3}")},
		"were all set":                             {"hint", "-f", day, "--hint", file, "--max=3"},
	} {
		_, err := run(args...)
		require.ErrorContains(t, err, want, "%s", args)
	}
	_, err := run("hint", "-f", day, "--hint", hint("{maxReplicas: 3, class: Batch, maximum: 4}"))
	require.ErrorContains(t, err, `unknown field "maximum"`)
	_, err = run("hint", "-f", day, "--hint", hint("{maxReplicas: 3, thresholds: {scaleUpAbove: 20, scaleDownBelow: 30}}"))
	require.ErrorContains(t, err, "scaleDownBelow below scaleUpAbove")
}
