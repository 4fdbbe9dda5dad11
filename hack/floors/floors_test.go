package floors

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/kerf-project/kerf/"

// table has the floors from the ground up. docs/architecture.md says what each
// package owns.
var table = [][]string{
	{"pkg/gpu", "pkg/nvmlsim/identity", "api/internal/strict"},
	{"api/config/v1alpha1", "api/gpu/v1alpha1", "api/nvidia/v1beta1", "api/scaling/v1alpha1"},
	{"pkg/nvml", "pkg/nvmlsim", "pkg/journal", "pkg/cdispec", "pkg/dcgm"},
	{"pkg/claims", "pkg/pool", "pkg/health", "pkg/scaling"},
	{"pkg/fleet", "pkg/plugin", "pkg/pool/pooltest", "pkg/claims/crash"},
	{"pkg/diagnose", "pkg/controller", "pkg/explain", "pkg/keda"},
	{"pkg/simulate"},
	{"cmd/kerf", "pkg/nvmlsim/nvidia-smi", "hack/demo", "hack/floors", "test/sweep"},
}

// forPrograms are packages that only the top floor, and tests, may import.
var forPrograms = []string{"pkg/nvmlsim", "pkg/pool/pooltest", "pkg/claims/crash"}

// floor is the height of a package of this module.
func floor(p string) (int, bool) {
	for height, packages := range table {
		if slices.Contains(packages, p) {
			return height, true
		}
	}
	return 0, false
}

// check returns what is wrong with the imports, by package, without the module's path.
func check(imports map[string][]string) error {
	var errs []error
	for p, imported := range imports {
		height, ok := floor(p)
		if !ok {
			errs = append(errs, fmt.Errorf("%s has no floor: give it one in the table of hack/floors", p))
			continue
		}
		for _, i := range imported {
			below, ok := floor(i)
			switch {
			case !ok: // It is reported as a package, if it is one of the module's.
			case below >= height:
				errs = append(errs, fmt.Errorf("%s (floor %d) imports %s (floor %d), which is not below it: declare an interface in %s and have cmd wire the two", p, height, i, below, p))
			case slices.Contains(forPrograms, i) && height < len(table)-1:
				errs = append(errs, fmt.Errorf("%s imports %s, which is for programs and tests", p, i))
			}
		}
	}
	return errors.Join(errs...)
}

func TestImportsGoDown(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	require.NoError(t, err)
	imports := map[string][]string{}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		name := strings.TrimPrefix(p.ImportPath, module)
		imports[name] = []string{}
		for _, i := range p.Imports {
			if own, ok := strings.CutPrefix(i, module); ok {
				imports[name] = append(imports[name], own)
			}
		}
	}
	require.Contains(t, imports["cmd/kerf"], "pkg/plugin", "the imports were not read")
	require.NoError(t, check(imports))
}

func TestCheckFindsViolations(t *testing.T) {
	for name, c := range map[string]struct {
		imports map[string][]string
		want    string
	}{
		"up":                     {map[string][]string{"pkg/journal": {"pkg/claims"}}, "is not below it"},
		"sideways":               {map[string][]string{"pkg/claims": {"pkg/pool"}}, "is not below it"},
		"an unknown package":     {map[string][]string{"pkg/utils": nil}, "has no floor"},
		"the simulator, by code": {map[string][]string{"pkg/plugin": {"pkg/nvmlsim"}}, "for programs and tests"},
	} {
		t.Run(name, func(t *testing.T) { require.ErrorContains(t, check(c.imports), c.want) })
	}
	require.NoError(t, check(map[string][]string{"cmd/kerf": {"pkg/nvmlsim", "pkg/gpu"}, "pkg/claims": {"pkg/journal"}}))
}
