package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Answers have exit codes; what could not be found out is an error with a text.
func TestExplainAndSimulateErrors(t *testing.T) {
	t.Chdir("../..")
	const fleet, claims = "deployments/explain/fleet.yaml", "deployments/explain/claims.yaml"
	_, err := run("explain", "notebook-1", "-n", "team-a", "-f", fleet, "-f", claims)
	require.NoError(t, err, "it is allocated")
	_, err = run("explain", "train", "-n", "team-b", "-f", fleet, "-f", claims)
	require.ErrorIs(t, err, errNoFit)
	for want, args := range map[string][]string{
		"neither a ResourceClaim nor a Pod": {"explain", "missing", "-f", fleet, "-f", claims},
		"neither a Fleet nor":               {"explain", "train", "-f", claims},
		"no such file":                      {"explain", "train", "-f", "missing.yaml"},
		"expected text or json":             {"explain", "train", "-f", fleet, "-o", "html"},
		"access to the API server":          {"explain", "train", "--kubeconfig", "missing"},
		"accepts 1 arg":                     {"explain", "-f", fleet},
		"expected text, json or html":       {"simulate", "-f", fleet, "-o", "yaml"},
		"--order":                           {"simulate", "-f", fleet, "--order", "random"},
		"required flag":                     {"simulate"},
		"trace":                             {"simulate", "-f", fleet, "-f", "deployments/simulate/trace.csv"},
	} {
		_, err := run(args...)
		require.ErrorContains(t, err, want, args)
		require.NotErrorIs(t, err, errNoFit)
	}
}

func TestDisplayName(t *testing.T) {
	require.Equal(t, "kubectl kerf", displayName("/usr/local/bin/kubectl-kerf"))
	require.Equal(t, "kerf", displayName("bin/kerf"))
}
