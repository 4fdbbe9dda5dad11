package nvmlsim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every mark in the code has its rule in the list, and the other way round.
func TestInferredIsComplete(t *testing.T) {
	marks := map[string]int{}
	for _, dir := range []string{"pkg/gpu", "pkg/nvml", "pkg/nvmlsim"} {
		files, err := filepath.Glob(filepath.Join("../..", dir, "*.go"))
		require.NoError(t, err)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") || filepath.Base(file) == "doc.go" {
				continue
			}
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			if n := strings.Count(string(text), "[inferred"); n > 0 {
				marks[strings.TrimPrefix(file, "../../")] = n
			}
		}
	}
	rules := map[string]int{}
	for _, rule := range Inferred() {
		file, _, _ := strings.Cut(rule, ":")
		rules[file]++
	}
	require.Equal(t, marks, rules)
}
