package nvmlsim

import (
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"
)

func TestMemoryErrors(t *testing.T) {
	n := newNode(t, "1xH100-SXM5-80GB,1xL40S,mig=on")
	d := handle(t, n, 0)
	uncorrected := func() uint64 {
		errors, ret := d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC)
		require.Equal(t, nvml.SUCCESS, ret)
		return errors
	}
	require.Zero(t, uncorrected())
	set, ret := n.Interface().EventSetCreate()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, nvml.SUCCESS, d.RegisterEvents(nvml.EventTypeDoubleBitEccError, set))
	require.NoError(t, n.Xid("0", 48, nil, nil), "of a type that nobody has asked for")
	require.NoError(t, n.ECCErrors("0", 2))
	require.NoError(t, n.ECCErrors("0", 1))
	e, ret := set.Wait(0)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, uint64(nvml.EventTypeDoubleBitEccError), e.EventType)
	require.Equal(t, uint64(3), uncorrected())
	corrected, ret := d.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_CORRECTED, nvml.VOLATILE_ECC)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Zero(t, corrected)

	require.NoError(t, n.RemapRows("0", true, true))
	_, _, pending, failed, ret := d.GetRemappedRows()
	require.Equal(t, nvml.SUCCESS, ret)
	require.True(t, pending && failed)
	create(t, d, g1, 0)
	_, _, _, _, ret = d.GetRemappedRows()
	require.Equal(t, nvml.ERROR_NOT_SUPPORTED, ret, "with instances it is not told")

	require.NoError(t, n.Reset("0"))
	d = handle(t, n, 0)
	require.Zero(t, uncorrected())
	_, _, pending, failed, ret = d.GetRemappedRows()
	require.Equal(t, nvml.SUCCESS, ret)
	require.False(t, pending)
	require.True(t, failed, "what has failed has failed")
}

func TestEveryBootHasAnID(t *testing.T) {
	n := newNode(t, "1xL40S")
	id := func() string { return contents(t, onDisk(n, "proc/sys/kernel/random/boot_id")) }
	first := id()
	require.NoError(t, n.Reset("0"))
	require.Equal(t, first, id())
	require.NoError(t, n.Reboot())
	require.NotEqual(t, first, id())
}
