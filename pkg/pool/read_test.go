package pool_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
	"github.com/kerf-project/kerf/pkg/pool/pooltest"
)

// What the counters of a published device say is where the device is.
func TestCovers(t *testing.T) {
	for _, c := range pooltest.Cases() {
		objects, err := c.Slices()
		require.NoError(t, err)
		known := gpu.Catalogue(c.Node.GPUs)
		var uuids []string
		for _, g := range c.Node.GPUs {
			uuids = append(uuids, g.UUID)
		}
		names := gpu.NewNames(uuids)
		for _, s := range objects {
			for i := range s.Spec.Devices {
				d := known[s.Spec.Devices[i].Name]
				name, at, ok := pool.Covers(&s.Spec.Devices[i])
				require.True(t, ok)
				require.Equal(t, names.GPU(d.GPU), name)
				switch {
				case d.Type == gpu.TypeMIG:
					require.Equal(t, d.Placement, at)
				default:
					require.Zero(t, at.Start)
				}
			}
		}
	}
	_, _, ok := pool.Covers(&resourceapi.Device{ConsumesCounters: []resourceapi.DeviceCounterConsumption{{CounterSet: "x", Counters: map[string]resourceapi.Counter{"cores": {}}}}})
	require.False(t, ok, "another driver's device")
}
