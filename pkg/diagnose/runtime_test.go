package diagnose

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the configurations of containerd and CRI-O say of CDI, with all that they leave to their defaults.
func TestRuntimes(t *testing.T) {
	const v3, v2 = "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"
	for name, c := range map[string]struct {
		files    map[string]string
		version  string
		programs []program
		want     containerRuntime
	}{
		"containerd 2 without a configuration": {
			version: "containerd://2.1.4", want: containerRuntime{name: containerdName, file: "/etc/containerd/config.toml", cdi: true},
		},
		"containerd 1.7 without a configuration": {
			version: "containerd://1.7.28", want: containerRuntime{name: containerdName, file: "/etc/containerd/config.toml"},
		},
		"format 3 is containerd 2": {
			files: map[string]string{"etc/containerd/config.toml": "version = 3\n"},
			want:  containerRuntime{name: containerdName, file: "/etc/containerd/config.toml", cdi: true},
		},
		"format 2 of an unknown version": {
			files: map[string]string{"etc/containerd/config.toml": "version = 2\n"},
			want:  containerRuntime{name: containerdName, file: "/etc/containerd/config.toml", unknown: true},
		},
		"format 2 with the switch": {
			files: map[string]string{"etc/containerd/config.toml": "version = 2\n[plugins.'" + v2 + "']\nenable_cdi = true\ncdi_spec_dirs = ['/cdi']"},
			want:  containerRuntime{name: containerdName, file: "/etc/containerd/config.toml", cdi: true, specDirs: []string{"/cdi"}},
		},
		"containerd 2 merges what it imports": {
			version: "containerd://2.0.1",
			files: map[string]string{
				"etc/containerd/config.toml":   "version = 3\nimports = ['conf.d/*.toml']\n[plugins.'" + v3 + "']\ncdi_spec_dirs = ['/cdi']",
				"etc/containerd/conf.d/b.toml": "[plugins.'" + v3 + "']\nenable_cdi = false",
				"etc/containerd/conf.d/a.toml": "[plugins.'" + v3 + "']\nenable_cdi = true",
			},
			want: containerRuntime{name: containerdName, file: "/etc/containerd/config.toml", specDirs: []string{"/cdi"}},
		},
		"containerd 1.7 replaces the section": {
			version: "containerd://1.7.28",
			files: map[string]string{
				"etc/containerd/config.toml": "version = 2\nimports = ['/etc/containerd/nvidia.toml']\n[plugins.'" + v2 + "']\nenable_cdi = true",
				"etc/containerd/nvidia.toml": "[plugins.'" + v2 + "'.containerd]\ndefault_runtime_name = 'nvidia'\n[plugins.'" + v2 + "'.containerd.runtimes.nvidia.options]\nBinaryName = '/usr/bin/nvidia-container-runtime'",
			},
			want: containerRuntime{name: containerdName, file: "/etc/containerd/config.toml", defaultRuntime: "nvidia-container-runtime"},
		},
		"the file that the process names": {
			programs: []program{{pid: 1, name: "systemd"}, {pid: 5, name: "containerd", args: []string{"/usr/bin/containerd", "--config", "/opt/c.toml"}}},
			files:    map[string]string{"opt/c.toml": "version = 3", "etc/containerd/config.toml": "version = 3\n[plugins.'" + v3 + "']\nenable_cdi = false"},
			want:     containerRuntime{name: containerdName, file: "/opt/c.toml", cdi: true},
		},
		"CRI-O": {
			version: "cri-o://1.34.0",
			files: map[string]string{
				"etc/crio/crio.conf":             "[crio.runtime]\ncdi_spec_dirs = ['/one']\ndefault_runtime = 'crun'",
				"etc/crio/crio.conf.d/99-x.conf": "[crio.runtime]\ndefault_runtime = 'nvidia'\n[crio.runtime.runtimes.nvidia]\nruntime_path = '/usr/bin/nvidia-container-runtime'",
				"etc/crio/crio.conf.d/10-x.conf": "[crio.runtime]\ncdi_spec_dirs = ['/two']",
			},
			want: containerRuntime{name: crioName, file: "/etc/crio/crio.conf", cdi: true, specDirs: []string{"/two"}, defaultRuntime: "nvidia-container-runtime"},
		},
		"CRI-O by its process": {
			programs: []program{{pid: 5, name: "crio", args: []string{"/usr/bin/crio", "--config-dir=/x.d"}}},
			files:    map[string]string{"x.d/1.conf": "[crio.runtime]\ncdi_spec_dirs = ['/three']"},
			want:     containerRuntime{name: crioName, file: "/etc/crio/crio.conf", cdi: true, specDirs: []string{"/three"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for path, text := range c.files {
				require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755))
				require.NoError(t, os.WriteFile(filepath.Join(root, path), []byte(text), 0o644))
			}
			f := &facts{Sources: Sources{NodeRoot: root}, programs: c.programs}
			f.api.node = nodeWithRuntime(c.version)
			if c.want.specDirs == nil {
				c.want.specDirs = defaultSpecDirs
			}
			got, err := f.runtime()
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestRuntimesThatCannotBeRead(t *testing.T) {
	root := t.TempDir()
	f := &facts{Sources: Sources{NodeRoot: root}}
	_, err := f.runtime()
	require.ErrorIs(t, err, errNoRuntime)
	for _, file := range []string{"etc/crio/crio.conf", "etc/containerd/config.toml"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, file), []byte("= no TOML"), 0o644))
		_, err = f.runtime()
		require.ErrorContains(t, err, "/"+file)
	}
}

// A directory is the same under both of its names, and links of the node stay in the node.
func TestPathsOfTheNode(t *testing.T) {
	r := containerRuntime{specDirs: []string{"/etc/cdi", "/var/run/cdi/"}}
	require.True(t, r.looksIn("/run/cdi"))
	require.True(t, r.looksIn("/etc/cdi"))
	require.False(t, r.looksIn("/run/other"))

	root := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(root, "store"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "store/c.toml"), []byte("version = 3"), 0o644))
	require.NoError(t, os.Symlink("/store/c.toml", filepath.Join(root, "c.toml")))
	tree, err := readTOML(root, "/c.toml")
	require.NoError(t, err)
	require.EqualValues(t, 3, tree.Get("version"))
}
