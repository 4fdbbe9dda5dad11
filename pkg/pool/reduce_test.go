package pool_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

// What is published to an API server that lacks a feature can be sold by a
// scheduler that knows nothing of it.
func TestReduce(t *testing.T) {
	c := h100(2, 4)
	first, second := c.Node.GPUs[0].UUID, c.Node.GPUs[1].UUID
	offers := map[string]pool.Offer{}
	for _, g := range c.Node.GPUs {
		offers[g.UUID] = pool.Desired(g, c.Policy, nil)
	}
	full, err := pool.Build(c.Node, offers, []gpu.Condition{{Device: gpu.Device{GPU: first}, Reason: "Xid79", Effect: gpu.EffectNoExecute, Since: time.Unix(1, 0)}})
	require.NoError(t, err)
	devices := gpu.Catalogue(c.Node.GPUs)
	whole := func(uuid string) gpu.Device { return gpu.Device{Type: gpu.TypeGPU, GPU: uuid} }
	part := func(uuid string) gpu.Device { return gpu.Device{Type: gpu.TypeTimeSlice, GPU: uuid, Replica: 1} }
	counters, taints, both := pool.Lacks{PartitionableDevices: true}, pool.Lacks{DeviceTaints: true}, pool.Lacks{PartitionableDevices: true, DeviceTaints: true}
	for name, x := range map[string]struct {
		lacks   pool.Lacks
		inUse   []gpu.Device
		devices int
		tainted int
	}{
		"nothing":                        {pool.Lacks{}, nil, 2 * 23, 23},
		"counters":                       {counters, nil, 2, 1},
		"counters, a GPU in use":         {counters, []gpu.Device{whole(first)}, 2, 1},
		"counters, a part in use":        {counters, []gpu.Device{part(second)}, 1, 1},
		"taints":                         {taints, nil, 23, 0},
		"taints, an unwell GPU in use":   {taints, []gpu.Device{whole(first)}, 24, 0},
		"both":                           {both, nil, 1, 0},
		"both, parts of all GPUs in use": {both, []gpu.Device{part(first), part(second)}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inUse := map[string][]gpu.Device{}
			for _, d := range x.inUse {
				inUse[d.GPU] = append(inUse[d.GPU], d)
			}
			reduced := pool.Reduce(full, x.lacks, devices, inUse)
			slices := reduced.Pools[c.Node.Name].Slices
			require.NotEmpty(t, slices, "no slice would be no pool")
			found, tainted := 0, 0
			for _, s := range slices {
				require.True(t, !x.lacks.PartitionableDevices || len(s.SharedCounters) == 0)
				for _, d := range s.Devices {
					found++
					require.Equal(t, x.lacks.PartitionableDevices, len(d.ConsumesCounters) == 0, d.Name)
					if len(d.Taints) > 0 {
						tainted++
					}
				}
			}
			require.Equal(t, x.devices, found)
			require.Equal(t, x.tainted, tainted)
		})
	}
}

func TestLacksOf(t *testing.T) {
	l, ok := pool.LacksOf([]string{"DRADeviceTaints", "DRAOther"})
	require.True(t, ok)
	require.Equal(t, pool.Lacks{DeviceTaints: true}, l)
	_, ok = pool.LacksOf([]string{"DRAOther"})
	require.False(t, ok)
}
