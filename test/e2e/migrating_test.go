//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// migrating is a node that has all that docs/migrating.md asks for.
var migrating = kit.Shape{Name: "migrating", Boards: "5xH100-SXM5-80GB,1xA100-SXM4-40GB,mig=on", Replicas: 4}

var block = regexp.MustCompile("(?ms)^```yaml( before)?\n(apiVersion: .*?)^```$")

// Every manifest of docs/migrating.md is taken, and its pods run; except those that tell of former times, of which the API
// server knows no kind.
func TestMigrating(t *testing.T) {
	text, err := os.ReadFile("docs/migrating.md")
	require.NoError(t, err)
	blocks := block.FindAllStringSubmatch(string(text), -1)
	require.Len(t, blocks, 6)
	for i, match := range blocks {
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			e := kit.New(t, migrating)
			if match[1] != "" {
				for document := range strings.SplitSeq(match[2], "---\n") {
					said, err := e.Kubectl(document, "apply", "--namespace", e.Namespace, "--filename", "-")
					require.Error(t, err, document)
					require.Contains(t, said, "no matches for kind", document)
				}
				return
			}
			file := filepath.Join(t.TempDir(), "manifests.yaml")
			require.NoError(t, os.WriteFile(file, []byte(match[2]), 0o600))
			e.Apply(file)
			count := strings.Count(match[2], "kind: Pod\n") + 3*strings.Count(match[2], "kind: Deployment\n")
			require.NotZero(t, count)
			for _, pod := range e.RunningPods(count, nil) {
				require.NoError(t, e.Verify(pod))
			}
		})
	}
}

// Where a node has a number of its own for an extended resource, the scheduler counts with that, and it asks kerf where it
// has none: so nodes with a device plugin and nodes with kerf can serve the same pods.
func TestNodesOfADevicePluginAreCountedAsBefore(t *testing.T) {
	e := kit.New(t, fleet)
	const resourceName = "nvidia.com/mig-1g.10gb"
	advertise := func(number string) {
		patch := fmt.Sprintf(`{"status": {"capacity": {%q: %s}, "allocatable": {%q: %s}}}`, resourceName, number, resourceName, number)
		_, err := e.Client.CoreV1().Nodes().Patch(context.Background(), kit.NodeName, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
		require.NoError(t, err)
	}
	t.Cleanup(func() { advertise("null") })
	advertise(`"1"`)
	require.NoError(t, e.TryPod(kit.LimitedPod("plugins", resourceName)))
	plugins := e.Running("plugins")[0]
	require.Nil(t, plugins.Status.ExtendedResourceClaimStatus)

	advertise(`"0"`)
	require.NoError(t, e.TryPod(kit.LimitedPod("kerfs", resourceName)))
	kerfs := e.Running("kerfs")
	require.NoError(t, e.Verify(kerfs[0]))
	has("mig 1g.10gb")(t, e, kerfs)
}

// A resize of CPU leaves the devices and the container alone, and devices cannot be resized.
func TestResizeInPlace(t *testing.T) {
	e := kit.New(t, fleet)
	e.Template("small", kit.Requests(smallClass))
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "resized"}, Spec: kit.PodSpec("small")}
	pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}
	require.NoError(t, e.TryPod(pod))
	before := e.Running("resized")[0]
	require.NoError(t, e.Verify(before))

	resize := func(pod, resources string) error {
		patch := fmt.Sprintf(`{"spec": {"containers": [{"name": "workload", "resources": %s}]}}`, resources)
		_, err := e.Client.CoreV1().Pods(e.Namespace).Patch(t.Context(), pod, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "resize")
		return err
	}
	require.NoError(t, resize("resized", `{"requests": {"cpu": "200m"}}`))
	var after *corev1.Pod
	e.Eventually("the container to be resized", func(ctx context.Context) error {
		var err error
		after, err = e.Client.CoreV1().Pods(e.Namespace).Get(ctx, "resized", metav1.GetOptions{})
		if err != nil {
			return err
		}
		now := after.Status.ContainerStatuses[0].Resources
		if now == nil || now.Requests.Cpu().String() != "200m" {
			return errors.New("it is not yet")
		}
		return nil
	})
	require.Equal(t, containers(before), containers(after))
	require.NoError(t, e.Verify(after))

	const refused = "only cpu and memory resources are mutable"
	require.ErrorContains(t, resize("resized", `{"claims": [{"name": "gpu", "request": "first"}]}`), refused)
	require.NoError(t, e.TryPod(kit.LimitedPod("limited", "nvidia.com/mig-1g.10gb")))
	e.Running("limited")
	more := func(resource, number string) string {
		return fmt.Sprintf(`{"requests": {%[1]q: %[2]q}, "limits": {%[1]q: %[2]q}}`, resource, number)
	}
	require.ErrorContains(t, resize("limited", more("nvidia.com/mig-1g.10gb", "2")), refused)
	require.ErrorContains(t, resize("limited", more("nvidia.com/mig-2g.20gb", "1")), refused)
}
