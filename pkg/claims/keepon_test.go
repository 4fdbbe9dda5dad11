package claims_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

func TestTurnMIGOn(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.engine(t).TurnMIGOn(t.Context(), "GPU-a"))
	require.True(t, w.boards["GPU-a"].MIG.Current)
	w.steps = nil
	require.NoError(t, w.engine(t).TurnMIGOn(t.Context(), "GPU-a"))
	require.Empty(t, w.steps, "it is on")

	w.boards["GPU-b"].MIG.Pending = true
	require.ErrorIs(t, w.engine(t).TurnMIGOn(t.Context(), "GPU-b"), gpu.ErrResetRequired)
	w.boards["GPU-b"].MIG.Pending = false
	w.holder["GPU-b"] = []gpu.Process{{PID: 4, Command: "python"}}
	require.ErrorContains(t, w.engine(t).TurnMIGOn(t.Context(), "GPU-b"), "pid 4 (python)")
	w.holder = nil
	_, err := w.engine(t).Prepare(t.Context(), claim("x", gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-b"}))
	require.NoError(t, err)
	require.ErrorContains(t, w.engine(t).TurnMIGOn(t.Context(), "GPU-b"), "team/x")

	w.boards["GPU-a"].MIG = gpu.MIGMode{}
	require.NoError(t, w.engine(t).TurnMIGOn(t.Context(), "GPU-a"), "a board without MIG")
	require.False(t, w.boards["GPU-a"].MIG.Current)
}
