package plugin_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

// applied collects what is applied to the status of claims.
type applied struct {
	client *fake.Clientset
	mu     sync.Mutex
	fail   error
	all    []resourceapi.ResourceClaim
}

func newApplied(t *testing.T) *applied {
	t.Helper()
	a := &applied{client: fake.NewClientset()}
	a.client.PrependReactor("patch", "resourceclaims", func(action clienttesting.Action) (bool, runtime.Object, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if err := a.fail; err != nil {
			a.fail = nil
			return true, nil, err
		}
		c := resourceapi.ResourceClaim{}
		err := json.Unmarshal(action.(clienttesting.PatchAction).GetPatch(), &c)
		a.all = append(a.all, c)
		return true, &c, err
	})
	return a
}

func (a *applied) last(t *testing.T, n int) resourceapi.ResourceClaim {
	t.Helper()
	require.Eventually(t, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.all) >= n
	}, waitLong, waitStep)
	a.mu.Lock()
	defer a.mu.Unlock()
	require.Len(t, a.all, n)
	return a.all[n-1]
}

func TestStatusFollowsTheJournal(t *testing.T) {
	j, err := journal.Open(t.TempDir())
	require.NoError(t, err)
	instance := gpu.Instance{GPU: "GPU-1", Profile: "1g.10gb", Placement: gpu.Placement{Start: 6, Size: 1}, ID: 9, Compute: []gpu.ComputeInstance{{ID: 0, UUID: "MIG-1", Whole: true}}}
	record := &journal.Claim{
		UID: "uid", Namespace: "ns", Name: "name", State: journal.ClaimPrepared, PreparedAt: time.Unix(1000, 0),
		Devices: []journal.ClaimDevice{
			{Request: "a", Pool: "node", Name: "gpu-1-mig-1g10gb-6", Device: instance.Device(), Instance: &instance},
			{Request: "b", Pool: "node", Name: "gpu-2", Device: gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-2"}, Conditions: []journal.Condition{{Type: "TimeSliceNotApplied", Message: "why"}}},
		},
	}
	require.NoError(t, j.PutClaim(record))
	a := newApplied(t)
	a.fail = errors.New("connection refused") // It is tried again.
	s := plugin.NewStatus(a.client, pool.DefaultDriver, j)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()

	// A claim that an earlier process has prepared is written without being asked for.
	got := a.last(t, 1)
	require.Equal(t, "uid", string(got.UID))
	require.Len(t, got.Status.Devices, 2)
	mig := got.Status.Devices[0]
	require.Equal(t, []string{pool.DefaultDriver, "node", "gpu-1-mig-1g10gb-6"}, []string{mig.Driver, mig.Pool, mig.Device})
	require.Equal(t, "Ready", mig.Conditions[0].Type)
	require.Equal(t, metav1.ConditionTrue, mig.Conditions[0].Status)
	require.JSONEq(t, `{"type":"mig","uuid":"MIG-1","gpuUUID":"GPU-1","profile":"1g.10gb","placement":{"start":6,"size":1},
		"gpuInstanceID":9,"computeInstanceID":0,"preparedAt":"1970-01-01T00:16:40Z"}`, string(mig.Data.Raw))
	require.JSONEq(t, `{"type":"gpu","uuid":"GPU-2","gpuUUID":"GPU-2","preparedAt":"1970-01-01T00:16:40Z"}`, string(got.Status.Devices[1].Data.Raw))

	told := got.Status.Devices[1].Conditions[1]
	require.Equal(t, []string{"TimeSliceNotApplied", "TimeSliceNotApplied", "why", "True"}, []string{told.Type, told.Reason, told.Message, string(told.Status)})

	require.NoError(t, j.DeleteClaim("uid"))
	s.Changed("ns", "name", "uid")
	require.Empty(t, a.last(t, 2).Status.Devices)

	// A claim that is gone is no error.
	a.mu.Lock()
	a.fail = apierrors.NewNotFound(resourceapi.Resource("resourceclaims"), "name")
	a.mu.Unlock()
	s.Changed("ns", "name", "uid")
	s.Changed("ns", "other", "uid")
	require.Equal(t, "other", a.last(t, 3).Name)
	cancel()
	<-done
}
