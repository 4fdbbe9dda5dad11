package journal_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

const uid = "9f3c0d52-1b1e-4c39-9d0a-3f2a91c4aaaa"

var instance = gpu.Instance{
	GPU: "GPU-3f2a91c4", Profile: "1g.10gb+me", Placement: gpu.Placement{Start: 4, Size: 1}, ID: 9,
	Compute: []gpu.ComputeInstance{{ID: 0, UUID: "MIG-1", Whole: true}},
}

func claim() *journal.Claim {
	return &journal.Claim{
		UID: uid, Namespace: "team", Name: "inference", State: journal.ClaimPrepared, PreparedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Devices: []journal.ClaimDevice{{
			Request: "gpu", Pool: "node-1", Name: "gpu-3f2a91c4-mig-1g10gb-me-4", ShareID: "s", ConsumedCapacity: map[string]string{"memory": "1Gi"},
			Device:   gpu.Device{Type: gpu.TypeMIG, GPU: instance.GPU, Profile: instance.Profile, Placement: instance.Placement},
			Instance: &instance,
		}},
	}
}

func open(t *testing.T) (*journal.Journal, string) {
	t.Helper()
	dir := t.TempDir()
	j, err := journal.Open(dir)
	require.NoError(t, err)
	return j, dir
}

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	j, dir := open(t)
	_, err := j.Claim(uid)
	require.ErrorIs(t, err, journal.ErrNotFound)

	c, i := claim(), &journal.Instance{State: journal.InstanceClaimed, Claim: uid, Identified: true, Instance: instance}
	require.NoError(t, j.PutClaim(c))
	require.NoError(t, j.PutInstance(i))

	// Another process sees the same.
	other, err := journal.Open(dir)
	require.NoError(t, err)
	gotClaim, err := other.Claim(uid)
	require.NoError(t, err)
	require.Equal(t, c, gotClaim)
	gotInstance, err := other.Instance(gpu.Instance{GPU: instance.GPU, Profile: instance.Profile, Placement: instance.Placement})
	require.NoError(t, err)
	require.Equal(t, i, gotInstance)

	claims, err := other.Claims()
	require.NoError(t, err)
	require.Equal(t, []*journal.Claim{c}, claims)

	for range 2 {
		require.NoError(t, j.DeleteClaim(uid))
		require.NoError(t, j.DeleteInstance(instance))
	}
	claims, err = other.Claims()
	require.NoError(t, err)
	require.Empty(t, claims)
	instances, err := other.Instances()
	require.NoError(t, err)
	require.Empty(t, instances)
}

// A record of every version that was ever written is read.
func TestOldVersionsAreRead(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS("testdata/v1")))
	j, err := journal.Open(dir)
	require.NoError(t, err)
	got, err := j.Claim(uid)
	require.NoError(t, err)
	want := claim()
	want.Version = 1
	require.Equal(t, want, got)
}

func TestACorruptRecordIsMovedAsideAndStopsNobody(t *testing.T) {
	for name, content := range map[string]string{
		"empty":          "",
		"cut off":        `{"version":1,"uid":`,
		"unknown field":  `{"version":1,"uid":"` + uid + `","state":"intent","surprise":1,"devices":[]}`,
		"unknown slice":  `{"version":1,"uid":"` + uid + `","state":"intent","devices":[{"request":"r","pool":"p","name":"d","device":{"type":"gpu","gpu":"GPU-1"},"timeSlice":{"set":"Forever"}}]}`,
		"unknown state":  `{"version":1,"uid":"` + uid + `","state":"dreaming","devices":[]}`,
		"another claim":  `{"version":1,"uid":"x","state":"intent","devices":[]}`,
		"future version": `{"version":99}`,
		"no instance":    `{"version":1,"uid":"` + uid + `","state":"prepared","devices":[{"name":"d","device":{"type":"mig","gpu":"g"}}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			j, dir := open(t)
			path := filepath.Join(dir, "claims", uid+".json")
			require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
			healthy := claim()
			healthy.UID = "healthy"
			require.NoError(t, j.PutClaim(healthy))

			all, err := j.Claims()
			require.Equal(t, []*journal.Claim{healthy}, all)
			var corrupt *journal.CorruptError
			require.ErrorAs(t, err, &corrupt)
			kept, err := os.ReadFile(corrupt.MovedTo)
			require.NoError(t, err)
			require.Equal(t, content, string(kept), "nothing is thrown away")

			_, err = j.Claim(uid)
			require.ErrorIs(t, err, journal.ErrNotFound)
			require.NoError(t, j.PutClaim(claim()))
		})
	}
}

func TestAUIDCannotLeaveTheDirectory(t *testing.T) {
	j, _ := open(t)
	for _, bad := range []string{"", "..", "../x", "a/b", ".hidden"} {
		c := claim()
		c.UID = bad
		require.Error(t, j.PutClaim(c), "%q", bad)
	}
}

func TestLocksExcludeWithinAndBetweenProcesses(t *testing.T) {
	j, dir := open(t)
	other, err := journal.Open(dir)
	require.NoError(t, err)

	unlock, err := j.LockClaim(t.Context(), uid)
	require.NoError(t, err)
	for _, same := range []*journal.Journal{j, other} {
		_, err = same.TryLockClaim(uid)
		require.ErrorIs(t, err, journal.ErrLocked)
		ctx, cancel := context.WithCancelCause(t.Context())
		over := errors.New("the call is over")
		cancel(over)
		_, err = same.LockClaim(ctx, uid)
		require.ErrorIs(t, err, over)
	}
	unlock()
	unlock, err = other.TryLockClaim(uid)
	require.NoError(t, err)
	unlock()

	left, err := os.ReadDir(filepath.Join(dir, "locks"))
	require.NoError(t, err)
	require.Empty(t, left, "the locks of claims leave no files behind")
}

// Two journals on one directory stand for two processes. The counter is guarded
// by nothing but the lock, which is taken and removed all the time.
func TestLockUnderContention(t *testing.T) {
	j, dir := open(t)
	other, err := journal.Open(dir)
	require.NoError(t, err)
	file := filepath.Join(dir, "counter")
	require.NoError(t, os.WriteFile(file, nil, 0o600))

	const workers, rounds = 4, 25
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			mine := []*journal.Journal{j, other}[w%2]
			for range rounds {
				unlock, err := mine.LockClaim(t.Context(), uid)
				if err != nil {
					t.Error(err)
					return
				}
				data, err := os.ReadFile(file)
				if err == nil {
					err = os.WriteFile(file, append(data, '.'), 0o600)
				}
				unlock()
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Len(t, data, workers*rounds)
}

func TestLocksOfGPUsAreTakenInOneOrder(t *testing.T) {
	j, _ := open(t)
	var wg sync.WaitGroup
	for _, order := range [][]string{{"a", "b", "c"}, {"c", "b", "a"}, {"b", "b", "a"}} {
		wg.Go(func() {
			for range 50 {
				unlock, err := j.LockGPUs(t.Context(), order...)
				if err != nil {
					t.Error(err)
					return
				}
				unlock()
			}
		})
	}
	wg.Wait()
}

func FuzzClaimRecord(f *testing.F) {
	seed, err := os.ReadFile("testdata/v1/claims/" + uid + ".json")
	require.NoError(f, err)
	f.Add(seed)
	f.Add([]byte(`null`))
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		j, dir := open(t)
		path := filepath.Join(dir, "claims", uid+".json")
		require.NoError(t, os.WriteFile(path, data, 0o600))
		c, err := j.Claim(uid)
		var corrupt *journal.CorruptError
		if err != nil {
			require.ErrorAs(t, err, &corrupt)
			return
		}
		require.NoError(t, j.PutClaim(c), "what was read can be written")
	})
}

func TestSomeInstances(t *testing.T) {
	j, _ := open(t)
	put := func(uuid, claim string, start int) {
		require.NoError(t, j.PutInstance(&journal.Instance{State: journal.InstanceClaimed, Claim: claim, Instance: gpu.Instance{GPU: uuid, Profile: "1g.10gb", Placement: gpu.Placement{Start: start, Size: 1}}}))
	}
	put("GPU-1", "a", 0)
	put("GPU-1", "b", 1)
	put("GPU-11", "a", 0)
	put("GPU-11", "GPU-1", 1)
	places := func(all []*journal.Instance, err error) []string {
		require.NoError(t, err)
		var names []string
		for _, i := range all {
			names = append(names, i.Instance.GPU+"@"+i.Instance.Placement.String())
		}
		return names
	}
	require.Equal(t, []string{"GPU-1@0:1", "GPU-1@1:1"}, places(j.InstancesOn("GPU-1")))
	require.Equal(t, []string{"GPU-11@0:1", "GPU-1@0:1"}, places(j.InstancesOf("a")))
	require.Equal(t, []string{"GPU-11@1:1"}, places(j.InstancesOf("GPU-1")), "another field has that text as well")
	require.Empty(t, places(j.InstancesOf("none")))
}
