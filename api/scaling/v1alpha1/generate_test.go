package v1alpha1_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is checked in is what `make generate` makes of the types.
func TestGeneratedIsCurrent(t *testing.T) {
	const root = "../../.."
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "tool", "-modfile=hack/tools/go.mod", "controller-gen",
		"object", "crd", "paths=./api/scaling/...", "output:crd:dir="+dir, "output:object:dir="+dir)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)

	made, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Len(t, made, 3, "two CRDs and the deep copies")
	checkedIn := []string{"zz_generated.deepcopy.go"}
	crds, err := filepath.Glob(filepath.Join(root, "deployments/helm/kerf/files/crds/*"))
	require.NoError(t, err)
	for _, path := range append(checkedIn, crds...) {
		have, err := os.ReadFile(path)
		require.NoError(t, err)
		want, err := os.ReadFile(filepath.Join(dir, filepath.Base(path)))
		require.NoError(t, err, "%s is not made any more", path)
		require.Equal(t, string(want), string(have), "%s: run make generate", path)
	}
	require.Len(t, crds, 2)
}
