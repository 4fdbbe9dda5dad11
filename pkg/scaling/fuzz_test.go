package scaling

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is read as a series can be replayed, and no hint leaves the bounds.
func FuzzReadSamples(f *testing.F) {
	f.Add("time,utilization,replicas\n2026-01-05T00:00:00Z,22.5,4\n2026-01-05T00:00:30Z,,4\n")
	f.Add("time,utilization,replicas\n2026-01-05T00:00:00Z,101,0\n")
	f.Fuzz(func(t *testing.T, text string) {
		samples, err := ReadSamples(strings.NewReader(text))
		if err != nil || len(samples) > 0 && samples[0].Replicas > 100 {
			return
		}
		p := Policy{UpAbove: 70, DownBelow: 30, Min: 1, Max: 8, Fallback: 3, Interval: DefaultInterval}
		for i, s := range (Model{}).Replay(p, samples) {
			if i > 0 {
				require.LessOrEqual(t, s.Hint.Desired, max(p.Max, s.Hint.Current))
			}
			require.GreaterOrEqual(t, s.Hint.Desired, min(p.Min, s.Hint.Current))
		}
	})
}
