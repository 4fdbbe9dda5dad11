package pool_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool/pooltest"
)

// The counters must allow exactly what the placement table and the one set of
// media engines allow: checked for every pair of devices of every published GPU.
func TestCountersExcludeExactlyWhatOverlaps(t *testing.T) {
	for _, c := range pooltest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			slices, err := c.Slices()
			require.NoError(t, err)
			sets := map[string]map[string]resourceapi.Counter{}
			var published []resourceapi.Device
			for _, s := range slices {
				require.LessOrEqual(t, len(s.Spec.SharedCounters), resourceapi.ResourceSliceMaxCounterSets)
				require.LessOrEqual(t, len(s.Spec.Devices), resourceapi.ResourceSliceMaxDevicesWithAdvancedFeatures)
				require.False(t, len(s.Spec.SharedCounters) > 0 && len(s.Spec.Devices) > 0, "counters and devices are in slices of their own")
				for _, set := range s.Spec.SharedCounters {
					require.NotContains(t, sets, set.Name)
					sets[set.Name] = set.Counters
				}
				published = append(published, s.Spec.Devices...)
			}

			catalogue := gpu.Catalogue(c.Node.GPUs)
			media := func(d gpu.Device) bool {
				for _, g := range c.Node.GPUs {
					if p, ok := g.Profile(d.Profile); g.UUID == d.GPU && ok {
						return p.MediaExtensions || p.Placements[0].Size == 8
					}
				}
				return d.Type == gpu.TypeGPU
			}
			for i, a := range published {
				da, ok := catalogue[a.Name]
				require.True(t, ok, "%s is in the catalogue", a.Name)
				for _, b := range published[:i] {
					db := catalogue[b.Name]
					if da.GPU != db.GPU {
						continue
					}
					possible := !da.Overlaps(db) && !(media(da) && media(db))
					require.Equal(t, possible, fit(sets, a, b), "%s and %s", a.Name, b.Name)
				}
				require.True(t, fit(sets, a), "%s alone", a.Name)
			}
		})
	}
}

// fit reports whether the counters allow the devices at once.
func fit(sets map[string]map[string]resourceapi.Counter, devices ...resourceapi.Device) bool {
	used := map[[2]string]int64{}
	for _, d := range devices {
		for _, c := range d.ConsumesCounters {
			for name, n := range c.Counters {
				key := [2]string{c.CounterSet, name}
				used[key] += n.Value.Value()
				available, ok := sets[c.CounterSet][name]
				if !ok || used[key] > available.Value.Value() {
					return false
				}
			}
		}
	}
	return true
}
