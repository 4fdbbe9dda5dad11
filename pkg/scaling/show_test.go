package scaling

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// day is the replay that docs/scaling.md shows.
func day(t *testing.T) (Policy, []Step) {
	t.Helper()
	file, err := os.Open("testdata/day.csv")
	require.NoError(t, err)
	defer func() { require.NoError(t, file.Close()) }()
	samples, err := ReadSamples(file)
	require.NoError(t, err)
	require.Len(t, samples, 2880)
	p := PolicyOf(&v1alpha1.GPUScalingHintSpec{Class: v1alpha1.ClassRealtime, MinReplicas: 1, MaxReplicas: 8, FallbackReplicas: 3}, DefaultInterval)
	return p, Model{StartUp: time.Minute}.Replay(p, samples)
}

func TestTable(t *testing.T) {
	_, steps := day(t)
	var out bytes.Buffer
	require.NoError(t, WriteTable(&out, steps))
	const golden = "testdata/day.golden"
	if *update {
		require.NoError(t, os.WriteFile(golden, out.Bytes(), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String())

	doc, err := os.ReadFile("../../docs/scaling.md")
	require.NoError(t, err)
	require.Contains(t, string(doc), "```\n"+out.String()+"```\n", "docs/scaling.md shows another output")
}

func TestSVG(t *testing.T) {
	p, steps := day(t)
	var out bytes.Buffer
	require.NoError(t, WriteSVG(&out, p, steps))
	changes := 0
	for _, s := range steps {
		if s.Hint.Direction != v1alpha1.DirectionHold {
			changes++
		}
	}
	require.Positive(t, changes)
	require.Equal(t, changes, strings.Count(out.String(), "<circle "))
	require.Contains(t, out.String(), "UtilizationHigh: 70.1 % is above 70 %")
	require.Equal(t, 2, strings.Count(strings.SplitAfter(strings.SplitN(out.String(), `<path d="M40.0`, 2)[1], `"`)[0], "M")+1, "the gap is no line")
	for decoder := xml.NewDecoder(&out); ; {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
}

func TestReadSamplesRefuses(t *testing.T) {
	const header = "time,utilization,replicas\n"
	for text, want := range map[string]string{
		"":                        "EOF",
		"a,b,c\n":                 "expected time,utilization,replicas",
		header:                    "no line of data",
		header + "0,5,1\n0,5,1\n": "line 3: 0 is not after",
		header + "x,5,1\n":        "line 2: time",
		header + "0,101,1\n":      "no number from 0 to 100",
		header + "0,NaN,1\n":      "",
		header + "0,5,-1\n":       "replicas",
		header + "0,5\n":          "wrong number of fields",
	} {
		_, err := ReadSamples(strings.NewReader(text))
		if want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, want, text)
	}
}
