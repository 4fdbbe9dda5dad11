package nvmlsim

import (
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"
)

func TestEvents(t *testing.T) {
	n := newNode(t, "3xH100-SXM5-80GB,mig=on")
	lib := n.Interface()
	d := handle(t, n, 0)
	create(t, d, g1, 0)
	require.NoError(t, n.Xid("0", 13, nil, nil), "before the registration: nobody hears of it")
	set, ret := lib.EventSetCreate()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.ERROR_NOT_SUPPORTED, d.RegisterEvents(nvml.EventTypeClock, set))
	require.Equal(t, nvml.SUCCESS, d.RegisterEvents(nvml.EventTypeXidCriticalError, set))
	mig, ret := d.GetMigDeviceHandleByIndex(0)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.ERROR_NOT_SUPPORTED, mig.RegisterEvents(nvml.EventTypeXidCriticalError, set), "events are the parent's")
	_, ret = set.Wait(0)
	require.Equal(t, nvml.ERROR_TIMEOUT, ret)

	other := again(t, n)
	require.NoError(t, other.Xid("1", 31, nil, nil), "of a board that is not registered")
	require.Equal(t, nvml.SUCCESS, handle(t, n, 1).RegisterEvents(nvml.EventTypeXidCriticalError, set))
	require.NoError(t, other.Xid("0", 79, nil, nil))
	require.NoError(t, other.Xid("0", 94, ptr(7), ptr(0)))
	require.NoError(t, other.Xid("1", 48, nil, nil))
	type got struct {
		index  int
		xid    uint64
		gi, ci uint32
	}
	var all []got
	for range 3 {
		e, ret := lib.EventSetWait(set, 60_000)
		require.Equal(t, nvml.SUCCESS, ret)
		require.Equal(t, uint64(nvml.EventTypeXidCriticalError), e.EventType)
		index, ret := e.Device.GetIndex()
		require.Equal(t, nvml.SUCCESS, ret)
		all = append(all, got{index, e.EventData, e.GpuInstanceId, e.ComputeInstanceId})
	}
	require.Equal(t, []got{{0, 79, unattributed, unattributed}, {0, 94, 7, 0}, {1, 48, unattributed, unattributed}}, all)

	require.NoError(t, n.Lose("1"))
	e, ret := set.Wait(60_000)
	require.Equal(t, nvml.ERROR_GPU_IS_LOST, ret)
	require.Nil(t, e.Device, "it does not say which")
	require.NoError(t, n.Restore("1"))
	require.Equal(t, nvml.SUCCESS, set.Free())
	_, ret = set.Wait(60_000)
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, ret)
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, d.RegisterEvents(nvml.EventTypeXidCriticalError, set))
}

// An event reaches a set that waits already.
func TestWaitWakesUp(t *testing.T) {
	n := newNode(t, "1xA10G")
	set, ret := n.Interface().EventSetCreate()
	require.Equal(t, nvml.ERROR_UNINITIALIZED, ret)
	require.Nil(t, set)
	d := handle(t, n, 0)
	set, ret = n.Interface().EventSetCreate()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.SUCCESS, d.RegisterEvents(nvml.EventTypeXidCriticalError, set))
	heard := make(chan nvml.EventData)
	go func() {
		e, _ := set.Wait(60_000)
		heard <- e
	}()
	require.NoError(t, n.Xid("0", 63, nil, nil))
	require.Equal(t, uint64(63), (<-heard).EventData)
}

func TestTheLogIsBounded(t *testing.T) {
	n := newNode(t, "1xA10G")
	d := handle(t, n, 0)
	set, ret := n.Interface().EventSetCreate()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.SUCCESS, d.RegisterEvents(nvml.EventTypeXidCriticalError, set))
	for i := range keptEvents + 10 {
		require.NoError(t, n.Xid("0", uint64(i), nil, nil))
	}
	require.Len(t, stateOf(t, n).Events, keptEvents)
	e, ret := set.Wait(0)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, uint64(10), e.EventData, "who sleeps too long has lost the oldest")
}

func TestLostBoard(t *testing.T) {
	n := newNode(t, "3xH100-SXM5-80GB,mig=on")
	lib := n.Interface()
	d := handle(t, n, 1)
	gi, ci := create(t, d, g1, 0)
	mig, ret := d.GetMigDeviceHandleByIndex(0)
	require.Equal(t, nvml.SUCCESS, ret)
	uuids := []string{uuidOf(t, handle(t, n, 0)), uuidOf(t, d), uuidOf(t, handle(t, n, 2))}
	require.NoError(t, n.Lose("1"))
	_, _, modeRet := d.GetMigMode()
	setRet, _ := d.SetMigMode(off)
	for name, ret := range map[string]nvml.Return{
		"UUID": second(d.GetUUID()), "mode": modeRet, "set mode": setRet, "GPU instance": second(gi.GetInfo()), "destroy": gi.Destroy(),
		"compute instance": second(ci.GetInfo()), "destroy compute": ci.Destroy(), "MIG device": second(mig.GetUUID()), "fabric": second(d.GetGpuFabricInfo()),
		"by index": second(lib.DeviceGetHandleByIndex(1)), "by bus": second(lib.DeviceGetHandleByPciBusId(busID(1))), "by UUID": second(lib.DeviceGetHandleByUUID(uuids[1])),
		"behind it by UUID": second(lib.DeviceGetHandleByUUID(uuids[2])),
	} {
		require.Equal(t, nvml.ERROR_GPU_IS_LOST, ret, name)
	}
	require.ErrorIs(t, n.Reset("1"), nvml.ERROR_GPU_IS_LOST)
	count, ret := lib.DeviceGetCount()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, 3, count)
	require.Equal(t, nvml.SUCCESS, second(lib.DeviceGetHandleByUUID(uuids[0])))
	require.Equal(t, nvml.SUCCESS, second(lib.DeviceGetHandleByIndex(2)))
	require.NoError(t, n.Restore("1"))
	require.Equal(t, uuids[1], uuidOf(t, d))
}
