package journal

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Who only looks sees all, also what is damaged, and leaves it where it is.
func TestInspect(t *testing.T) {
	dir := t.TempDir()
	none, err := Inspect(filepath.Join(dir, "nothing"))
	require.NoError(t, err)
	require.Empty(t, none.Claims)
	require.NoDirExists(t, filepath.Join(dir, "nothing"))

	j, err := Open(dir)
	require.NoError(t, err)
	require.NoError(t, j.PutClaim(&Claim{UID: "one", Namespace: "ns", Name: "n", State: ClaimIntent}))
	require.NoError(t, j.PutInstance(&Instance{State: InstanceIdle, Instance: gpu.Instance{GPU: "GPU-1", Profile: "1g.10gb", Placement: gpu.Placement{Start: 3, Size: 1}}}))
	bad := filepath.Join(dir, claimsDir, "two.json")
	require.NoError(t, os.WriteFile(bad, []byte("{"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, claimsDir, "three.json.tmp"), []byte("{"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, corruptDir, "claims-1-four.json"), nil, 0o600))
	unlock, err := j.LockClaim(t.Context(), "one")
	require.NoError(t, err)
	defer unlock()

	c, err := Inspect(dir)
	require.NoError(t, err)
	require.Len(t, c.Claims, 1)
	require.Equal(t, "one", c.Claims[0].UID)
	require.Contains(t, c.Written, "one")
	require.Len(t, c.Instances, 1)
	require.Len(t, c.Corrupt, 1)
	require.Equal(t, bad, c.Corrupt[0].Path)
	require.True(t, c.Corrupt[0].Names("two"))
	require.False(t, c.Corrupt[0].Names("one"))
	require.NotContains(t, c.Corrupt[0].Error(), "moved")
	require.FileExists(t, bad)
	require.Equal(t, []string{filepath.Join(dir, corruptDir, "claims-1-four.json")}, c.MovedAside)
}
