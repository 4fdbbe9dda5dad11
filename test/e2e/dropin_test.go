//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// dropins are all files of testdata/dropin, workloads that were written for other drivers: how many pods each makes, and
// what its first comment promises. They are taken as they are, in the namespace that they name.
var dropins = map[string]struct {
	pods  int
	check func(*testing.T, *kit.Env, []*corev1.Pod)
}{
	"cel-selectors.yaml":      {1, has("gpu ", "mig 2g.20gb")},
	"extended-resources.yaml": {3, eachItsLimit},
	"timeslicing-config.yaml": {1, sharesWithShortSlice},
}

func TestDropIns(t *testing.T) {
	const dir = "test/e2e/testdata/dropin"
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, file := range files {
		t.Run(file.Name(), func(t *testing.T) {
			dropin, ok := dropins[file.Name()]
			require.True(t, ok, "this file is not tested")
			e := kit.NewIn(t, fleet, "dropin")
			e.Apply(filepath.Join(dir, file.Name()))
			pods := e.RunningPods(dropin.pods, nil)
			for _, pod := range pods {
				require.NoError(t, e.Verify(pod))
			}
			dropin.check(t, e, pods)
		})
	}
}

func eachItsLimit(t *testing.T, e *kit.Env, pods []*corev1.Pod) {
	want := map[string]string{"whole": "gpu ", "mig": "mig 1g.10gb", "shared": "timeslice "}
	for _, pod := range pods {
		require.Empty(t, pod.Spec.ResourceClaims)
		require.Contains(t, want, pod.Name)
		has(want[pod.Name])(t, e, []*corev1.Pod{pod})
	}
}

var listedUUID = regexp.MustCompile(`\(UUID: (GPU-[^)]+)\)`)

func sharesWithShortSlice(t *testing.T, e *kit.Env, pods []*corev1.Pod) {
	seen := map[string]string{}
	for _, c := range []string{"a", "b"} {
		out, err := e.Exec(pods[0], c, "nvidia-smi", "-L")
		require.NoError(t, err)
		found := listedUUID.FindAllStringSubmatch(out, -1)
		require.Len(t, found, 1, out)
		seen[c] = found[0][1]
	}
	require.Equal(t, seen["a"], seen["b"])

	slice := func() gpu.TimeSlice {
		boards, err := e.Boards()
		require.NoError(t, err)
		for _, b := range boards {
			if b.UUID == seen["a"] {
				return b.TimeSlice
			}
		}
		t.Fatalf("no board %s", seen["a"])
		return ""
	}
	require.Equal(t, gpu.TimeSliceShort, slice())
	e.Delete(pods...)
	e.Eventually("the time slice to be restored", func(context.Context) error {
		if now := slice(); now != gpu.TimeSliceDefault {
			return fmt.Errorf("it is %s", now)
		}
		return nil
	})
}
