//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// Whatever the chart renders, the API server takes, with no field that it does not know. The goldens are what is rendered
// for each way to install it, which the tests of the chart see to.
func TestChartIsValid(t *testing.T) {
	e := kit.New(t, fleet)
	withOthersCRDs(t, e)
	goldens, err := filepath.Glob("test/chart/testdata/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, goldens)
	apply := func(manifests string) (string, error) {
		return e.Kubectl(manifests, "apply", "--dry-run=server", "--validate=strict", "--filename", "-")
	}
	for _, golden := range goldens {
		manifests, err := os.ReadFile(golden)
		require.NoError(t, err)
		said, err := apply(string(manifests))
		require.NoError(t, err, "%s: %s", golden, said)
		for field, wrong := range map[string]string{"hostPID": "hostPIDs", "extendedResourceName": "extendedResource", "targetLabel": "target", "policyTypes": "types"} {
			if !strings.Contains(string(manifests), field+":") {
				continue
			}
			said, err := apply(strings.ReplaceAll(string(manifests), field+":", wrong+":"))
			require.Error(t, err, "%s with %s for %s", golden, wrong, field)
			require.Contains(t, said, `unknown field "spec.`, golden)
		}
	}
}
