package nvmlsim

import (
	"reflect"
	"strings"
	"testing"

	nvlib "github.com/NVIDIA/go-nvlib/pkg/nvlib/device"
	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"
)

// An id says nothing of a place, and what bore it once can bear it again with other properties.
func TestIDsAndUUIDsAreReused(t *testing.T) {
	n := newNode(t, "2xH100-SXM5-80GB,mig=on")
	d := handle(t, n, 0)
	first, ci := create(t, d, g3, 0)
	mig, ret := d.GetMigDeviceHandleByIndex(0)
	require.Equal(t, nvml.SUCCESS, ret)
	uuid := uuidOf(t, mig)

	require.Equal(t, nvml.SUCCESS, ci.Destroy())
	_, ret = ci.GetInfo()
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret)
	_, ret = mig.GetUUID()
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret)
	require.Equal(t, nvml.SUCCESS, first.Destroy())
	for name, ret := range map[string]nvml.Return{
		"GetInfo":  second(first.GetInfo()),
		"Destroy":  first.Destroy(),
		"profiles": second(first.GetComputeInstanceProfileInfo(0, 0)),
		"compute":  second(first.CreateComputeInstance(&nvml.ComputeInstanceProfileInfo{})),
	} {
		require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret, name)
	}
	_, ret = d.GetGpuInstanceById(1)
	require.Equal(t, nvml.ERROR_NOT_FOUND, ret)
	_, ret = n.Interface().DeviceGetHandleByUUID(uuid)
	require.Equal(t, nvml.ERROR_NOT_FOUND, ret)

	// The same id at another place, with another profile: all the old handles are good again.
	_, _ = create(t, d, g4, 0)
	info, ret := first.GetInfo()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, uint32(1), info.Id)
	require.Equal(t, profile(t, d, g4).Id, info.ProfileId)
	require.Equal(t, uuid, uuidOf(t, mig), "the UUID depends on the GPU and the ids alone")
	attributes, ret := mig.GetAttributes()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, uint32(4), attributes.GpuInstanceSliceCount)

	other := handle(t, n, 1)
	create(t, other, g4, 0)
	found, ret := other.GetMigDeviceHandleByIndex(0)
	require.Equal(t, nvml.SUCCESS, ret)
	require.NotEqual(t, uuid, uuidOf(t, found), "on another GPU")
}

func second[T any](_ T, ret nvml.Return) nvml.Return { return ret }

func TestIDsFollowNoPlace(t *testing.T) {
	d := handle(t, newNode(t, "1xH100-SXM5-80GB,mig=on"), 0)
	ids := func(starts ...uint32) []uint32 {
		var all []uint32
		for _, start := range starts {
			gi, ci := create(t, d, g1, start)
			info, ret := gi.GetInfo()
			require.Equal(t, nvml.SUCCESS, ret)
			all = append(all, info.Id)
			defer func() {
				require.Equal(t, nvml.SUCCESS, ci.Destroy())
				require.Equal(t, nvml.SUCCESS, gi.Destroy())
			}()
		}
		return all
	}
	require.Equal(t, ids(0, 3, 6), ids(6, 3, 0))
}

func TestEnumeration(t *testing.T) {
	n := newNode(t, "1xH100-SXM5-80GB,1xL40S,mig=on")
	d := handle(t, n, 0)
	_, ret := d.CreateGpuInstance(profile(t, d, g1me))
	require.Equal(t, nvml.SUCCESS, ret)
	_, ci := create(t, d, g1, 0)
	create(t, d, g2, 2)
	indices := func() []int {
		var all []int
		count, ret := d.GetMaxMigDeviceCount()
		require.Equal(t, nvml.SUCCESS, ret)
		require.Equal(t, 7, count)
		for index := range count {
			mig, ret := d.GetMigDeviceHandleByIndex(index)
			if ret == nvml.ERROR_NOT_FOUND {
				continue
			}
			require.Equal(t, nvml.SUCCESS, ret)
			got, ret := mig.GetIndex()
			require.Equal(t, nvml.SUCCESS, ret)
			require.Equal(t, index, got)
			all = append(all, index)
		}
		return all
	}
	require.Equal(t, []int{0, 1}, indices(), "the GPU instance without a compute instance is no MIG device")
	require.Equal(t, nvml.SUCCESS, ci.Destroy())
	require.Equal(t, []int{1}, indices(), "a hole is not the end")

	mig, ret := d.GetMigDeviceHandleByIndex(1)
	require.Equal(t, nvml.SUCCESS, ret)
	is, ret := mig.IsMigDeviceHandle()
	require.Equal(t, nvml.SUCCESS, ret)
	require.True(t, is)
	parent, ret := mig.GetDeviceHandleFromMigDeviceHandle()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, uuidOf(t, d), uuidOf(t, parent))
	wrapped, err := nvlib.New(n.Interface()).NewMigDeviceByUUID(uuidOf(t, mig))
	require.NoError(t, err)
	p, err := wrapped.GetProfile()
	require.NoError(t, err)
	require.Equal(t, "2g.20gb", p.String())
	memory, ret := mig.GetMemoryInfo()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Less(t, memory.Total, profile(t, d, g2).MemorySizeMB<<20)

	_, ret = handle(t, n, 1).GetMigDeviceHandleByIndex(0)
	require.Equal(t, nvml.ERROR_NOT_SUPPORTED, ret)
}

func TestLookups(t *testing.T) {
	n := newNode(t, "2xH100-SXM5-80GB,1xA10G")
	lib := n.Interface()
	_, ret := lib.DeviceGetCount()
	require.Equal(t, nvml.ERROR_UNINITIALIZED, ret)
	require.Equal(t, nvml.ERROR_UNINITIALIZED, lib.Shutdown())
	d := handle(t, n, 2)
	count, ret := lib.DeviceGetCount()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, 3, count)
	serial, ret := d.GetSerial()
	require.Equal(t, nvml.SUCCESS, ret)
	pci, ret := d.GetPciInfo()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, uint32(0x223710DE), pci.PciDeviceId)
	wrapped, err := nvlib.New(lib).NewDevice(d)
	require.NoError(t, err)
	bus, err := wrapped.GetPCIBusID()
	require.NoError(t, err)
	require.Equal(t, "0000:2a:00.0", bus)
	for name, find := range map[string]func() (nvml.Device, nvml.Return){
		"uuid":       func() (nvml.Device, nvml.Return) { return lib.DeviceGetHandleByUUID(uuidOf(t, d)) },
		"serial":     func() (nvml.Device, nvml.Return) { return lib.DeviceGetHandleBySerial(serial) },
		"bus":        func() (nvml.Device, nvml.Return) { return lib.DeviceGetHandleByPciBusId(bus) },
		"long bus":   func() (nvml.Device, nvml.Return) { return lib.DeviceGetHandleByPciBusId("00000000:2A:00.0") },
		"no domain":  func() (nvml.Device, nvml.Return) { return lib.DeviceGetHandleByPciBusId("2A:00.0") },
		"by library": func() (nvml.Device, nvml.Return) { return lib.DeviceGetHandleByIndex(2) },
	} {
		got, ret := find()
		require.Equal(t, nvml.SUCCESS, ret, name)
		require.Equal(t, uuidOf(t, d), uuidOf(t, got), name)
	}
	for name, ret := range map[string]nvml.Return{
		"uuid": second(lib.DeviceGetHandleByUUID("GPU-0")), "serial": second(lib.DeviceGetHandleBySerial("0")), "bus": second(lib.DeviceGetHandleByPciBusId("0000:00:00.0")),
	} {
		require.Equal(t, nvml.ERROR_NOT_FOUND, ret, name)
	}
	for _, index := range []int{-1, 3} {
		require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, second(lib.DeviceGetHandleByIndex(index)))
	}
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, second(lib.DeviceGetHandleByPciBusId("x")))

	name, ret := lib.DeviceGetName(d)
	require.Equal(t, nvml.SUCCESS, ret, "the flat functions are the methods of the handle")
	require.Equal(t, "NVIDIA A10G", name)
	version, ret := lib.SystemGetDriverVersion()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, DriverVersion, version)
	cuda, ret := lib.SystemGetCudaDriverVersion()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, 13000, cuda)

	require.Equal(t, nvml.SUCCESS, lib.Init())
	require.Equal(t, nvml.SUCCESS, lib.Shutdown())
	uuidOf(t, d) // one user is left
	require.Equal(t, nvml.SUCCESS, lib.Shutdown())
	_, ret = d.GetUUID()
	require.Equal(t, nvml.ERROR_UNINITIALIZED, ret)
}

func TestSymbols(t *testing.T) {
	e := newNode(t, "1xA10G").Interface().Extensions()
	for _, symbol := range []string{"nvmlDeviceGetMigMode", "nvmlInit_v2", "nvmlDeviceGetGpuFabricInfo", "nvmlDeviceGetComputeRunningProcesses_v3"} {
		require.NoError(t, e.LookupSymbol(symbol))
	}
	for _, symbol := range []string{"nvmlDeviceGetGpuFabricInfoV", "nvmlNothing", "Init", ""} {
		require.Error(t, e.LookupSymbol(symbol))
	}
}

// Nothing may panic, whatever is called with whatever.
func TestNothingPanics(t *testing.T) {
	n := newNode(t, "1xH100-SXM5-80GB,1xL40S,mig=on")
	d := handle(t, n, 0)
	gi, ci := create(t, d, g1, 0)
	mig, ret := d.GetMigDeviceHandleByIndex(0)
	require.Equal(t, nvml.SUCCESS, ret)
	set, ret := n.Interface().EventSetCreate()
	require.Equal(t, nvml.SUCCESS, ret)
	calls, refused := 0, 0
	for _, target := range []any{mig, ci, gi, handle(t, n, 1), d, set, n.Interface()} {
		v := reflect.ValueOf(target)
		for i := range v.NumMethod() {
			name := v.Type().Method(i).Name
			if strings.HasSuffix(name, "Calls") || name == "Shutdown" {
				continue
			}
			args := make([]reflect.Value, v.Method(i).Type().NumIn())
			for a := range args {
				args[a] = reflect.Zero(v.Method(i).Type().In(a))
			}
			calls++
			require.NotPanics(t, func() {
				for _, out := range v.Method(i).Call(args) {
					if ret, ok := out.Interface().(nvml.Return); ok && ret == nvml.ERROR_NOT_SUPPORTED {
						refused++
					}
				}
			}, name)
		}
	}
	require.Greater(t, calls, 1000)
	require.Greater(t, refused, 500)
}

func TestBoardsTellTheTruth(t *testing.T) {
	n := newNode(t, "1xA100-SXM4-40GB,1xH100-SXM5-80GB,1xL40S,1xA10G")
	lib := nvlib.New(n.Interface())
	for index, want := range map[int][4]string{
		0: {"NVIDIA A100-SXM4-40GB", "Ampere", "8.0", "Nvidia"}, 1: {"NVIDIA H100 80GB HBM3", "Hopper", "9.0", "Nvidia"},
		2: {"NVIDIA L40S", "Ada Lovelace", "8.9", "Nvidia"}, 3: {"NVIDIA A10G", "Ampere", "8.6", "Nvidia"},
	} {
		d, err := lib.NewDevice(handle(t, n, index))
		require.NoError(t, err)
		name, ret := d.GetName()
		require.Equal(t, nvml.SUCCESS, ret)
		architecture, err := d.GetArchitectureAsString()
		require.NoError(t, err)
		capability, err := d.GetCudaComputeCapabilityAsString()
		require.NoError(t, err)
		brand, err := d.GetBrandAsString()
		require.NoError(t, err)
		require.Equal(t, want, [4]string{name, architecture, capability, brand})
		attached, err := d.IsFabricAttached()
		require.NoError(t, err)
		require.Equal(t, index == 1, attached)
	}
}
