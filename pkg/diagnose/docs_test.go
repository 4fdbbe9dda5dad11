package diagnose_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/diagnose"
)

// What the document shows is what the program prints, and it has every check.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/diagnose.md")
	require.NoError(t, err)
	shown := regexp.MustCompile("(?s)<!-- ([a-z/.-]+) -->\n```\n(.*?)```\n").FindAllStringSubmatch(string(text), -1)
	require.Len(t, shown, 10)
	for _, s := range shown {
		golden, err := os.ReadFile(filepath.Join("../..", s[1]))
		require.NoError(t, err)
		require.Contains(t, string(golden), s[2], s[1])
	}
	for _, c := range newWorld(t, usual).inhabit().diagnose().Checks {
		require.Contains(t, string(text), "\n| `"+c.Check+"` |")
	}
	for _, use := range []diagnose.Use{diagnose.Idle, diagnose.Foreign, diagnose.Releasing} {
		require.Regexp(t, "\n\\| `\\(?"+string(use)+"\\)?` \\|", string(text))
	}
}
