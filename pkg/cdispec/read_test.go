package cdispec

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// What is read is what was written: the note, and for each device the nodes that the host says it has.
func TestRead(t *testing.T) {
	sim, w := simulated(t, "1xH100-SXM5-80GB")
	none, err := Read(w.options.CDIRoot + "/nothing")
	require.NoError(t, err)
	require.Empty(t, none)

	require.NoError(t, sim.SetMIGMode("0", true))
	i, err := sim.CreateInstance("0", "1g.10gb", &gpu.Placement{Start: 4, Size: 1}, true)
	require.NoError(t, err)
	d := mig(simulatedBoard(t, sim, 0), "small", i.Placement, i.ID)
	d.Instance = &i
	_, err = w.Write(t.Context(), claim, "note", []Device{d})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(w.path("damaged"), []byte("{"), 0o600))

	files, err := Read(w.options.CDIRoot)
	require.NoError(t, err)
	require.Len(t, files, 2)
	for _, f := range files {
		if f.ClaimUID == "damaged" {
			require.Error(t, f.Err)
			continue
		}
		require.NoError(t, f.Err)
		require.Equal(t, "note", f.Note)
		want, err := NewHost(sim.HostRoot()).Nodes(d)
		require.NoError(t, err)
		require.Len(t, want, 3)
		require.Equal(t, want, f.Nodes[d.Name])
	}
	minors, err := NewHost(sim.HostRoot()).MIGMinors()
	require.NoError(t, err)
	require.EqualValues(t, gpu.CapabilityMinor(0, 1, 2), minors["gpu0/gi1/ci2/access"])
	require.NoError(t, NewHost(sim.HostRoot()).Check())
	require.Error(t, NewHost(t.TempDir()).Check())
}
