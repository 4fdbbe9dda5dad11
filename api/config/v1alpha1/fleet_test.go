package v1alpha1

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseFleet(t *testing.T) {
	const head = "apiVersion: config.kerf.dev/v1alpha1\nkind: Fleet\n"
	f, err := ParseFleet([]byte(head + `
nodes:
- {name: small, boards: "2xL40S"}
- {name: big, count: 3, boards: 8xH100-SXM5-80GB, labels: {zone: a}, config: {policies: [{timeSlicing: {replicas: 4}}]}}
`))
	require.NoError(t, err)
	require.Equal(t, "small", f.Nodes[0].NodeName(0))
	require.Equal(t, 1, f.Nodes[0].Number())
	require.Equal(t, "big-2", f.Nodes[1].NodeName(2))
	require.Equal(t, MIGOnDemand, f.Nodes[1].Config.Policies[0].MIG.Mode)

	for text, want := range map[string]string{
		`nodes: [{name: a, boards: 8xB1000}]`:                                                  "B1000",
		`nodes: [{name: a, boards: L40S, count: -1}]`:                                          "below 0",
		`nodes: [{name: a, boards: L40S, count: 20000}]`:                                       "more than 10000",
		`nodes: [{name: a-1, boards: L40S}, {name: a, count: 2, boards: L40S}]`:                "a-1",
		`nodes: [{name: A, boards: L40S}]`:                                                     `"A"`,
		`nodes: [{name: a, boards: L40S, size: 1}]`:                                            "size",
		`nodes: [{name: a, boards: L40S, config: {policies: [{timeSlicing: {replicas: 9}}]}}]`: "replicas",
		`nodes: [{name: a, boards: L40S, config: {policies: [{mig: {mode: sometimes}}]}}]`:     "sometimes",
		`nodes: [{name: a, boards: L40S, config: {health: {xids: {all: None}}}}]`:              "all",
	} {
		_, err := ParseFleet([]byte(head + text))
		require.ErrorContains(t, err, want, text)
	}
	_, err = ParseFleet([]byte("apiVersion: config.kerf.dev/v1alpha1\nkind: NodeConfiguration\n"))
	require.ErrorContains(t, err, "expected Fleet")
}
