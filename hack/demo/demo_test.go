package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// world is what the cluster answers, read from testdata, for the tests to change.
type world struct {
	pods    []corev1.Pod
	claims  map[string]resourceapi.ResourceClaim
	devices map[string]resourceapi.Device
	views   map[containerID]view
}

func load[T any](t *testing.T, file string) T {
	t.Helper()
	var value T
	data, err := os.ReadFile(filepath.Join("testdata", file))
	require.NoError(t, err)
	require.NoError(t, yaml.UnmarshalStrict(data, &value))
	return value
}

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{
		pods:   load[corev1.PodList](t, "pods.yaml").Items,
		claims: map[string]resourceapi.ResourceClaim{}, views: map[containerID]view{},
	}
	for _, c := range load[resourceapi.ResourceClaimList](t, "claims.yaml").Items {
		w.claims[c.Name] = c
	}
	var complete bool
	w.devices, complete = devicesOf(load[resourceapi.ResourceSliceList](t, "slices.yaml").Items)
	require.True(t, complete)
	for name, output := range load[map[string]string](t, "views.yaml") {
		pod, container, _ := strings.Cut(name, "/")
		w.views[containerID{pod, container}] = parseView(output)
	}
	return w
}

func (w world) pair() ([]row, error) { return pair(w.pods, w.claims, w.devices, w.views) }

func TestTable(t *testing.T) {
	rows, err := newWorld(t).pair()
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, printTable(&out, rows))
	for _, line := range strings.Split(out.String(), "\n") {
		require.LessOrEqual(t, utf8.RuneCountInString(line), 160, line)
	}
	golden := filepath.Join("testdata", "table.golden")
	if *update {
		require.NoError(t, os.WriteFile(golden, out.Bytes(), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err, "run the test with -update to write it")
	require.Equal(t, string(want), out.String(), "run the test with -update if that is meant")
}

// The demo does not show what is not so.
func TestPairRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world)
		want   string
	}{
		"a device that the container does not see": {func(w *world) {
			delete(w.views[containerID{"one", "workload"}].lines, "MIG-00000001-0000-5000-8000-000000000001")
		}, "one: nvidia-smi does not list device gpu-3f2a91c4-mig-1g10gb-6 of claim one-gpu-abcde"},
		"a device of somebody else": {func(w *world) {
			w.views[containerID{"one", "workload"}].lines["GPU-cc"] = "GPU 1: NVIDIA L40S"
		}, `one: nvidia-smi lists "GPU 1: NVIDIA L40S" (GPU-cc), which is in none of its claims`},
		"a container that could not be asked": {func(w *world) { delete(w.views, containerID{"pair-of-containers", "large"}) }, "pair-of-containers/large: nvidia-smi does not list"},
		"a device that is not published":      {func(w *world) { delete(w.devices, "gpu-aa2a91c4") }, "whole/workload: device gpu-aa2a91c4 of claim whole-gpu-abcde is not published"},
		"a claim that is not allocated": {func(w *world) {
			c := w.claims["shared"]
			c.Status.Allocation = nil
			w.claims["shared"] = c
		}, "claim shared is not allocated"},
		"a claim that was not made": {func(w *world) { w.pods[0].Status.ResourceClaimStatuses = nil }, "claim gpu was not made"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.change(&w)
			_, err := w.pair()
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestPoolIsComplete(t *testing.T) {
	slice := func(generation, count int64, devices ...string) resourceapi.ResourceSlice {
		s := resourceapi.ResourceSlice{}
		s.Spec.Pool = resourceapi.ResourcePool{Name: "node", Generation: generation, ResourceSliceCount: count}
		for _, name := range devices {
			s.Spec.Devices = append(s.Spec.Devices, resourceapi.Device{Name: name})
		}
		return s
	}
	for name, c := range map[string]struct {
		slices   []resourceapi.ResourceSlice
		complete bool
	}{
		"no slices":                    {nil, false},
		"counters alone":               {[]resourceapi.ResourceSlice{slice(1, 1)}, false},
		"one of two":                   {[]resourceapi.ResourceSlice{slice(1, 2, "a")}, false},
		"both":                         {[]resourceapi.ResourceSlice{slice(1, 2), slice(1, 2, "a")}, true},
		"both, and leftovers":          {[]resourceapi.ResourceSlice{slice(1, 1, "old"), slice(2, 2), slice(2, 2, "a")}, true},
		"one of two, and as many left": {[]resourceapi.ResourceSlice{slice(1, 2, "old"), slice(2, 2, "a")}, false},
	} {
		devices, complete := devicesOf(c.slices)
		require.Equal(t, c.complete, complete, name)
		require.NotContains(t, devices, "old", name)
	}
}

func TestExpectedPods(t *testing.T) {
	wanted, err := podsOf([]byte(`{"kind":"List","apiVersion":"v1","items":[
		{"apiVersion":"resource.k8s.io/v1","kind":"ResourceClaim","metadata":{"name":"one"}},
		{"apiVersion":"v1","kind":"Pod","metadata":{"name":"one"}},
		{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"four"},"spec":{"replicas":4,"selector":{"matchLabels":{"app":"four"}}}}]}`))
	require.NoError(t, err)
	require.Equal(t, 5, wanted.count)
	pod := func(name, app string) corev1.Pod {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": app}}}
	}
	leaving := pod("four-gone", "four")
	leaving.DeletionTimestamp = &metav1.Time{}
	var names []string
	for _, p := range wanted.among([]corev1.Pod{pod("one", ""), pod("mine", "mine"), pod("four-abcde", "four"), leaving}) {
		names = append(names, p.Name)
	}
	require.Equal(t, []string{"one", "four-abcde"}, names)

	_, err = podsOf([]byte("No resources found"))
	require.Error(t, err)
}

func TestWithoutTheClusterProgram(t *testing.T) {
	c := cluster{program: filepath.Join(t.TempDir(), "cluster"), name: "none"}
	_, err := c.kubectl(t.Context(), "get", "pods")
	require.ErrorContains(t, err, "kubectl --name none -- get pods")
}
