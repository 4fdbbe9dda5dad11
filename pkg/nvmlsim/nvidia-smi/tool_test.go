package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/nvmlsim/identity"
)

// container is what of a node's devices a container holds: names with their numbers.
type container map[string]string

func (c container) usable(name string, major, minor uint32) bool {
	return c[name] == fmt.Sprintf("%d:%d", major, minor)
}

const gpu0, gpu1, mig7, mig9 = "GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000",
	"MIG-77777777-0000-0000-0000-000000000000", "MIG-99999999-0000-0000-0000-000000000000"

func node() identity.Node {
	return identity.Node{
		DriverVersion: "580.95.05", CUDAVersion: "13.0", GPUMajor: 195, CapsMajor: 510,
		GPUs: []identity.GPU{
			{Minor: 8, Name: "NVIDIA H100 80GB HBM3", UUID: gpu0, PCIBusID: "0000:10:00.0", MemoryMiB: 81559, MIGMode: "Enabled", Instances: []identity.Instance{
				{Profile: "1g.10gb", UUID: mig7, GPUInstanceID: 7, GPUInstanceCapMinor: 1146, ComputeInstanceCapMinor: 1147},
				{Profile: "1g.10gb+me", UUID: mig9, GPUInstanceID: 9, GPUInstanceCapMinor: 1164, ComputeInstanceCapMinor: 1165},
			}},
			{Minor: 1, Name: "NVIDIA L40S", UUID: gpu1, PCIBusID: "0000:1d:00.0", MemoryMiB: 46068},
		},
	}
}

func run(t *testing.T, c container, args ...string) (string, int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), identity.File)
	data, err := json.Marshal(node())
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, data, 0o600))
	var out bytes.Buffer
	code := tool{devices: c, identity: file, state: filepath.Join(filepath.Dir(file), "state.json"), out: &out}.run(args)
	return out.String(), code
}

func TestList(t *testing.T) {
	h100, l40s := "GPU 0: NVIDIA H100 80GB HBM3 (UUID: "+gpu0+")\n", "NVIDIA L40S (UUID: "+gpu1+")\n"
	instance7, instance9 := "  MIG 1g.10gb     Device  0: (UUID: "+mig7+")\n", ": (UUID: "+mig9+")\n"
	for name, test := range map[string]struct {
		holds container
		want  string
	}{
		"one instance":           {container{"nvidia8": "195:8", "nvidia-caps/nvidia-cap1146": "510:1146", "nvidia-caps/nvidia-cap1147": "510:1147"}, h100 + instance7},
		"the other":              {container{"nvidia8": "195:8", "nvidia-caps/nvidia-cap1164": "510:1164", "nvidia-caps/nvidia-cap1165": "510:1165"}, h100 + "  MIG 1g.10gb+me  Device  0" + instance9},
		"without its capability": {container{"nvidia8": "195:8", "nvidia-caps/nvidia-cap1146": "510:1146"}, h100},
		"without its instance":   {container{"nvidia8": "195:8", "nvidia-caps/nvidia-cap1147": "510:1147"}, h100},
		"numbers of another":     {container{"nvidia8": "195:8", "nvidia1": "195:8", "nvidia-caps/nvidia-cap1146": "509:1146", "nvidia-caps/nvidia-cap1147": "510:1147"}, h100},
		"whole board":            {container{"nvidia1": "195:1"}, "GPU 0: " + l40s},
		"all": {
			container{"nvidia8": "195:8", "nvidia1": "195:1", "nvidia-caps/nvidia-cap1146": "510:1146", "nvidia-caps/nvidia-cap1147": "510:1147", "nvidia-caps/nvidia-cap1164": "510:1164", "nvidia-caps/nvidia-cap1165": "510:1165"},
			h100 + instance7 + "  MIG 1g.10gb+me  Device  1" + instance9 + "GPU 1: " + l40s,
		},
	} {
		for _, flag := range []string{"-L", "--list-gpus"} {
			got, code := run(t, test.holds, flag)
			require.Equal(t, test.want, got, name)
			require.Zero(t, code, name)
		}
	}
	// The capabilities are of no use without the board.
	for _, holds := range []container{{}, {"nvidia-caps/nvidia-cap1146": "510:1146", "nvidia-caps/nvidia-cap1147": "510:1147"}} {
		for _, args := range [][]string{{"-L"}, {}, {"--query-gpu=name", "--format=csv"}} {
			got, code := run(t, holds, args...)
			require.Equal(t, "No devices were found\n", got)
			require.Equal(t, exitNotFound, code)
		}
	}
}

func TestQuery(t *testing.T) {
	holds := container{"nvidia8": "195:8", "nvidia1": "195:1"}
	fields := "--query-gpu=index,name,uuid,memory.total,driver_version"
	for format, want := range map[string]string{
		"csv": "index, name, uuid, memory.total [MiB], driver_version\n" +
			"0, NVIDIA H100 80GB HBM3, " + gpu0 + ", 81559 MiB, 580.95.05\n1, NVIDIA L40S, " + gpu1 + ", 46068 MiB, 580.95.05\n",
		"csv,noheader":         "0, NVIDIA H100 80GB HBM3, " + gpu0 + ", 81559 MiB, 580.95.05\n1, NVIDIA L40S, " + gpu1 + ", 46068 MiB, 580.95.05\n",
		"csv,noheader,nounits": "0, NVIDIA H100 80GB HBM3, " + gpu0 + ", 81559, 580.95.05\n1, NVIDIA L40S, " + gpu1 + ", 46068, 580.95.05\n",
	} {
		for _, args := range [][]string{{fields, "--format=" + format}, append(strings.SplitN(fields, "=", 2), "--format", format)} {
			got, code := run(t, holds, args...)
			require.Equal(t, want, got)
			require.Zero(t, code)
		}
	}
	got, code := run(t, holds, "--query-gpu=gpu_uuid, mig.mode.current,pci.bus_id", "--format=csv")
	require.Equal(t, "gpu_uuid, mig.mode.current, pci.bus_id\n"+gpu0+", Enabled, 00000000:10:00.0\n"+gpu1+", [N/A], 00000000:1D:00.0\n", got)
	require.Zero(t, code)
}

func TestRefusals(t *testing.T) {
	for _, args := range [][]string{
		{"-x"}, {"--list-gpus=yes"}, {"--query-gpu=name"}, {"--format=csv"}, {"--query-gpu=", "--format=csv"}, {"--query-gpu"}, {"-L", "--query-gpu=name", "--format=csv"},
		{"--query-gpu=name", "--format=xml"}, {"--query-gpu=name", "--format=noheader"}, {"--query-gpu=name,shoe_size", "--format=csv"}, {"dmon"},
	} {
		got, code := run(t, container{"nvidia1": "195:1"}, args...)
		require.Equal(t, exitArgument, code, args)
		require.NotEmpty(t, got, args)
	}
	var out bytes.Buffer
	code := tool{devices: container{}, identity: filepath.Join(t.TempDir(), "none"), out: &out}.run([]string{"-L"})
	require.Equal(t, exitNoDriver, code)
	require.Contains(t, out.String(), "couldn't communicate with the NVIDIA driver")
}

func TestTexts(t *testing.T) {
	holds := container{"nvidia8": "195:8", "nvidia-caps/nvidia-cap1146": "510:1146", "nvidia-caps/nvidia-cap1147": "510:1147"}
	got, code := run(t, holds)
	require.Zero(t, code)
	for _, part := range []string{"580.95.05", "CUDA Version: 13.0", "NVIDIA H100 80GB HBM3", "81559 MiB", "MIG 1g.10gb", "simulated"} {
		require.Contains(t, got, part)
	}
	for flag, part := range map[string]string{"--help": "memory.total", "--version": "580.95.05"} {
		got, code = run(t, container{}, flag)
		require.Zero(t, code)
		require.Contains(t, got, part)
	}
}

func TestAdmitted(t *testing.T) {
	for err, want := range map[error]bool{nil: true, syscall.ENXIO: true, syscall.ENODEV: true, syscall.EPERM: false, syscall.EACCES: false, syscall.ENOENT: false} {
		if err != nil {
			err = &fs.PathError{Op: "open", Path: "/dev/nvidia0", Err: err}
		}
		require.Equal(t, want, admitted(err), err)
	}
}

// Nodes of a real file system: a file is none, and the numbers must be the device's.
func TestNodes(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "nvidia0"), nil, 0o600))
	require.False(t, nodes{root}.usable("nvidia0", 0, 0))
	require.False(t, nodes{root}.usable("nvidia1", 195, 1))
	// Every Linux has these (devices.txt): /dev/null is 1:3.
	require.True(t, nodes{"/dev"}.usable("null", 1, 3))
	require.False(t, nodes{"/dev"}.usable("null", 1, 5))
	require.False(t, nodes{"/dev"}.usable("null", 195, 3))
}

func TestNumbers(t *testing.T) {
	for dev, want := range map[uint64][2]uint32{0x103: {1, 3}, 195<<8 | 255: {195, 255}, 510<<8 | 0x2_00_000 | 0x39: {510, 0x239}, 1 << 44: {4096, 0}} {
		major, minor := numbers(dev)
		require.Equal(t, want, [2]uint32{major, minor})
	}
}
