package nvml

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// Temperature and memory of every board that answers, and an error for each that does not.
func TestVitals(t *testing.T) {
	spec, err := nvmlsim.Parse("3xL40S,state=" + t.TempDir())
	require.NoError(t, err)
	sim, err := nvmlsim.Open(spec)
	require.NoError(t, err)
	defer func() { require.NoError(t, sim.Close()) }()
	a := New(sim.Interface())
	require.NoError(t, a.Open(t.Context()))
	require.NoError(t, sim.AddClient("1", nvmlsim.Client{PID: 7, Process: true}))
	require.NoError(t, sim.Lose("2"))

	all, err := a.Vitals(t.Context())
	var bad gpu.ReadErrors
	require.ErrorAs(t, err, &bad)
	require.Len(t, bad, 1)
	require.ErrorIs(t, bad[0], gpu.ErrLost)
	require.Len(t, all, 2)
	require.Equal(t, 31, *all[0].Celsius)
	require.Zero(t, *all[0].UsedBytes)
	require.NotZero(t, *all[1].UsedBytes)

	node, err := a.Node(t.Context())
	require.ErrorAs(t, err, &bad)
	require.Equal(t, "13.580.95.05", node.NVMLVersion)
}
