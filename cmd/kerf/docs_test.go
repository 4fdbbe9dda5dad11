package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFlagsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	require.NoError(t, err)
	flags := regexp.MustCompile(`(?m)^ +(--[a-z-]+) `).FindAllStringSubmatch(newPluginCommand().Flags().FlagUsages(), -1)
	require.NotEmpty(t, flags)
	for _, match := range flags {
		require.True(t, strings.Contains(string(text), "\n| `"+match[1]+"` |"), "docs/configuration.md lacks %s", match[1])
	}
}
