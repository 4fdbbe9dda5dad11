package nvml

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// root is a driver root with a library, and a host root with the kernel module's version.
func root(t *testing.T, version string) string {
	t.Helper()
	dir := t.TempDir()
	lib := filepath.Join(dir, "usr/lib64")
	require.NoError(t, os.MkdirAll(lib, 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "proc/driver/nvidia"), 0o755))
	install(t, dir, version)
	return dir
}

func install(t *testing.T, dir, version string) {
	t.Helper()
	lib, link := filepath.Join(dir, "usr/lib64/libnvidia-ml.so."+version), filepath.Join(dir, "usr/lib64/libnvidia-ml.so.1")
	require.NoError(t, os.WriteFile(lib, []byte(version), 0o600))
	_ = os.Remove(link)
	require.NoError(t, os.Symlink(filepath.Base(lib), link))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "proc/driver/nvidia/version"), []byte("NVRM version: "+version+"\nmore\n"), 0o600))
}

func TestReplacedDriver(t *testing.T) {
	const first, second = "580.95.05", "590.10"
	for name, x := range map[string]struct {
		change func(t *testing.T, dir string)
		says   string
	}{
		"nothing": {func(*testing.T, string) {}, ""},
		"another version beside it": {func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "usr/lib64/other"), nil, 0o600))
		}, ""},
		"being installed": {func(t *testing.T, dir string) { require.NoError(t, os.RemoveAll(filepath.Join(dir, "usr/lib64"))) }, ""},
		"the module alone": {func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "proc/driver/nvidia/version"), []byte("NVRM version: "+second+"\n"), 0o600))
		}, "NVRM version: " + second},
		"the module is being changed": {func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, "proc/driver/nvidia/version")))
		}, ""},
		"the library": {func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, "usr/lib64/libnvidia-ml.so."+first)))
			install(t, dir, second)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "proc/driver/nvidia/version"), []byte("NVRM version: "+first+"\nmore\n"), 0o600))
		}, "libnvidia-ml.so." + first + " is another file"},
		"the same version again": {func(t *testing.T, dir string) {
			path := filepath.Join(dir, "usr/lib64/libnvidia-ml.so."+first)
			require.NoError(t, os.Rename(path, path+".old")) // It keeps its inode for itself.
			install(t, dir, first)
		}, "is another file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := root(t, first)
			d := LoadedDriver(dir, dir)
			require.NotNil(t, d)
			x.change(t, dir)
			if x.says == "" {
				require.Empty(t, d.replaced())
				return
			}
			err := d.Watch(t.Context(), time.Millisecond)
			require.ErrorIs(t, err, ErrReplaced)
			require.ErrorContains(t, err, x.says)
		})
	}
	// Where there is nothing to be watched, that is no reason to end.
	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, LoadedDriver(t.TempDir(), t.TempDir()).Watch(over, time.Millisecond))
}

func TestMappedLibrary(t *testing.T) {
	maps := filepath.Join(t.TempDir(), "maps")
	require.Empty(t, mappedLibrary(maps))
	require.NoError(t, os.WriteFile(maps, []byte("7f00-7f01 r-xp 00000000 08:01 42  /usr/lib/libc.so.6\n7f02-7f03 r--p 00000000 08:01 43  /driver/usr/lib64/libnvidia-ml.so.580.95.05\n"), 0o600))
	require.Equal(t, "/driver/usr/lib64/libnvidia-ml.so.580.95.05", mappedLibrary(maps))
}
