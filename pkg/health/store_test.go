package health

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Who only looks is told what a monitor has saved, but for what an operator has accepted.
func TestSaved(t *testing.T) {
	dir := t.TempDir()
	none, err := Saved(dir)
	require.NoError(t, err)
	require.Empty(t, none)
	kept := gpu.Condition{Device: gpu.Device{GPU: "GPU-1"}, Reason: "Xid79", Effect: gpu.EffectNoExecute}
	require.NoError(t, saved{Problems: []problem{{Condition: kept}, {Condition: gpu.Condition{Reason: ReasonRemappingFailed}, Accepted: true}}}.save(dir))
	all, err := Saved(dir)
	require.NoError(t, err)
	require.Equal(t, []gpu.Condition{kept}, all)
	require.NoError(t, os.WriteFile(filepath.Join(dir, stateFile), []byte("{"), 0o600))
	_, err = Saved(dir)
	require.Error(t, err)
}
