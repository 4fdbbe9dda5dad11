package nvmlsim

import (
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"
)

const on, off = nvml.DEVICE_MIG_ENABLE, nvml.DEVICE_MIG_DISABLE

func requireMode(t *testing.T, d nvml.Device, current, pending int) {
	t.Helper()
	c, p, ret := d.GetMigMode()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, []int{current, pending}, []int{c, p})
}

func TestToggle(t *testing.T) {
	n := newNode(t, "2xH100-SXM5-80GB")
	d := handle(t, n, 0)
	uuid := uuidOf(t, d)
	ret, activation := d.SetMigMode(7)
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret)
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, activation)
	ret, activation = d.SetMigMode(off)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.SUCCESS, activation)
	uuidOf(t, d) // nothing has happened

	ret, activation = d.SetMigMode(on)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.SUCCESS, activation)
	_, ret = d.GetUUID()
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret, "the handle is of before the toggle")
	_, ret = d.CreateGpuInstance(&nvml.GpuInstanceProfileInfo{Id: 19})
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret)

	d = handle(t, n, 0)
	requireMode(t, d, on, on)
	require.Equal(t, uuid, uuidOf(t, d))
	minor, ret := d.GetMinorNumber()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, 2, minor, "the minor has changed")

	var states []uint8
	for range fabricReads + 1 {
		info, ret := d.GetGpuFabricInfo()
		require.Equal(t, nvml.SUCCESS, ret)
		states = append(states, info.State)
	}
	require.Equal(t, []uint8{nvml.GPU_FABRIC_STATE_IN_PROGRESS, nvml.GPU_FABRIC_STATE_IN_PROGRESS, nvml.GPU_FABRIC_STATE_IN_PROGRESS, nvml.GPU_FABRIC_STATE_COMPLETED}, states)

	_, activation = d.SetMigMode(off)
	require.Equal(t, nvml.SUCCESS, activation)
	minor, ret = handle(t, n, 0).GetMinorNumber()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, 0, minor)
	minor, ret = handle(t, n, 1).GetMinorNumber()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, 1, minor, "other boards keep theirs")
}

func TestWhatBlocksAToggle(t *testing.T) {
	for name, block := range map[string]func(*testing.T, *Node) (unblock func()){
		"a handle outside": func(t *testing.T, n *Node) func() {
			require.NoError(t, n.AddClient("0", Client{PID: 9, Command: "nv-hostengine"}))
			return func() { require.NoError(t, n.RemoveClient("0", 9)) }
		},
		"another session's handle": func(t *testing.T, n *Node) func() {
			other := again(t, n)
			handle(t, other, 0)
			return func() { require.Equal(t, nvml.SUCCESS, other.Interface().Shutdown()) }
		},
		"another process that has closed its node": func(t *testing.T, n *Node) func() {
			other, err := OpenExisting(n.kernel.dir, withProc("testdata/proc-devices"))
			require.NoError(t, err)
			handle(t, other, 0)
			return func() { require.NoError(t, other.Close()) }
		},
		"our own events": func(t *testing.T, n *Node) func() {
			set, ret := n.Interface().EventSetCreate()
			require.Equal(t, nvml.SUCCESS, ret)
			require.Equal(t, nvml.SUCCESS, handle(t, n, 0).RegisterEvents(nvml.EventTypeXidCriticalError, set))
			return func() { require.Equal(t, nvml.SUCCESS, set.Free()) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "1xH100-SXM5-80GB")
			d := handle(t, n, 0)
			unblock := block(t, n)
			for range 2 {
				ret, activation := d.SetMigMode(on)
				require.Equal(t, nvml.SUCCESS, ret)
				require.Equal(t, nvml.ERROR_IN_USE, activation)
				requireMode(t, d, off, on)
			}
			require.ErrorIs(t, n.SetMIGMode("0", true), nvml.ERROR_IN_USE, "our handle is in the outside world's way too")
			unblock()
			ret, activation := d.SetMigMode(on)
			require.Equal(t, nvml.SUCCESS, ret)
			require.Equal(t, nvml.SUCCESS, activation)
			requireMode(t, handle(t, n, 0), on, on)
		})
	}
}

func TestInstancesBlockAToggle(t *testing.T) {
	n := newNode(t, "1xH100-SXM5-80GB,mig=on")
	d := handle(t, n, 0)
	gi, ci := create(t, d, g1, 3)
	_, activation := d.SetMigMode(off)
	require.Equal(t, nvml.ERROR_IN_USE, activation)
	requireMode(t, d, on, off)
	ret, activation := d.SetMigMode(on)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.SUCCESS, activation)
	requireMode(t, d, on, on)
	require.Equal(t, nvml.SUCCESS, ci.Destroy())
	require.Equal(t, nvml.SUCCESS, gi.Destroy())
	_, activation = d.SetMigMode(off)
	require.Equal(t, nvml.SUCCESS, activation)
	_, ret = gi.GetInfo()
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret)
}

func TestAmpereNeedsAReset(t *testing.T) {
	n := newNode(t, "1xA100-SXM4-40GB")
	d := handle(t, n, 0)
	require.NoError(t, n.AddClient("0", Client{PID: 4, Process: true}))
	_, activation := d.SetMigMode(on)
	require.Equal(t, nvml.ERROR_IN_USE, activation)
	require.ErrorIs(t, n.Reset("0"), nvml.ERROR_IN_USE)
	require.NoError(t, n.RemoveClient("0", 4))
	ret, activation := d.SetMigMode(on)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.ERROR_RESET_REQUIRED, activation)
	requireMode(t, d, off, on)
	_, ret = d.CreateGpuInstance(profile(t, d, g1))
	require.Equal(t, nvml.ERROR_NOT_SUPPORTED, ret)
	_, ret = d.GetGpuFabricInfo()
	require.Equal(t, nvml.ERROR_NOT_SUPPORTED, ret)

	require.NoError(t, n.Reset("0"))
	_, ret = d.GetMinorNumber()
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret)
	d = handle(t, n, 0)
	requireMode(t, d, on, on)
	create(t, d, g1, 0)

	require.NoError(t, n.Reboot())
	d = handle(t, n, 0)
	requireMode(t, d, on, on)
	require.Empty(t, stateOf(t, n).GPUs[0].Instances, "the mode survives a reboot, the instances do not")
	require.ErrorIs(t, n.SetMIGMode("0", false), nvml.ERROR_IN_USE)
	require.Equal(t, nvml.SUCCESS, n.Interface().Shutdown())
	require.ErrorIs(t, n.SetMIGMode("0", false), nvml.ERROR_RESET_REQUIRED)
	requireMode(t, handle(t, n, 0), on, off)
}

func TestHopperLosesItsMode(t *testing.T) {
	for name, lose := range map[string]func(*Node) error{
		"reset":  func(n *Node) error { return n.Reset("0") },
		"reboot": func(n *Node) error { return n.Reboot() },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "1xH100-SXM5-80GB,mig=on")
			_, err := n.CreateInstance("0", "3g.40gb", nil, true)
			require.NoError(t, err)
			require.NoError(t, lose(n))
			d := handle(t, n, 0)
			requireMode(t, d, off, off)
			boards, err := n.Boards()
			require.NoError(t, err)
			require.Empty(t, boards[0].Instances)
		})
	}
}

func TestReboot(t *testing.T) {
	n := newNode(t, "2xH200-SXM-141GB")
	d := handle(t, n, 0)
	_, activation := d.SetMigMode(on)
	require.Equal(t, nvml.SUCCESS, activation)
	require.NoError(t, n.AddClient("1", Client{PID: 3, Process: true}))
	require.NoError(t, n.Lose("1"))
	require.NoError(t, n.Reboot())
	_, ret := d.GetUUID()
	require.Equal(t, nvml.ERROR_UNINITIALIZED, ret, "no session outlives it")
	_, ret = n.Interface().DeviceGetCount()
	require.Equal(t, nvml.ERROR_UNINITIALIZED, ret)
	boards, err := n.Boards()
	require.NoError(t, err)
	for i, b := range boards {
		require.Equal(t, i, b.Minor)
		require.False(t, b.Lost)
		require.Empty(t, b.Clients)
	}
	uuidOf(t, handle(t, n, 1))
}
