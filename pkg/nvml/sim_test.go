package nvml

import (
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// simulate makes a node of those boards, new and gone with the test.
func simulate(t testing.TB, boards string) *nvmlsim.Node {
	t.Helper()
	spec, err := nvmlsim.Parse(boards + ",state=" + t.TempDir())
	require.NoError(t, err)
	n, err := nvmlsim.Open(spec)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close()) })
	return n
}

// open opens an adapter until the end of the test.
func open(t testing.TB, lib nvml.Interface, options ...Option) *Adapter {
	t.Helper()
	a := New(lib, options...)
	require.NoError(t, a.Open(t.Context()))
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// uuids are the boards' UUIDs by index.
func uuids(t testing.TB, n *nvmlsim.Node) []string {
	t.Helper()
	boards, err := n.Boards()
	require.NoError(t, err)
	var all []string
	for _, b := range boards {
		all = append(all, b.UUID)
	}
	return all
}
