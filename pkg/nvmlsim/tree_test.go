package nvmlsim

import (
	"bytes"
	"debug/elf"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	"github.com/stretchr/testify/require"
	"k8s.io/dynamic-resource-allocation/deviceattribute"

	"github.com/kerf-project/kerf/pkg/nvmlsim/identity"
)

// requireTree compares the changing part of the tree with what the state says.
func requireTree(t *testing.T, n *Node) {
	t.Helper()
	want, err := n.tree.changing(stateOf(t, n))
	require.NoError(t, err)
	var paths []string
	for path, text := range want.files {
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, text, string(got), path)
		paths = append(paths, path)
	}
	for path := range want.nodes {
		paths = append(paths, path)
	}
	var found []string
	for _, dir := range []string{onDisk(n, gpusDir), onDisk(n, capabilitiesDir), onDisk(n, devDir), onDisk(n, "proc/sys"), filepath.Join(n.DriverRoot(), identity.Dir)} {
		require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				found = append(found, path)
			}
			return err
		}))
	}
	processes, err := filepath.Glob(onDisk(n, "proc/[0-9]*/c*"))
	require.NoError(t, err)
	require.ElementsMatch(t, paths, append(found, processes...))
}

func contents(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

func TestTree(t *testing.T) {
	n := newNode(t, "2xH100-SXM5-80GB,2xL40S")
	d := handle(t, n, 1)
	_, activation := d.SetMigMode(on)
	require.Equal(t, nvml.SUCCESS, activation)
	create(t, handle(t, n, 1), g2, 4)
	require.NoError(t, n.AddClient("2", Client{PID: 4711, Command: "python3", Process: true, InPod: true}))
	requireTree(t, n)

	require.Equal(t, "DeviceFileMinor: 570\nDeviceFileMode: 292\nDeviceFileModify: 1\n", contents(t, onDisk(n, capabilitiesDir+"/gpu4/mig/gi3/access")))
	minors := contents(t, onDisk(n, "proc/driver/nvidia-caps/mig-minors"))
	require.True(t, strings.HasPrefix(minors, "config 1\nmonitor 2\ngpu0/gi0/access 3\ngpu0/gi0/ci0/access 4\n"))
	require.Contains(t, minors, "gpu4/gi3/access 570\ngpu4/gi3/ci0/access 571\n", "by minor, not by index")
	require.Equal(t, "python3\n", contents(t, onDisk(n, "proc/4711/comm")))
	require.Contains(t, contents(t, onDisk(n, "proc/4711/cgroup")), "kubepods")
	require.Contains(t, contents(t, onDisk(n, gpusDir+"/"+busID(1)+"/information")), "Device Minor: \t 4\n")
	require.Contains(t, contents(t, onDisk(n, "proc/driver/nvidia/version")), DriverVersion)
	require.NoFileExists(t, onDisk(n, "dev/nvidia1"))
	require.NoError(t, n.RemoveClient("2", 4711))
	require.NoDirExists(t, onDisk(n, "proc/4711"))

	root, err := deviceattribute.GetPCIeRootAttributeByPCIBusID(busID(3), deviceattribute.WithFSFromRoot(onDisk(n, "sys")))
	require.NoError(t, err)
	require.Equal(t, "pci0000:36", *root.Value.StringValue)
	require.Equal(t, "0\n", contents(t, onDisk(n, "sys/bus/pci/devices/"+busID(1)+"/numa_node")))
	require.Equal(t, "1\n", contents(t, onDisk(n, "sys/bus/pci/devices/"+busID(2)+"/numa_node")))

	// A process that was killed before it had brought the tree up to date.
	require.NoError(t, os.Remove(onDisk(n, capabilitiesDir+"/gpu4/mig/gi3/ci0/access")))
	require.NoError(t, os.WriteFile(onDisk(n, "dev/nvidia9"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(n.DriverRoot(), identity.Dir, identity.File), nil, 0o600))
	again(t, n)
	requireTree(t, n)
}

func TestIdentity(t *testing.T) {
	n := newNode(t, "1xH100-SXM5-80GB,1xL40S,mig=on")
	d := handle(t, n, 0)
	_, first := create(t, d, g1, 0)
	create(t, d, g3, 4)
	require.Equal(t, nvml.SUCCESS, first.Destroy())
	gi, ret := d.GetGpuInstanceById(7)
	require.Equal(t, nvml.SUCCESS, ret)
	shape, ret := gi.GetComputeInstanceProfileInfo(0, 0)
	require.Equal(t, nvml.SUCCESS, ret)
	_, ret = gi.CreateComputeInstance(&shape)
	require.Equal(t, nvml.SUCCESS, ret)
	mount := n.ExtraMounts("")[0]
	require.Equal(t, identity.Dir, mount.ContainerPath)
	who, err := identity.Read(filepath.Join(mount.HostPath, identity.File))
	require.NoError(t, err)
	require.Equal(t, "/host/sim/driver"+identity.Dir, n.ExtraMounts("/host/sim/driver")[0].HostPath)
	require.Equal(t, DriverVersion, who.DriverVersion)
	require.Equal(t, "Enabled", who.GPUs[0].MIGMode)
	require.Equal(t, "", who.GPUs[1].MIGMode)
	require.Equal(t, []string{"1g.10gb", "3g.40gb"}, []string{who.GPUs[0].Instances[0].Profile, who.GPUs[0].Instances[1].Profile})
	mig, ret := d.GetMigDeviceHandleByIndex(1)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, uuidOf(t, mig), who.GPUs[0].Instances[1].UUID)
	require.Equal(t, uint32(3+9), who.GPUs[0].Instances[1].GPUInstanceCapMinor)
	require.Equal(t, uint32(3+9+1), who.GPUs[0].Instances[1].ComputeInstanceCapMinor)
}

func TestMajors(t *testing.T) {
	m, err := freeMajors("testdata/proc-devices")
	require.NoError(t, err)
	require.Equal(t, majors{GPU: 509, UVM: 508, Caps: 507}, m, "neither those of a real driver nor of another")
	text, err := procDevices("testdata/proc-devices", m)
	require.NoError(t, err)
	require.Equal(t, "Character devices:\n509 nvidia\n509 nvidiactl\n507 nvidia-caps\n508 nvidia-uvm\n  1 mem\n  5 /dev/tty\n 10 misc\n254 gpiochip\n510 dummy thing\n\n"+
		"Block devices:\n  7 loop\n259 blkext\n509 notacharacterdevice\n", text)

	free := filepath.Join(t.TempDir(), "devices")
	require.NoError(t, os.WriteFile(free, []byte("Character devices:\n  1 mem\n"), 0o644))
	m, err = freeMajors(free)
	require.NoError(t, err)
	require.Equal(t, majors{GPU: 195, UVM: 511, Caps: 510}, m)
	_, err = freeMajors(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestStubLibrary(t *testing.T) {
	data, err := stubLibrary("libcuda.so.1")
	require.NoError(t, err)
	f, err := elf.NewFile(bytes.NewReader(data))
	require.NoError(t, err)
	require.Equal(t, elf.ET_DYN, f.Type)
	soname, err := f.DynString(elf.DT_SONAME)
	require.NoError(t, err)
	require.Equal(t, []string{"libcuda.so.1"}, soname)
	_, err = stubLibrary(strings.Repeat("x", 300))
	require.Error(t, err)
}

func TestSMIInDriverRoot(t *testing.T) {
	program := filepath.Join(t.TempDir(), "tool")
	spec, err := Parse("1xA10G,state=" + t.TempDir())
	require.NoError(t, err)
	_, err = Open(spec, WithSMI(program), withProc("testdata/proc-devices"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, os.WriteFile(program, []byte("program"), 0o600))
	n, err := Open(spec, WithSMI(program), withProc("testdata/proc-devices"))
	require.NoError(t, err)
	defer n.Close()
	info, err := os.Stat(filepath.Join(n.DriverRoot(), "usr/bin/nvidia-smi"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o755), info.Mode())
}

// The container toolkit finds all that it looks for.
func TestContainerToolkit(t *testing.T) {
	program := filepath.Join(t.TempDir(), "tool")
	require.NoError(t, os.WriteFile(program, []byte("program"), 0o600))
	spec, err := Parse("2xH100-SXM5-80GB,1xL40S,state=" + t.TempDir())
	require.NoError(t, err)
	n, err := Open(spec, WithSMI(program), withProc("testdata/proc-devices"))
	require.NoError(t, err)
	defer n.Close()
	toolkit, err := nvcdi.New(nvcdi.WithMode(nvcdi.ModeNvml), nvcdi.WithNvmlLib(n.Interface()), nvcdi.WithDriverRoot(n.DriverRoot()),
		nvcdi.WithDevRoot(n.HostRoot()), nvcdi.WithNVIDIACDIHookPath("/usr/bin/nvidia-cdi-hook"), nvcdi.WithFeatureFlags(nvcdi.FeatureDisableNvsandboxUtils))
	require.NoError(t, err)
	common, err := toolkit.GetCommonEdits()
	require.NoError(t, err)
	var mounts []string
	for _, m := range common.Mounts {
		require.FileExists(t, m.HostPath)
		mounts = append(mounts, m.ContainerPath)
	}
	for _, name := range []string{"/usr/bin/nvidia-smi", "libcuda.so." + DriverVersion, "libnvidia-ml.so." + DriverVersion, "libnvidia-ptxjitcompiler.so." + DriverVersion} {
		require.Condition(t, func() bool {
			for _, m := range mounts {
				if strings.HasSuffix(m, name) {
					return true
				}
			}
			return false
		}, "%s in %v", name, mounts)
	}
	var hooks []string
	for _, h := range common.Hooks {
		hooks = append(hooks, strings.Join(h.Args, " "))
	}
	require.Contains(t, strings.Join(hooks, "\n"), "libcuda.so.1::")

	for index := range 3 {
		devices, err := toolkit.GetDeviceSpecsByID(uuidOf(t, handle(t, n, index)))
		require.NoError(t, err)
		require.NotEmpty(t, devices)
	}
	all, err := toolkit.GetDeviceSpecsByID("all")
	require.NoError(t, err)
	require.Len(t, all, 3)
}
