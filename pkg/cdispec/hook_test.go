package cdispec_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/cdispec"
)

func TestInstallHook(t *testing.T) {
	program, dir := filepath.Join(t.TempDir(), "nvidia-cdi-hook"), t.TempDir()
	for _, version := range []string{"first", "second, over the first"} {
		require.NoError(t, os.WriteFile(program, []byte(version), 0o644))
		installed, err := cdispec.InstallHook(program, dir)
		require.NoError(t, err)
		require.Equal(t, filepath.Join(dir, "nvidia-cdi-hook"), installed)
		got, err := os.ReadFile(installed)
		require.NoError(t, err)
		require.Equal(t, version, string(got))
		info, err := os.Stat(installed)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o755), info.Mode())
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, left, 1)
	}
	_, err := cdispec.InstallHook(filepath.Join(dir, "none"), dir)
	require.ErrorIs(t, err, os.ErrNotExist)
}
