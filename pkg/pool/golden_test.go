package pool_test

import (
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	"sigs.k8s.io/yaml"

	"github.com/kerf-project/kerf/pkg/pool/pooltest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// full are the cases whose objects are kept as they are. Of the others a summary
// is kept, with a digest of what it leaves out.
var full = []string{
	"empty",
	"a10g/on-demand-replicas/1",
	"h100-sxm5-80gb/on-demand-replicas/1",
	"h100-sxm5-80gb/foreign/1",
	"h100-sxm5-80gb/conditions/1",
	"a100-sxm4-40gb/current-on/1",
}

func TestGolden(t *testing.T) {
	// board -> the other parts of the case's name -> summary
	summaries := map[string]map[string][]sliceSummary{}
	for _, c := range pooltest.Cases() {
		objects, err := c.Slices()
		require.NoError(t, err, c.Name)
		if slices.Contains(full, c.Name) {
			golden(t, strings.ReplaceAll(c.Name, "/", "_"), objects)
		}
		board, rest, _ := strings.Cut(c.Name, "/")
		if summaries[board] == nil {
			summaries[board] = map[string][]sliceSummary{}
		}
		summaries[board][rest] = summarize(t, objects)
	}
	for board, summary := range summaries {
		golden(t, "summary_"+board, summary)
	}
}

func golden(t *testing.T, name string, value any) {
	t.Helper()
	got, err := yaml.Marshal(value)
	require.NoError(t, err)
	path := filepath.Join("testdata", name+".yaml")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, got, 0o644))
		return
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "make it with -update")
	require.Equal(t, string(want), string(got), "see the change with -update and git diff")
}

type sliceSummary struct {
	Digest      string   `json:"digest"`
	Bytes       int      `json:"bytes"`
	CounterSets int      `json:"counterSets,omitempty"`
	Count       int      `json:"count,omitempty"`
	Devices     []string `json:"devices,omitempty"`
}

// summarize lists the devices of a lone GPU; of many, the first of each slice.
func summarize(t *testing.T, objects []resourceapi.ResourceSlice) []sliceSummary {
	t.Helper()
	summary := make([]sliceSummary, len(objects))
	for i, o := range objects {
		raw, err := json.Marshal(o)
		require.NoError(t, err)
		s := sliceSummary{
			Digest: fmt.Sprintf("%x", sha256.Sum256(raw))[:16], Bytes: len(raw),
			CounterSets: len(o.Spec.SharedCounters), Count: len(o.Spec.Devices),
		}
		for _, d := range o.Spec.Devices {
			if len(objects[0].Spec.SharedCounters) > 1 && len(s.Devices) > 0 {
				break
			}
			memory := d.Capacity["memory"]
			line := fmt.Sprintf("%s %s takes %s", d.Name, memory.Value.String(), countersText(d.ConsumesCounters[0].Counters))
			for _, taint := range d.Taints {
				line += fmt.Sprintf(" %s:%s", taint.Key, taint.Effect)
			}
			s.Devices = append(s.Devices, line)
		}
		summary[i] = s
	}
	return summary
}

// countersText is "8 of 0123 1 of media".
func countersText(counters map[string]resourceapi.Counter) string {
	byValue := map[int64]string{}
	var order []int64
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(counters))) {
		n := counters[name].Value
		value := n.Value()
		if _, ok := byValue[value]; !ok {
			order = append(order, value)
		}
		byValue[value] = strings.TrimSuffix(strings.TrimPrefix(name, "memory-slice-"), "-extensions") + byValue[value]
	}
	words := make([]string, len(order))
	for i, value := range order {
		words[i] = fmt.Sprintf("%d of %s", value, byValue[value])
	}
	return strings.Join(words, " ")
}
