package plugin

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

type records []*journal.Claim

func (r records) Claims() ([]*journal.Claim, error)     { return r, nil }
func (records) Instances() ([]*journal.Instance, error) { return nil, nil }

func TestStaleClaims(t *testing.T) {
	object := func(uid types.UID, allocated bool) *resourceapi.ResourceClaim {
		c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "name", UID: uid}}
		if allocated {
			c.Status.Allocation = &resourceapi.AllocationResult{}
		}
		return c
	}
	for name, c := range map[string]struct {
		object   *resourceapi.ResourceClaim
		apiErr   error
		inPods   []string
		podsErr  error
		environ  string
		after    time.Duration
		released bool
	}{
		"gone":                          {after: 2 * time.Minute, released: true},
		"gone, not for long":            {after: 30 * time.Second},
		"another of its name":           {object: object("other", true), after: 2 * time.Minute, released: true},
		"no longer allocated":           {object: object("uid", false), after: 2 * time.Minute, released: true},
		"alive":                         {object: object("uid", true), after: 2 * time.Minute},
		"the API server is away":        {apiErr: errors.New("connection refused"), after: 2 * time.Minute},
		"the kubelet does not answer":   {podsErr: errors.New("no socket"), after: 2 * time.Minute},
		"a pod has it":                  {inPods: []string{"kerf.dev/claim=uid-gpu-1"}, after: 2 * time.Minute},
		"another claim's pod":           {inPods: []string{"kerf.dev/claim=else-gpu-1"}, after: 2 * time.Minute, released: true},
		"a process has it":              {environ: "A=b\x00KERF_R_GPU_1_TIMESLICE_0_UUID=GPU-1\x00C=d", after: 2 * time.Minute},
		"a process has another replica": {environ: "KERF_R_GPU_1_TIMESLICE_1_UUID=GPU-1\x00", after: 2 * time.Minute, released: true},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			if c.object != nil {
				client = fake.NewClientset(c.object)
			}
			if c.apiErr != nil {
				client.PrependReactor("get", "resourceclaims", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, c.apiErr })
			}
			proc := t.TempDir()
			require.NoError(t, os.MkdirAll(filepath.Join(proc, "17"), 0o755))
			require.NoError(t, os.MkdirAll(filepath.Join(proc, "18"), 0o755)) // One that is ending.
			require.NoError(t, os.WriteFile(filepath.Join(proc, "17", "environ"), []byte(c.environ), 0o644))
			released := false
			now := time.Unix(0, 0)
			s := &Stale{
				Client: client, Proc: proc, After: time.Minute, now: func() time.Time { return now },
				Records: records{{UID: "uid", Namespace: "ns", Name: "name", State: journal.ClaimPrepared, Devices: []journal.ClaimDevice{
					{Request: "r", Name: "gpu-1-timeslice-0", Device: gpu.Device{Type: gpu.TypeTimeSlice, GPU: "GPU-1"}},
				}}},
				InPods:  func(context.Context) ([]string, error) { return c.inPods, c.podsErr },
				Release: func(context.Context, string) error { released = true; return nil },
			}
			_ = s.Sweep(t.Context())
			require.False(t, released, "at once")
			now = now.Add(c.after)
			err := s.Sweep(t.Context())
			require.Equal(t, c.apiErr != nil || c.podsErr != nil, err != nil, "%v", err)
			require.Equal(t, c.released, released)
		})
	}
}

// A claim that comes back has its time start anew.
func TestAClaimThatReturnsIsNotStale(t *testing.T) {
	client := fake.NewClientset()
	now := time.Unix(0, 0)
	s := &Stale{
		Client: client, Proc: t.TempDir(), After: time.Minute, now: func() time.Time { return now },
		Records: records{{UID: "uid", Namespace: "ns", Name: "name"}},
		InPods:  func(context.Context) ([]string, error) { return nil, nil },
		Release: func(context.Context, string) error { return errors.New("released") },
	}
	require.NoError(t, s.Sweep(t.Context()))
	claim := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "name", UID: "uid"}}
	claim.Status.Allocation = &resourceapi.AllocationResult{}
	require.NoError(t, client.Tracker().Add(claim))
	now = now.Add(2 * time.Minute)
	require.NoError(t, s.Sweep(t.Context()))
	require.NoError(t, client.ResourceV1().ResourceClaims("ns").Delete(t.Context(), "name", metav1.DeleteOptions{}))
	require.NoError(t, s.Sweep(t.Context()))
	now = now.Add(2 * time.Minute)
	require.ErrorContains(t, s.Sweep(t.Context()), "released")
}
