package health

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// The document has every reason and every Xid, with what follows from it and what ends it.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/health.md")
	require.NoError(t, err)
	rows := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); len(cells) == 4 {
			for first := range strings.SplitSeq(strings.TrimPrefix(cells[0], "| "), ", ") {
				rows[first] = cells[1:]
			}
		}
	}
	for number, x := range xids {
		row := rows[fmt.Sprint(number)]
		require.NotEmpty(t, row, number)
		require.Equal(t, string(defaultEffect(number)), row[1], number)
		if x.application {
			continue
		}
		require.Equal(t, x.means, row[0])
		ends := "after a reset |"
		if passes(number) {
			ends = "after the quiet time |"
		}
		require.Equal(t, ends, row[2], number)
	}
	require.Equal(t, string(defaultEffect(63)), rows["all others"][1])
	for reason := range messages {
		row := rows["`"+reason+"`"]
		require.NotEmpty(t, row, reason)
		tr := having()
		boards := healthy(func(h *gpu.Health) {
			one := uint64(1)
			h.UncorrectedECC, h.Remapping = &one, &gpu.RowRemapping{Pending: true, Failed: true}
		})
		tr.probed(start, boards, lostError())
		for _, c := range tr.conditions() {
			if c.Reason == reason {
				require.Equal(t, string(c.Effect), row[0])
			}
		}
	}
	for _, fact := range []string{ClearAnnotation, stateFile, fmt.Sprintf("each %.0f seconds", defaultInterval.Seconds()), fmt.Sprintf("for %.0f seconds", defaultSteady.Seconds())} {
		require.Contains(t, string(text), fact)
	}
}
