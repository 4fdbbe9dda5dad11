package cdispec

import (
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/kerf-project/kerf/pkg/gpu"
)

var update = flag.Bool("update", false, "write the golden files anew")

const claim = "3f0c9d52-6c1e-4a55-8f57-2b9b6f0c7e11"

// The two boards of the tests. Their minors are crossed with their indices, as they can be.
var (
	board0 = gpu.GPU{UUID: "GPU-aaaaaaaa-0000-4000-8000-000000000000", Index: 0, Minor: 1, PCIBusID: "ffff:01:00.0"}
	board1 = gpu.GPU{UUID: "GPU-bbbbbbbb-0000-4000-8000-000000000001", Index: 1, Minor: 0, PCIBusID: "ffff:02:00.0"}
)

// library answers what the toolkit asks about the two boards.
func library(ask func(uuid string)) nvml.Interface {
	device := func(g gpu.GPU) nvml.Device {
		return &mock.Device{
			GetUUIDFunc:           func() (string, nvml.Return) { return g.UUID, nvml.SUCCESS },
			GetIndexFunc:          func() (int, nvml.Return) { return g.Index, nvml.SUCCESS },
			GetMinorNumberFunc:    func() (int, nvml.Return) { return g.Minor, nvml.SUCCESS },
			IsMigDeviceHandleFunc: func() (bool, nvml.Return) { return false, nvml.SUCCESS },
			GetMigModeFunc:        func() (int, int, nvml.Return) { return 0, 0, nvml.SUCCESS },
			GetPciInfoFunc: func() (nvml.PciInfo, nvml.Return) {
				var info nvml.PciInfo
				for i, c := range fmt.Sprintf("0000FFFF:%02X:00.0", g.Index+1) {
					info.BusId[i] = int8(c)
				}
				return info, nvml.SUCCESS
			},
		}
	}
	return &mock.Interface{
		InitFunc:                   func() nvml.Return { return nvml.SUCCESS },
		ShutdownFunc:               func() nvml.Return { return nvml.SUCCESS },
		SystemGetDriverVersionFunc: func() (string, nvml.Return) { return "580.95.05", nvml.SUCCESS },
		DeviceGetHandleByPciBusIdFunc: func(id string) (nvml.Device, nvml.Return) {
			for _, g := range []gpu.GPU{board0, board1} {
				if g.PCIBusID == id {
					ask(g.UUID)
					return device(g), nvml.SUCCESS
				}
			}
			return nil, nvml.ERROR_NOT_FOUND
		},
	}
}

func testOptions(t testing.TB) Options {
	t.Helper()
	driver, err := filepath.Abs("testdata/driver")
	require.NoError(t, err)
	host, err := filepath.Abs("testdata/host")
	require.NoError(t, err)
	return Options{
		Lib: library(func(string) {}), CDIRoot: t.TempDir(), HostRoot: host,
		DriverRoot: driver, HostDriverRoot: "/run/nvidia/driver", HookPath: "/var/lib/kubelet/plugins/gpu.nvidia.com/nvidia-cdi-hook",
		ExtraMounts: []specs.Mount{{HostPath: "/run/kerf/identity.json", ContainerPath: "/run/identity.json", Options: []string{"ro", "bind"}}},
	}
}

func newWriter(t testing.TB, change func(*Options)) *Writer {
	t.Helper()
	o := testOptions(t)
	if change != nil {
		change(&o)
	}
	w, err := New(o)
	require.NoError(t, err)
	return w
}

func whole(g gpu.GPU, request string) Device {
	return Device{Name: "gpu-" + g.UUID[4:12], Request: request, GPU: g, Device: gpu.Device{Type: gpu.TypeGPU, GPU: g.UUID}}
}

func replica(g gpu.GPU, request string, n int) Device {
	return Device{Name: fmt.Sprintf("gpu-%s-timeslice-%d", g.UUID[4:12], n), Request: request, GPU: g, Device: gpu.Device{Type: gpu.TypeTimeSlice, GPU: g.UUID, Replica: n}}
}

func mig(g gpu.GPU, request string, at gpu.Placement, id int) Device {
	i := gpu.Instance{
		GPU: g.UUID, Profile: "1g.10gb", Placement: at, ID: id,
		Compute: []gpu.ComputeInstance{{ID: 0, UUID: fmt.Sprintf("MIG-%s-%d", g.UUID[4:12], id), Whole: true}},
	}
	return Device{
		Name: fmt.Sprintf("gpu-%s-mig-1g10gb-%d", g.UUID[4:12], at.Start), Request: request, GPU: g,
		Device: gpu.Device{Type: gpu.TypeMIG, GPU: g.UUID, Profile: i.Profile, Placement: at}, Instance: &i,
	}
}

func at(start int) gpu.Placement { return gpu.Placement{Start: start, Size: 1} }

func read(t *testing.T, w *Writer, uid string) specs.Spec {
	t.Helper()
	text, err := os.ReadFile(w.path(uid))
	require.NoError(t, err)
	var spec specs.Spec
	require.NoError(t, json.Unmarshal(text, &spec))
	return spec
}

var shapes = map[string][]Device{
	"whole":                 {whole(board0, "gpu")},
	"replica":               {replica(board1, "share", 2)},
	"mig":                   {mig(board0, "small", at(4), 9)},
	"two-instances-one-gpu": {mig(board0, "a", at(4), 9), mig(board0, "b/first", at(6), 7)},
	"mixed-two-gpus":        {whole(board1, "big"), mig(board0, "small", at(0), 11)},
}

func TestGolden(t *testing.T) {
	for name, devices := range shapes {
		t.Run(name, func(t *testing.T) {
			w := newWriter(t, nil)
			ids, err := w.Write(t.Context(), claim, "note", devices)
			require.NoError(t, err)
			require.Equal(t, w.IDs(claim, devices), ids)

			got, err := json.MarshalIndent(read(t, w, claim), "", "  ")
			require.NoError(t, err)
			golden := filepath.Join("testdata/golden", name+".json")
			if *update {
				require.NoError(t, os.WriteFile(golden, append(got, '\n'), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.JSONEq(t, string(want), string(got))
		})
	}
}

// What is in the file must be what a runtime makes of it: on a host where no node
// exists, every device alone and all together.
func TestInjection(t *testing.T) {
	for name, devices := range shapes {
		t.Run(name, func(t *testing.T) {
			w := newWriter(t, nil)
			ids, err := w.Write(t.Context(), claim, "note", devices)
			require.NoError(t, err)
			runtime, err := cdi.NewCache(cdi.WithSpecDirs(w.options.CDIRoot), cdi.WithAutoRefresh(false))
			require.NoError(t, err)

			together := &oci.Spec{Process: &oci.Process{}}
			for _, d := range devices {
				alone := &oci.Spec{Process: &oci.Process{}}
				for _, into := range []*oci.Spec{alone, together} {
					_, err := runtime.InjectDevices(into, ids[d.Name])
					require.NoError(t, err)
				}
				require.Equal(t, 1, strings.Count(strings.Join(alone.Process.Env, "\n"), "NVIDIA_VISIBLE_DEVICES=void"))
				require.Contains(t, alone.Process.Env, d.Variable())

				nodes := map[string]oci.LinuxDevice{}
				for _, n := range alone.Linux.Devices {
					nodes[n.Path] = n
					require.Equal(t, "c", n.Type)
				}
				allowed := map[string]string{}
				for _, r := range alone.Linux.Resources.Devices {
					allowed[fmt.Sprintf("%d:%d", *r.Major, *r.Minor)] = r.Access
				}
				for path, n := range nodes {
					require.Equal(t, "rw", allowed[fmt.Sprintf("%d:%d", n.Major, n.Minor)], path)
				}
				want := []string{"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", fmt.Sprintf("/dev/nvidia%d", d.GPU.Minor)}
				if d.Instance != nil {
					// 3 + gpu*135 + gi*9, and one more for the first compute instance.
					minor := 3 + d.GPU.Minor*135 + d.Instance.ID*9
					want = append(want, fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor), fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor+1))
				}
				var got []string
				for path := range nodes {
					got = append(got, path)
				}
				require.ElementsMatch(t, want, got, "a container holds the nodes of its device and no others")
			}
			for _, d := range devices {
				require.Contains(t, together.Process.Env, d.Variable(), "several devices in one container keep their variables")
			}
		})
	}
}

func TestNoMemoryLimitHookOnMIG(t *testing.T) {
	w := newWriter(t, nil)
	_, err := w.Write(t.Context(), claim, "note", []Device{whole(board1, "big"), mig(board0, "small", at(0), 11)})
	require.NoError(t, err)
	spec := read(t, w, claim)
	require.Empty(t, spec.Devices[1].ContainerEdits.Hooks)
	text, err := json.Marshal(spec.ContainerEdits)
	require.NoError(t, err)
	require.NotContains(t, string(text), "apply-cuda-memory-limits")
	text, err = json.Marshal(spec.Devices[0].ContainerEdits)
	require.NoError(t, err)
	require.Contains(t, string(text), "apply-cuda-memory-limits", "else this test proves nothing")
}

func TestHooksCanBeLeftOut(t *testing.T) {
	hooks := func(change func(*Options)) string {
		w := newWriter(t, change)
		_, err := w.Write(t.Context(), claim, "note", []Device{whole(board0, "gpu")})
		require.NoError(t, err)
		spec := read(t, w, claim)
		text, err := json.Marshal(append(spec.ContainerEdits.Hooks, spec.Devices[0].ContainerEdits.Hooks...))
		require.NoError(t, err)
		return string(text)
	}
	require.Contains(t, hooks(nil), "update-ldcache")
	require.Equal(t, "null", hooks(func(o *Options) { o.HookPath = "" }))
	some := hooks(func(o *Options) { o.DisabledHooks = []string{"update-ldcache"} })
	require.NotContains(t, some, "update-ldcache")
	require.Contains(t, some, "create-symlinks")
}

func TestVersion(t *testing.T) {
	w := newWriter(t, nil)
	for uid, version := range map[string]string{"3-starts-with-a-digit": "0.5.0", "a-starts-with-a-letter": "0.3.0"} {
		_, err := w.Write(t.Context(), uid, "", []Device{mig(board0, "r", at(0), 1)})
		require.NoError(t, err)
		require.Equal(t, version, read(t, w, uid).Version)
	}
}

func TestNote(t *testing.T) {
	w := newWriter(t, nil)
	_, err := w.Note(claim)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = w.Write(t.Context(), claim, `{"a": "note"}`, []Device{mig(board0, "r", at(0), 1)})
	require.NoError(t, err)
	note, err := w.Note(claim)
	require.NoError(t, err)
	require.Equal(t, `{"a": "note"}`, note)
}

func TestOneDeviceForTwoRequests(t *testing.T) {
	w := newWriter(t, nil)
	ids, err := w.Write(t.Context(), claim, "note", []Device{whole(board0, "work"), whole(board0, "watch")})
	require.NoError(t, err)
	require.Len(t, ids, 1)
	spec := read(t, w, claim)
	require.Len(t, spec.Devices, 1)
	require.Equal(t, []string{
		"KERF_WORK_GPU_AAAAAAAA_UUID=" + board0.UUID,
		"KERF_WATCH_GPU_AAAAAAAA_UUID=" + board0.UUID,
	}, spec.Devices[0].ContainerEdits.Env)
}

func TestRemoveListExists(t *testing.T) {
	w := newWriter(t, func(o *Options) { o.CDIRoot = filepath.Join(o.CDIRoot, "not", "yet") })
	uids, err := w.Claims()
	require.NoError(t, err)
	require.Empty(t, uids)
	require.NoError(t, w.Remove(claim), "there is not even a directory")

	for _, uid := range []string{"one", "two"} {
		_, err = w.Write(t.Context(), uid, "note", []Device{mig(board0, "r", at(0), 1)})
		require.NoError(t, err)
	}
	require.NoError(t, os.WriteFile(filepath.Join(w.options.CDIRoot, "nvidia.com-gpu.json"), []byte("{}"), 0o644))
	uids, err = w.Claims()
	require.NoError(t, err)
	require.Equal(t, []string{"one", "two"}, uids)
	exists, err := w.Exists("one")
	require.NoError(t, err)
	require.True(t, exists)
	info, err := os.Stat(w.path("one"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), info.Mode())

	for range 2 {
		require.NoError(t, w.Remove("one"))
	}
	exists, err = w.Exists("one")
	require.NoError(t, err)
	require.False(t, exists)
	uids, err = w.Claims()
	require.NoError(t, err)
	require.Equal(t, []string{"two"}, uids)
}

func TestLeftoversOfACrash(t *testing.T) {
	w := newWriter(t, nil)
	file := func(name string, age time.Duration) string {
		path := filepath.Join(w.options.CDIRoot, name)
		require.NoError(t, os.WriteFile(path, []byte(`{"cdiVer`), 0o600))
		then := time.Now().Add(-age)
		require.NoError(t, os.Chtimes(path, then, then))
		return path
	}
	old, fresh, other := file("spec.1234.tmp", time.Hour), file("spec.5678.tmp", 0), file("notes.tmp", time.Hour)
	uids, err := w.Claims()
	require.NoError(t, err)
	require.Empty(t, uids, "an unfinished file is no claim's")
	_, err = w.Write(t.Context(), claim, "note", []Device{mig(board0, "r", at(0), 1)})
	require.NoError(t, err)
	require.NoFileExists(t, old)
	require.FileExists(t, fresh, "somebody may be writing it")
	require.FileExists(t, other)
}

// What is kept is shared by claims that are written at once.
func TestManyClaimsAtOnce(t *testing.T) {
	w := newWriter(t, nil)
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			_, err := w.Write(t.Context(), fmt.Sprint("claim-", n), "note", []Device{replica(board0, fmt.Sprint("r", n), n), mig(board1, "m", at(n), n)})
			assert.NoError(t, err)
		})
	}
	all.Wait()
	for n := range 8 {
		spec := read(t, w, fmt.Sprint("claim-", n))
		require.Equal(t, []string{fmt.Sprintf("KERF_R%d_GPU_AAAAAAAA_TIMESLICE_%d_UUID=%s", n, n, board0.UUID)}, spec.Devices[0].ContainerEdits.Env)
	}
}

func TestVariables(t *testing.T) {
	d := mig(board0, "prefer/3g-first", at(4), 9)
	require.Equal(t, "KERF_PREFER_3G_FIRST_GPU_AAAAAAAA_MIG_1G10GB_4_UUID=MIG-aaaaaaaa-9", d.Variable())
	require.Equal(t, "KERF_GPU_GPU_AAAAAAAA_TIMESLICE_1_UUID="+board0.UUID, replica(board0, "gpu", 1).Variable())
}

func BenchmarkWrite(b *testing.B) {
	for name, prepare := range map[string]func(*Writer){"cold": (*Writer).Invalidate, "warm": func(*Writer) {}} {
		b.Run(name, func(b *testing.B) {
			w := newWriter(b, nil)
			devices := []Device{whole(board1, "big"), mig(board0, "small", at(0), 11)}
			for b.Loop() {
				prepare(w)
				if _, err := w.Write(b.Context(), claim, "note", devices); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestNewWants(t *testing.T) {
	_, err := New(Options{CDIRoot: t.TempDir()})
	require.Error(t, err)
	_, err = New(Options{Lib: library(func(string) {})})
	require.Error(t, err)
}

// The toolkit names the links to display nodes, and its own program, as this process sees them.
func TestAdopt(t *testing.T) {
	w := newWriter(t, func(o *Options) { o.HostRoot = "/host" })
	found := specs.ContainerEdits{
		DeviceNodes: []*specs.DeviceNode{
			{Path: "/dev/nvidia5", HostPath: "/host/dev/nvidia5", Major: 195, Minor: 5},
			{Path: "/dev/dri/card1", HostPath: "/host/dev/dri/card1", Major: 226, Minor: 1, GID: new(uint32)},
			{Path: "/dev/nvidia-modeset"},
		},
		Mounts: []*specs.Mount{{HostPath: w.options.DriverRoot + "/usr/bin/nvidia-smi", ContainerPath: "/usr/bin/nvidia-smi"}},
		Hooks: []*specs.Hook{
			{HookName: "createContainer", Path: "x", Args: []string{"nvidia-cdi-hook", "create-symlinks", "--link", "../card1::/host/dev/dri/by-path/pci-0000:18:00.0-card"}},
			{HookName: "createRuntime", Path: "x", Args: []string{"nvidia-cdi-hook", "apply-cuda-memory-limits", "--driver-root", w.options.DriverRoot}},
		},
	}
	edits, err := w.adopt(found, []*specs.DeviceNode{node("/dev/nvidia1", 195, 1, 0o666)})
	require.NoError(t, err)
	require.Len(t, edits.DeviceNodes, 2, "another board and a node that is not there are left out")
	require.Equal(t, "/dev/nvidia1", edits.DeviceNodes[0].Path)
	require.Equal(t, specs.DeviceNode{Path: "/dev/dri/card1", Type: "c", Major: 226, Minor: 1, GID: new(uint32), Permissions: "rw"}, *edits.DeviceNodes[1])
	require.Equal(t, "/run/nvidia/driver/usr/bin/nvidia-smi", edits.Mounts[0].HostPath)
	text, err := json.Marshal(edits.Hooks)
	require.NoError(t, err)
	require.Contains(t, string(text), `"../card1::/dev/dri/by-path/pci-0000:18:00.0-card"`)
	require.Contains(t, string(text), `"/run/nvidia/driver"`)
	require.Equal(t, 2, strings.Count(string(text), `"path":"`+w.options.HookPath))
}
