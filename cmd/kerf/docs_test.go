package main

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite the golden files, and the output of commands in documents")

var console = regexp.MustCompile("(?ms)^```console\n\\$ kerf (.*?)\n(.*?)^```$")

// Every command in these documents prints what the documents say.
func TestConsolesOfDocuments(t *testing.T) {
	t.Chdir("../..")
	for _, path := range []string{"docs/explain.md", "docs/simulate.md"} {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		blocks := 0
		got := console.ReplaceAllStringFunc(string(text), func(block string) string {
			blocks++
			command := console.FindStringSubmatch(block)[1]
			return "```console\n$ kerf " + command + "\n" + answer(t, strings.Fields(command)...) + "```"
		})
		require.NotZero(t, blocks, path)
		if *update {
			require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
			continue
		}
		require.Equal(t, string(text), got, "run the test with -update if that is meant")
	}
}

// answer is what a command prints. That something does not fit is an answer too.
func answer(t *testing.T, args ...string) string {
	t.Helper()
	out, err := run(args...)
	var exit *exitError
	if err != nil {
		require.True(t, errors.As(err, &exit) && exit.code == 2, "%v: %v", args, err)
	}
	var lines []string
	for line := range strings.SplitSeq(out, "\n") {
		lines = append(lines, strings.TrimRight(line, " "))
	}
	return strings.Join(lines, "\n")
}

// The machine-readable forms of the examples' answers.
func TestAnswersAreGolden(t *testing.T) {
	t.Chdir("../..")
	for name, command := range map[string]string{
		"explain.json":  "explain train -n team-b -o json -f deployments/explain/fleet.yaml -f deployments/explain/claims.yaml",
		"simulate.json": "simulate -o json -f deployments/simulate/fleet.yaml -f deployments/simulate/workloads.yaml",
		"simulate.html": "simulate -o html --order least-blocking,ascending -f deployments/simulate/fleet.yaml -f deployments/simulate/templates.yaml -f deployments/simulate/trace.csv",
	} {
		got, golden := answer(t, strings.Fields(command)...), filepath.Join("cmd/kerf/testdata", name)
		if *update {
			require.NoError(t, os.MkdirAll(filepath.Dir(golden), 0o755))
			require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
		}
		want, err := os.ReadFile(golden)
		require.NoError(t, err, "run the test with -update to write it")
		require.Equal(t, string(want), got, "run the test with -update if that is meant")
	}
	page, err := os.ReadFile("cmd/kerf/testdata/simulate.html")
	require.NoError(t, err)
	require.NotRegexp(t, `(?i)<script|src=|href=|url\(|@import|https?:`, string(page), "the page needs nothing else")
	require.Contains(t, string(page), "prefers-color-scheme: dark")
}

func TestFlagsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	require.NoError(t, err)
	flag := regexp.MustCompile(`(?m)^ +(--[a-z-]+) `)
	for _, command := range []*cobra.Command{newPluginCommand(), newControllerCommand()} {
		flags := flag.FindAllStringSubmatch(command.Flags().FlagUsages(), -1)
		require.NotEmpty(t, flags)
		for _, match := range flags {
			require.True(t, strings.Contains(string(text), "\n| `"+match[1]+"` |"), "docs/configuration.md lacks %s", match[1])
		}
	}
}
