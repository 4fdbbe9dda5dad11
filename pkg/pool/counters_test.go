package pool_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
	"github.com/kerf-project/kerf/pkg/pool/pooltest"
)

// together is what the hardware says of two different devices of one GPU, from
// the placement table alone.
func together(g gpu.GPU, a, b gpu.Device) bool {
	if a.Type != b.Type || a.Type == gpu.TypeGPU {
		return false
	}
	if a.Type == gpu.TypeTimeSlice {
		return true
	}
	for slice := range 8 {
		if a.Placement.Start <= slice && slice < a.Placement.Start+a.Placement.Size &&
			b.Placement.Start <= slice && slice < b.Placement.Start+b.Placement.Size {
			return false
		}
	}
	pa, _ := g.Profile(a.Profile)
	pb, _ := g.Profile(b.Profile)
	return !pa.MediaExtensions || !pb.MediaExtensions
}

// published finds what a set of slices says of a device, and the counters that it draws on.
type published struct {
	devices map[string]resourceapi.Device
	sets    map[string]map[string]resourceapi.Counter
}

func publish(t *testing.T, c pooltest.Case) published {
	t.Helper()
	objects, err := c.Slices()
	require.NoError(t, err)
	p := published{map[string]resourceapi.Device{}, map[string]map[string]resourceapi.Counter{}}
	for _, o := range objects {
		for _, d := range o.Spec.Devices {
			require.NotContains(t, p.devices, d.Name)
			p.devices[d.Name] = d
		}
		for _, s := range o.Spec.SharedCounters {
			require.NotContains(t, p.sets, s.Name)
			p.sets[s.Name] = s.Counters
		}
	}
	return p
}

// fit is what the counters say of a set of devices.
func (p published) fit(names ...string) bool {
	left := map[string]int64{}
	for set, counters := range p.sets {
		for name, c := range counters {
			left[set+"/"+name] = c.Value.Value()
		}
	}
	for _, name := range names {
		for _, consumed := range p.devices[name].ConsumesCounters {
			for counter, c := range consumed.Counters {
				key := consumed.CounterSet + "/" + counter
				if left[key] -= c.Value.Value(); left[key] < 0 {
					return false
				}
			}
		}
	}
	return true
}

// Every pair of devices of a GPU fits by the counters exactly if it does by the
// placements, and devices of different GPUs always fit.
func TestCountersSayWhatThePlacementsSay(t *testing.T) {
	for _, c := range pooltest.Cases() {
		if len(c.Node.GPUs) > 1 && c.Name != "mixed/on-demand-replicas" {
			continue // one GPU of a kind says it all
		}
		t.Run(c.Name, func(t *testing.T) {
			p := publish(t, c)
			catalogue := gpu.Catalogue(c.Node.GPUs)
			boards := map[string]gpu.GPU{}
			for _, g := range c.Node.GPUs {
				boards[g.UUID] = g
			}
			pairs := 0
			for name, device := range p.devices {
				a, ok := catalogue[name]
				require.True(t, ok, "%s is published and not in the catalogue", name)
				require.NotEmpty(t, device.ConsumesCounters)
				for other := range p.devices {
					b := catalogue[other]
					if name >= other || a.GPU != b.GPU && a.Type != b.Type {
						continue
					}
					pairs++
					require.Equal(t, a.GPU != b.GPU || together(boards[a.GPU], a, b), p.fit(name, other), "%s and %s", name, other)
				}
			}
			if len(p.devices) > 1 {
				require.NotZero(t, pairs)
			}
		})
	}
}

// All replicas of a GPU fit together, up to the largest number.
func TestReplicasFitTogether(t *testing.T) {
	g := boardGPU(t, "L40S")
	for n := 1; n <= gpu.MaxReplicas; n++ {
		c := pooltest.Case{Node: pooltest.Node(), Policy: pooltest.Policy(onDemand, false, n)}
		c.Node.GPUs = []gpu.GPU{g}
		p := publish(t, c)
		var names []string
		for name, d := range p.devices {
			if *d.Attributes["type"].StringValue == string(gpu.TypeTimeSlice) {
				names = append(names, name)
			}
		}
		require.Len(t, names, n)
		require.True(t, p.fit(names...))
		require.False(t, p.fit(append(names, "gpu-3f2a91c4")...))
	}
}

// Counters are worth the same whatever is configured: no change ever makes those
// in use and those published disagree.
func TestCountersNeverChange(t *testing.T) {
	want := map[string]string{}
	for _, c := range pooltest.Cases() {
		if len(c.Node.GPUs) != 1 {
			continue
		}
		for _, counters := range publish(t, c).sets {
			product, got := c.Node.GPUs[0].ProductName, countersText(counters)
			if old, ok := want[product]; ok {
				require.Equal(t, old, got, c.Name)
			}
			want[product] = got
		}
	}
	require.Len(t, want, len(gpu.Boards()))
}

// No layout of instances takes more multiprocessors or engines than the whole
// board as one instance has: so capacities never bind, and memory slices (and
// the media extensions) are all that counters must count.
func TestLayoutsNeverExceedTheBoard(t *testing.T) {
	for _, b := range gpu.Boards() {
		if len(b.Profiles) == 0 {
			continue
		}
		t.Run(b.Name, func(t *testing.T) {
			g := pooltest.GPU(b, 0)
			g.MIG.Current = true
			offer := pool.Desired(g, pooltest.Policy(keepOn, true, 0), nil)
			whole := b.Profiles[len(b.Profiles)-1]
			layouts := 0
			var layout []gpu.Device
			var extend func(from int)
			extend = func(from int) {
				maximal := true
				for i, d := range offer {
					fits := true
					for _, taken := range layout {
						fits = fits && d.Device != taken && together(g, d.Device, taken)
					}
					if !fits {
						continue
					}
					maximal = false
					if i >= from {
						layout = append(layout, d.Device)
						extend(i + 1)
						layout = layout[:len(layout)-1]
					}
				}
				if !maximal {
					return
				}
				layouts++
				var sum gpu.Profile
				for _, d := range layout {
					p, _ := g.Profile(d.Profile)
					sum.MemoryMiB += p.MemoryMiB
					sum.Multiprocessors += p.Multiprocessors
					sum.CopyEngines += p.CopyEngines
					sum.Decoders += p.Decoders
					sum.Encoders += p.Encoders
					sum.JPEGEngines += p.JPEGEngines
					sum.OFAEngines += p.OFAEngines
				}
				require.LessOrEqual(t, sum.MemoryMiB, b.MemoryMiB, "memory of %v", layout)
				require.LessOrEqual(t, sum.Multiprocessors, b.Multiprocessors, "multiprocessors of %v", layout)
				require.LessOrEqual(t, sum.CopyEngines, whole.CopyEngines, "copy engines of %v", layout)
				require.LessOrEqual(t, sum.Decoders, whole.Decoders, "decoders of %v", layout)
				require.LessOrEqual(t, sum.Encoders, whole.Encoders, "encoders of %v", layout)
				require.LessOrEqual(t, sum.JPEGEngines, whole.JPEGEngines, "JPEG engines of %v", layout)
				require.LessOrEqual(t, sum.OFAEngines, whole.OFAEngines, "OFA engines of %v", layout)
			}
			extend(0)
			t.Logf("%d maximal layouts", layouts)
			require.Greater(t, layouts, 100)
		})
	}
}
