//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// A claim that is an object of its own keeps its placement when its pods have ended, and nothing on the node. The next
// pod gets the same again.
func TestSharedClaimIsPreparedAgain(t *testing.T) {
	e := kit.New(t, fleet)
	e.Claim("shared", kit.Requests("mig-2g.20gb.gpu.nvidia.com"))
	e.PodOfClaim("one", "shared")
	e.PodOfClaim("two", "shared")
	pods := e.Running("one", "two")
	for _, pod := range pods {
		require.NoError(t, e.Verify(pod))
	}
	sharesOneInstance(t, e, pods)
	before := devices(t, e, pods[0])
	uid := claimUID(t, e, "shared")

	// One of two users is no reason to let go.
	e.Delete(pods[0])
	require.NoError(t, e.Verify(pods[1]))
	e.Delete(pods[1])
	e.Eventually("the claim to be released", func(context.Context) error { return e.Released(uid) })
	e.Eventually("the instance to be gone", e.CheckInstances)

	e.PodOfClaim("three", "shared")
	third := e.Running("three")[0]
	require.NoError(t, e.Verify(third))
	require.Equal(t, uid, claimUID(t, e, "shared"))
	require.Equal(t, before[0].Published.Name, devices(t, e, third)[0].Published.Name)

	// Its next user can come while the last one is still going.
	require.NoError(t, e.Client.CoreV1().Pods(e.Namespace).Delete(t.Context(), "three", metav1.DeleteOptions{}))
	e.PodOfClaim("four", "shared")
	require.NoError(t, e.Verify(e.Running("four")[0]))
}

// The assertions on a container can fail: with a device node taken out of the CDI spec the next container lacks it, and
// Verify says so.
func TestVerifyMissesAMissingNode(t *testing.T) {
	e := kit.New(t, fleet)
	e.Claim("shared", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	e.PodOfClaim("whole", "shared")
	whole := e.Running("whole")[0]
	require.NoError(t, e.Verify(whole))

	removed := removeNode(t, claimUID(t, e, "shared"))
	e.PodOfClaim("lacking", "shared")
	err := e.Verify(e.Running("lacking")[0])
	require.ErrorContains(t, err, "node "+removed)
	require.ErrorContains(t, err, "nvidia-smi lists 1g.10gb MIG-")
	require.ErrorContains(t, err, ": Operation not permitted", "the device cgroup")
	require.NoError(t, e.Verify(whole), "a container that runs keeps what it has")
}

// removeNode takes the first capability out of a claim's CDI spec, and returns its path.
func removeNode(t *testing.T, claim types.UID) string {
	t.Helper()
	files, err := kit.SpecFiles(claim)
	require.NoError(t, err)
	files = slices.DeleteFunc(files, func(file string) bool { return strings.Contains(file, "_metadata_") })
	require.Len(t, files, 1)
	raw, err := os.ReadFile(files[0])
	require.NoError(t, err)
	var spec map[string]any
	require.NoError(t, json.Unmarshal(raw, &spec))
	edits := spec["devices"].([]any)[0].(map[string]any)["containerEdits"].(map[string]any)
	nodes := edits["deviceNodes"].([]any)
	path := func(node any) string { return node.(map[string]any)["path"].(string) }
	index := slices.IndexFunc(nodes, func(n any) bool { return strings.Contains(path(n), "nvidia-cap") })
	require.GreaterOrEqual(t, index, 0, "%s", raw)
	removed := path(nodes[index])
	edits["deviceNodes"] = slices.Delete(nodes, index, index+1)
	raw, err = json.Marshal(spec)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(files[0], raw, 0o600))
	return removed
}

func claimUID(t *testing.T, e *kit.Env, name string) types.UID {
	t.Helper()
	claim, err := e.Client.ResourceV1().ResourceClaims(e.Namespace).Get(t.Context(), name, metav1.GetOptions{})
	require.NoError(t, err)
	return claim.UID
}
