//go:build e2e

package e2e

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// fleet is the node that the examples are written for.
var fleet = kit.Shape{Name: "fleet", Boards: "8xH100-SXM5-80GB", Replicas: 4}

// examples are all files of deployments/examples: how many pods each makes, and what has to be true of the pods beyond
// what every pod is verified for.
var examples = map[string]struct {
	pods  int
	check func(*testing.T, *kit.Env, []*corev1.Pod)
}{
	"one-1g.yaml":                       {1, has("mig 1g.10gb")},
	"whole-gpu.yaml":                    {1, has("gpu ")},
	"extended-resource.yaml":            {1, has("mig 1g.10gb")},
	"one-container-two-instances.yaml":  {1, has("mig 1g.10gb", "mig 1g.10gb")},
	"two-containers-two-instances.yaml": {1, has("mig 1g.10gb", "mig 2g.20gb")},
	"prioritized-alternatives.yaml":     {1, has("mig 3g.40gb")},
	"shared-claim-two-pods.yaml":        {2, sharesOneInstance},
	"seven-1g-one-gpu.yaml": {7, func(t *testing.T, e *kit.Env, pods []*corev1.Pod) {
		has("mig 1g.10gb", "mig 1g.10gb", "mig 1g.10gb", "mig 1g.10gb", "mig 1g.10gb", "mig 1g.10gb", "mig 1g.10gb")(t, e, pods[:1])
		require.Len(t, parents(t, e, pods), 1, "GPUs of the seven instances")
	}},
	"3g-4g-one-gpu.yaml": {1, func(t *testing.T, e *kit.Env, pods []*corev1.Pod) {
		has("mig 3g.40gb", "mig 4g.40gb")(t, e, pods)
		require.Len(t, parents(t, e, pods), 1, "GPUs of the two instances")
	}},
	"timeslice-four-pods.yaml": {4, func(t *testing.T, e *kit.Env, pods []*corev1.Pod) {
		has("timeslice ", "timeslice ", "timeslice ", "timeslice ")(t, e, pods)
		require.Len(t, parents(t, e, pods), 1, "GPUs of the four replicas")
	}},
}

func TestExamples(t *testing.T) {
	files, err := os.ReadDir("deployments/examples")
	require.NoError(t, err)
	for _, file := range files {
		if file.IsDir() {
			continue // TestPolicyExamples
		}
		t.Run(file.Name(), func(t *testing.T) {
			example, ok := examples[file.Name()]
			require.True(t, ok, "this example is not tested")
			e := kit.New(t, fleet)
			e.Example(file.Name())
			pods := e.RunningPods(example.pods, nil)
			for _, pod := range pods {
				require.NoError(t, e.Verify(pod))
			}
			require.NoError(t, e.CheckInstances(t.Context()))
			example.check(t, e, pods)
			e.Delete(pods...)
		})
	}
}

// has checks the devices of the pods' claims, each with its type and profile.
func has(want ...string) func(*testing.T, *kit.Env, []*corev1.Pod) {
	return func(t *testing.T, e *kit.Env, pods []*corev1.Pod) {
		t.Helper()
		var got []string
		for _, d := range devices(t, e, pods...) {
			got = append(got, string(d.Type())+" "+d.Profile())
		}
		require.ElementsMatch(t, want, got)
	}
}

func devices(t *testing.T, e *kit.Env, pods ...*corev1.Pod) []kit.Device {
	t.Helper()
	var all []kit.Device
	for _, pod := range pods {
		found, err := e.PodDevices(pod)
		require.NoError(t, err)
		all = append(all, found...)
	}
	return all
}

// parents are the GPUs of the pods' devices.
func parents(t *testing.T, e *kit.Env, pods []*corev1.Pod) sets.Set[string] {
	t.Helper()
	all := sets.New[string]()
	for _, d := range devices(t, e, pods...) {
		all.Insert(d.Parent())
	}
	return all
}

func sharesOneInstance(t *testing.T, e *kit.Env, pods []*corev1.Pod) {
	t.Helper()
	first, second := devices(t, e, pods[0]), devices(t, e, pods[1])
	require.Len(t, first, 1)
	require.Equal(t, gpu.TypeMIG, first[0].Type())
	require.Equal(t, first[0].Published.Name, second[0].Published.Name)
	require.Equal(t, list(t, e, pods[0]), list(t, e, pods[1]))
}

// list is what nvidia-smi lists in a pod of one container.
func list(t *testing.T, e *kit.Env, pod *corev1.Pod) string {
	t.Helper()
	out, err := e.Exec(pod, pod.Spec.Containers[0].Name, "nvidia-smi", "-L")
	require.NoError(t, err)
	return out
}
