package plugin_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

type fakeEngine struct {
	wanted []claims.Claim
	err    error
}

func (e *fakeEngine) Prepare(_ context.Context, c claims.Claim) ([]claims.Prepared, error) {
	e.wanted = append(e.wanted, c)
	var all []claims.Prepared
	for _, d := range c.Devices {
		all = append(all, claims.Prepared{ClaimDevice: d, CDI: "kerf.dev/claim=" + c.UID + "-" + d.Name})
	}
	return all, e.err
}

func (e *fakeEngine) Unprepare(context.Context, string) error { return e.err }

func unobserved(string, time.Duration, error) {}

func unwritten(string, string, string) {}

// catalogue is a pool of which no more than the names of its devices is known.
type catalogue map[string]gpu.Device

func (c catalogue) Device(name string) (gpu.Device, bool) {
	d, ok := c[name]
	return d, ok
}

func (catalogue) Resources() resourceslice.DriverResources {
	return resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{"node": {Slices: []resourceslice.Slice{
		{Devices: []resourceapi.Device{{Name: mig}}},
	}}}}
}

func (catalogue) Released() {}

func (catalogue) Failed([]gpu.Device, error) {}

func (catalogue) Confirm(context.Context) error { return nil }

func (catalogue) Lacks(pool.Lacks) bool { return true }

func (catalogue) Conditions() ([]gpu.Condition, <-chan struct{}) { return nil, nil }

const mig = "gpu-3f2a91c4-mig-1g10gb-6"

func driver(t *testing.T, e plugin.Engine) *plugin.Driver {
	t.Helper()
	b, err := gpu.BoardByName("H100-SXM5-80GB")
	require.NoError(t, err)
	node := pool.Node{Name: "node", Driver: pool.DefaultDriver}
	return plugin.NewDriver(e, node, catalogue(gpu.Catalogue([]gpu.GPU{{UUID: "GPU-3f2a91c4-1", Profiles: b.Profiles}})), unobserved, unwritten, &record.FakeRecorder{}, func(error) {})
}

func claim(change func(*resourceapi.DeviceAllocationResult)) *resourceapi.ResourceClaim {
	result := resourceapi.DeviceRequestAllocationResult{Request: "r/first", Driver: pool.DefaultDriver, Pool: "node", Device: mig}
	other := resourceapi.DeviceRequestAllocationResult{Request: "nic", Driver: "nic.example.com", Pool: "p", Device: "d"}
	allocation := resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{result, other}}
	if change != nil {
		change(&allocation)
	}
	return &resourceapi.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{UID: "uid", Namespace: "ns", Name: "name"},
		Status:     resourceapi.ResourceClaimStatus{Allocation: &resourceapi.AllocationResult{Devices: allocation}},
	}
}

func TestPrepareAnswersWithTheCDIDevice(t *testing.T) {
	e := &fakeEngine{}
	results, err := driver(t, e).PrepareResourceClaims(t.Context(), []*resourceapi.ResourceClaim{claim(nil)})
	require.NoError(t, err)
	require.Equal(t, map[types.UID]kubeletplugin.PrepareResult{"uid": {Devices: []kubeletplugin.Device{{
		Requests: []string{"r"}, PoolName: "node", DeviceName: mig, CDIDeviceIDs: []string{"kerf.dev/claim=uid-" + mig},
		Metadata: &kubeletplugin.DeviceMetadata{Attributes: map[string]resourceapi.DeviceAttribute{}},
	}}}}, results)
	require.Equal(t, gpu.Placement{Start: 6, Size: 1}, e.wanted[0].Devices[0].Device.Placement)
	require.False(t, e.wanted[0].Devices[0].AdminAccess)
}

func TestAdminAccessReachesTheEngine(t *testing.T) {
	e, yes := &fakeEngine{}, true
	_, err := driver(t, e).PrepareResourceClaims(t.Context(), []*resourceapi.ResourceClaim{claim(func(a *resourceapi.DeviceAllocationResult) { a.Results[0].AdminAccess = &yes })})
	require.NoError(t, err)
	require.True(t, e.wanted[0].Devices[0].AdminAccess)
}

func TestPrepareRefusesBeforeItTouchesAnything(t *testing.T) {
	parameters := func(raw string) func(*resourceapi.DeviceAllocationResult) {
		return func(a *resourceapi.DeviceAllocationResult) {
			a.Config = []resourceapi.DeviceAllocationConfiguration{{
				Source: resourceapi.AllocationConfigSourceClaim,
				DeviceConfiguration: resourceapi.DeviceConfiguration{Opaque: &resourceapi.OpaqueDeviceConfiguration{
					Driver: pool.DefaultDriver, Parameters: runtime.RawExtension{Raw: []byte(raw)},
				}},
			}}
		}
	}
	for name, c := range map[string]struct {
		change  func(*resourceapi.DeviceAllocationResult)
		message string
	}{
		"unknown device":  {func(a *resourceapi.DeviceAllocationResult) { a.Results[0].Device = "gpu-9" }, "no device gpu-9"},
		"another pool":    {func(a *resourceapi.DeviceAllocationResult) { a.Results[0].Pool = "elsewhere" }, "pool elsewhere"},
		"none of ours":    {func(a *resourceapi.DeviceAllocationResult) { a.Results = a.Results[1:] }, "no device of driver"},
		"unknown field":   {parameters(`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","spec":{"migg":{}}}`), `unknown field "spec.migg"`},
		"null":            {parameters(`null`), "not an object"},
		"another profile": {parameters(`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","spec":{"mig":{"profile":"3g.40gb"}}}`), "wants 3g.40gb, but 1g.10gb is allocated"},
		"another count":   {parameters(`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","spec":{"mig":{"count":2}}}`), "exactly.count"},
	} {
		t.Run(name, func(t *testing.T) {
			e := &fakeEngine{}
			results, err := driver(t, e).PrepareResourceClaims(t.Context(), []*resourceapi.ResourceClaim{claim(c.change)})
			require.NoError(t, err)
			require.ErrorContains(t, results["uid"].Err, c.message)
			require.Empty(t, e.wanted)
		})
	}
}

func TestErrorsNameTheClaim(t *testing.T) {
	broken := errors.New("broken")
	d := driver(t, &fakeEngine{err: broken})
	results, err := d.PrepareResourceClaims(t.Context(), []*resourceapi.ResourceClaim{claim(nil)})
	require.NoError(t, err)
	require.ErrorIs(t, results["uid"].Err, broken)
	require.ErrorContains(t, results["uid"].Err, "ns/name")

	errs, err := d.UnprepareResourceClaims(t.Context(), []kubeletplugin.NamespacedObject{{UID: "uid"}})
	require.NoError(t, err)
	require.ErrorIs(t, errs["uid"], broken)
}

// unconfirmed is a pool that the API server cannot be told about.
type unconfirmed struct{ catalogue }

func (unconfirmed) Confirm(context.Context) error { return errors.New("connection refused") }

// A release that a third party blocks is a success for the kubelet, once nobody else can be given the devices.
func TestABlockedReleaseSucceedsWhenTheAPIKnows(t *testing.T) {
	e := &fakeEngine{err: &claims.BlockedError{Err: gpu.ErrInUse}}
	claims := []kubeletplugin.NamespacedObject{{UID: "uid"}}
	errs, err := driver(t, e).UnprepareResourceClaims(t.Context(), claims)
	require.NoError(t, err)
	require.NoError(t, errs["uid"])

	errs, err = plugin.NewDriver(e, pool.Node{}, unconfirmed{}, unobserved, unwritten, &record.FakeRecorder{}, nil).UnprepareResourceClaims(t.Context(), claims)
	require.NoError(t, err)
	require.ErrorIs(t, errs["uid"], gpu.ErrInUse)
	require.ErrorContains(t, errs["uid"], "connection refused")
}

// Where the API server drops what a slice needs, the node goes on with less, and says so once.
func TestAServerWithoutAFeature(t *testing.T) {
	w := newWorld(t)
	w.share(2)
	p := w.start()
	require.Greater(t, len(published(p)), 2)
	events := record.NewFakeRecorder(5)
	var died error
	d := plugin.NewDriver(&fakeEngine{}, pool.Node{Name: "node", Driver: pool.DefaultDriver}, p, unobserved, unwritten, events, func(err error) { died = err })
	dropped := &resourceslice.DroppedFieldsError{
		PoolName:     "node",
		DesiredSlice: &resourceapi.ResourceSlice{Spec: resourceapi.ResourceSliceSpec{SharedCounters: p.Resources().Pools["node"].Slices[0].SharedCounters}},
		ActualSlice:  &resourceapi.ResourceSlice{},
	}
	for range 2 {
		d.HandleError(t.Context(), errors.Join(kubeletplugin.ErrRecoverable, dropped), "publish")
	}
	require.NoError(t, died)
	require.Len(t, events.Events, 1, "once")
	require.Contains(t, <-events.Events, "DRAPartitionableDevices")
	require.NoError(t, p.Look(t.Context()))
	require.Len(t, published(p), 2, "the two GPUs, whole")

	// What is dropped for a reason that is not known ends the process.
	unknown := &resourceslice.DroppedFieldsError{DesiredSlice: &resourceapi.ResourceSlice{}, ActualSlice: &resourceapi.ResourceSlice{}}
	d.HandleError(t.Context(), errors.Join(kubeletplugin.ErrRecoverable, unknown), "publish")
	require.Error(t, died)
}
