package fleet

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
)

func TestPlaceOnTriesTheNodesGiven(t *testing.T) {
	f := New(snapshot(t, "H100-SXM5-80GB", "H100-SXM5-80GB", "H100-SXM5-80GB"))
	nodes := f.Nodes()
	on := func(c *resourceapi.ResourceClaim, order ...*corev1.Node) (string, error) {
		node, _, err := f.PlaceOn(t.Context(), alone(c), order)
		return node, err
	}
	node, err := on(claim("a", wholeClass), nodes[2], nodes[1])
	require.NoError(t, err)
	require.Equal(t, "node-2", node)
	node, err = on(claim("b", wholeClass), &corev1.Node{}, nodes[2], nodes[1])
	require.NoError(t, err)
	require.Equal(t, "node-1", node)
	_, err = on(claim("c", wholeClass), nodes[2], nodes[1])
	require.ErrorIs(t, err, ErrNoFit)
	_, err = on(claim("c", wholeClass))
	require.ErrorIs(t, err, ErrNoFit)
	node, err = on(claim("c", wholeClass), nodes...)
	require.NoError(t, err)
	require.Equal(t, "node-0", node)
	_, err = on(claim("d", wholeClass), nodes...)
	require.ErrorIs(t, err, ErrNoFit)
}

// FitsEmpty is what the allocator says of the nodes when no claim has anything.
func TestFitsEmpty(t *testing.T) {
	for seed := range uint64(4) {
		w := newWorld(t, seed)
		both := map[bool]int{}
		for range 30 {
			w.step()
			f := New(w.Snapshot)
			idle := w.Snapshot
			idle.Claims = nil
			empty := New(idle)
			for range 10 {
				p := w.pod()
				if w.IntN(3) == 0 {
					p.Claims[0].Spec.Devices.Requests[0].Exactly.Count = int64(1 + w.IntN(10))
				}
				want := slices.ContainsFunc(empty.Nodes(), func(n *corev1.Node) bool {
					_, err := empty.Allocate(t.Context(), n, p.Claims...)
					return p.Excluded(n) == "" && err == nil
				})
				for range 2 { // The second answer is remembered.
					got, err := f.FitsEmpty(t.Context(), p)
					require.NoError(t, err)
					require.Equal(t, want, got)
				}
				both[want]++
			}
		}
		require.Greater(t, both[true], 20)
		require.Greater(t, both[false], 20)
	}
}

// Nodes that differ in names alone are one kind, and what one of them refused is not
// asked of the next.
func TestNodesOfAKind(t *testing.T) {
	boards := slices.Repeat([]string{"2xH100-SXM5-80GB"}, 20)
	f := New(snapshot(t, append(boards, "L40S")...))
	fits, err := f.FitsEmpty(t.Context(), alone(claim("c", slices.Repeat([]string{profile("4g.40gb")}, 3)...)))
	require.NoError(t, err)
	require.False(t, fits)
	require.Len(t, f.memory.kinds, 2)
	node, _ := place(t, f, claim("a", profile("1g.10gb")))
	idle := map[*state]bool{}
	for _, n := range f.all {
		s, err := f.stateOf(n, nil)
		require.NoError(t, err)
		idle[s] = idle[s] || n.Name != node
	}
	require.Len(t, idle, 3, "boards with and without the claim, and the other board")
}

// A set of claims that makes room is as small as the smallest of all sets.
func TestMakeRoom(t *testing.T) {
	found := map[int]int{}
	for seed := range uint64(12) {
		w := newWorld(t, seed)
		for range 12 {
			w.allocate()
		}
		f := New(w.Snapshot)
		for _, n := range f.Nodes() {
			for _, class := range []string{profile("3g.40gb"), profile("7g.80gb"), wholeClass} {
				p := alone(claim("c", class))
				may := slices.DeleteFunc(slices.Clone(w.Claims), func(*resourceapi.ResourceClaim) bool { return w.IntN(3) == 0 })
				want := smallest(t, w.Snapshot, n, p, may)
				got, err := f.MakeRoom(t.Context(), p, n, may)
				require.NoError(t, err)
				require.Equal(t, want < 0, got == nil)
				if got == nil {
					found[-1]++
					continue
				}
				require.Len(t, got, want)
				require.Subset(t, may, got)
				require.Equal(t, want, smallest(t, w.Snapshot, n, p, got), "it is enough")
				found[want]++
			}
		}
	}
	for _, n := range []int{-1, 0, 1, 2} {
		require.Positive(t, found[n], "sets of %d: %v", n, found)
	}

	w := newWorld(t, 1)
	f := New(w.Snapshot)
	p := alone(claim("c", wholeClass))
	p.Spec = &corev1.PodSpec{NodeName: "elsewhere"}
	room, err := f.MakeRoom(t.Context(), p, f.Nodes()[0], nil)
	require.NoError(t, err)
	require.Nil(t, room, "the pod cannot run there at all")
	room, err = f.MakeRoom(t.Context(), p, &corev1.Node{}, nil)
	require.NoError(t, err)
	require.Nil(t, room)
}

// smallest is how many of the claims have to go at least, or -1.
func smallest(t *testing.T, s Snapshot, n *corev1.Node, p Pod, may []*resourceapi.ResourceClaim) int {
	t.Helper()
	best := -1
	local := New(s)
	may = slices.DeleteFunc(slices.Clone(may), func(c *resourceapi.ResourceClaim) bool { return !slices.Contains(local.Only(n).Claims, c) })
	require.Less(t, len(may), 12, "too many to try all")
	for set := range 1 << len(may) {
		var gone []*resourceapi.ResourceClaim
		for i, c := range may {
			if set&(1<<i) != 0 {
				gone = append(gone, c)
			}
		}
		if best >= 0 && len(gone) >= best {
			continue
		}
		for _, c := range gone {
			local.Release(c)
		}
		_, err := local.Allocate(t.Context(), n, p.Claims...)
		for _, c := range gone {
			local.Take(c)
		}
		if err == nil {
			best = len(gone)
		}
	}
	return best
}

// A refusal by a search that was given up is one until something is released.
func TestRefusalsLast(t *testing.T) {
	f := New(snapshot(t, "2xH100-SXM5-80GB"))
	_, held := place(t, f, claim("a", profile("1g.10gb")))
	hard := alone(claim("c", append(slices.Repeat([]string{profile("1g.10gb")}, 7), wholeClass)...))
	f.Search = 3
	_, _, err := f.Place(t.Context(), hard)
	require.ErrorIs(t, err, ErrSearch)
	f.Search = DefaultSearch
	_, _, err = f.Place(t.Context(), hard)
	require.ErrorIs(t, err, ErrNoFit)
	f.Release(held)
	_, _, err = f.Place(t.Context(), hard)
	require.NoError(t, err, "it is tried again")
}
