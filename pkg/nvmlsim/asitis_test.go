package nvmlsim

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Who only looks leaves the host tree as it is, and others put it right.
func TestAsItIs(t *testing.T) {
	dir := t.TempDir()
	spec, err := Parse("1xL40S,state=" + dir)
	require.NoError(t, err)
	n, err := Open(spec)
	require.NoError(t, err)
	require.NoError(t, n.Close())
	node := filepath.Join(n.HostRoot(), "dev/nvidia0")
	require.NoError(t, os.Remove(node))
	for _, c := range []struct {
		options []Option
		there   bool
	}{{[]Option{AsItIs()}, false}, {nil, true}} {
		n, err = OpenExisting(dir, c.options...)
		require.NoError(t, err)
		boards, err := n.Boards()
		require.NoError(t, err)
		require.Len(t, boards, 1)
		require.NoError(t, n.Close())
		_, err = os.Lstat(node)
		require.Equal(t, c.there, err == nil)
	}
	_, err = OpenExisting(filepath.Join(dir, "nothing"), AsItIs())
	require.Error(t, err)
}

// A client has the nodes of its boards open, also when their minors change and others come to open the node.
func TestClientsHaveBoardsOpen(t *testing.T) {
	dir := t.TempDir()
	spec, err := Parse("2xH100-SXM5-80GB,state=" + dir)
	require.NoError(t, err)
	n, err := Open(spec)
	require.NoError(t, err)
	defer n.Close()
	open := func() map[string]bool {
		links, err := filepath.Glob(filepath.Join(n.HostRoot(), "proc/77/fd/*"))
		require.NoError(t, err)
		targets := map[string]bool{}
		for _, link := range links {
			target, err := os.Readlink(link)
			require.NoError(t, err)
			targets[target] = true
		}
		return targets
	}
	require.NoError(t, n.AddClient("0", Client{PID: 77}))
	require.NoError(t, n.AddClient("1", Client{PID: 77}))
	require.Equal(t, map[string]bool{"/dev/nvidia0": true, "/dev/nvidia1": true}, open())
	require.NoError(t, n.RemoveClient("0", 77))
	require.Equal(t, map[string]bool{"/dev/nvidia1": true}, open())

	// What a killed process has left is put right.
	stale := filepath.Join(n.HostRoot(), "proc/77/fd/9")
	require.NoError(t, os.Symlink("/dev/nvidia9", stale))
	wrong := filepath.Join(n.HostRoot(), "proc/77/fd/4")
	require.NoError(t, os.Remove(wrong))
	require.NoError(t, os.Symlink("/dev/nvidia7", wrong))
	again, err := OpenExisting(dir)
	require.NoError(t, err)
	require.NoError(t, again.Close())
	require.Equal(t, map[string]bool{"/dev/nvidia1": true}, open())
	require.NoError(t, n.RemoveClient("1", 77))
	require.NoDirExists(t, filepath.Join(n.HostRoot(), "proc/77"))
}
