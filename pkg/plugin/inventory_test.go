package plugin

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Who only looks is told what was published last, and nothing where nothing was.
func TestLastPublished(t *testing.T) {
	dir := t.TempDir()
	gpus, conditions, err := LastPublished(dir)
	require.NoError(t, err)
	require.Empty(t, gpus)
	require.Empty(t, conditions)
	saved := inventory{GPUs: []gpu.GPU{{UUID: "GPU-1"}}, Conditions: []gpu.Condition{{Reason: "GPULost"}}}
	require.NoError(t, saved.save(dir))
	gpus, conditions, err = LastPublished(dir)
	require.NoError(t, err)
	require.Equal(t, saved.GPUs, gpus)
	require.Equal(t, saved.Conditions, conditions)
}
