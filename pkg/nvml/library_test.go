package nvml_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/nvml"
)

func TestLibraryPath(t *testing.T) {
	root := t.TempDir()
	require.Equal(t, "libnvidia-ml.so.1", nvml.LibraryPath("/"))
	require.Equal(t, "libnvidia-ml.so.1", nvml.LibraryPath(root))
	library := filepath.Join(root, "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")
	require.NoError(t, os.MkdirAll(filepath.Dir(library), 0o755))
	require.NoError(t, os.WriteFile(library, nil, 0o644))
	require.Equal(t, library, nvml.LibraryPath(root))
}
