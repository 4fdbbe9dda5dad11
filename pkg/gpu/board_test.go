package gpu_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// What the rest takes for granted of every board.
func TestBoardsAreWellFormed(t *testing.T) {
	products := map[string]bool{}
	for _, b := range gpu.Boards() {
		t.Run(b.Name, func(t *testing.T) {
			require.False(t, products[b.ProductName], "the product name tells boards apart")
			products[b.ProductName] = true
			require.LessOrEqual(t, len(b.ProductName), 64, "it is published as an attribute")
			names, ids := map[string]bool{}, map[int]bool{}
			for _, p := range b.Profiles {
				require.False(t, names[p.Name] || ids[p.ID], p.Name)
				names[p.Name], ids[p.ID] = true, true
				require.LessOrEqual(t, p.MemoryMiB, b.MemoryMiB, p.Name)
				require.LessOrEqual(t, p.Multiprocessors, b.Multiprocessors, p.Name)
				require.NotEmpty(t, p.Placements, p.Name)
				require.True(t, slices.IsSortedFunc(p.Placements, func(x, y gpu.Placement) int { return x.Start - y.Start }), p.Name)
				for _, at := range p.Placements {
					require.True(t, at.Start >= 0 && at.Size > 0 && at.Start+at.Size <= 8, "%s at %s", p.Name, at)
				}
			}
			found, err := gpu.BoardByName(b.Name)
			require.NoError(t, err)
			require.Equal(t, b, found)
		})
	}
}

// The order of a profile's placements is a permutation of them, in which no
// placement overlaps fewer others than the one before.
func TestLeastBlockingIsByOverlap(t *testing.T) {
	for _, b := range gpu.Boards() {
		overlaps := func(at gpu.Placement) int {
			n := 0
			for _, o := range b.Profiles {
				for _, other := range o.Placements {
					if !o.MediaExtensions && other.Overlaps(at) {
						n++
					}
				}
			}
			return n
		}
		for _, p := range b.Profiles {
			ordered := gpu.LeastBlocking(p, b.Profiles)
			require.ElementsMatch(t, p.Placements, ordered)
			require.True(t, slices.IsSortedFunc(ordered, func(x, y gpu.Placement) int { return overlaps(x) - overlaps(y) }), "%s of %s: %v", p.Name, b.Name, ordered)
		}
	}
}

// However alike the UUIDs of a node are, all possible devices have names of
// their own that the API takes, and the order of the boards changes none.
func TestNamesOfAlikeBoards(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	boards := gpu.Boards()
	for range 200 {
		var gpus []gpu.GPU
		want := 0
		for len(gpus) < 1+random.IntN(8) {
			// Few different digits make prefixes of any length agree.
			digit := func(n int) string { return fmt.Sprintf("%0*x", n, random.IntN(2)) }
			uuid := fmt.Sprintf("GPU-%s-%s-%s-%s-%s", digit(8), digit(4), digit(4), digit(4), digit(12))
			if slices.ContainsFunc(gpus, func(g gpu.GPU) bool { return g.UUID == uuid }) {
				continue
			}
			b := boards[random.IntN(len(boards))]
			gpus = append(gpus, gpu.GPU{UUID: uuid, Profiles: b.Profiles})
			want += 1 + len(gpu.AllPlaced(b.Profiles)) + gpu.MaxReplicas
		}
		catalogue := gpu.Catalogue(gpus)
		require.Len(t, catalogue, want)
		for name := range catalogue {
			require.Empty(t, validation.IsDNS1123Label(name), name)
		}
		slices.Reverse(gpus)
		require.Equal(t, catalogue, gpu.Catalogue(gpus))
	}
}

func TestFits(t *testing.T) {
	there := []gpu.Instance{{ID: 1, Placement: gpu.Placement{Start: 0, Size: 2}}, {ID: 2, Placement: gpu.Placement{Start: 6, Size: 1}}}
	for _, c := range []struct {
		at      gpu.Placement
		blocker int
	}{
		{gpu.Placement{Start: 2, Size: 4}, 0},
		{gpu.Placement{Start: 1, Size: 1}, 1},
		{gpu.Placement{Start: 4, Size: 4}, 2},
		{gpu.Placement{Start: 0, Size: 8}, 1},
	} {
		blocker, ok := gpu.Fits(c.at, there)
		require.Equal(t, c.blocker == 0, ok, c.at)
		require.Equal(t, c.blocker, blocker.ID, c.at)
	}
}

func TestUsable(t *testing.T) {
	whole, part := gpu.ComputeInstance{Whole: true}, gpu.ComputeInstance{}
	for _, c := range []struct {
		compute []gpu.ComputeInstance
		usable  bool
	}{
		{nil, false},
		{[]gpu.ComputeInstance{whole}, true},
		{[]gpu.ComputeInstance{part}, false},
		{[]gpu.ComputeInstance{part, part}, false},
	} {
		i := gpu.Instance{Compute: c.compute}
		require.Equal(t, c.usable, i.Usable(), c.compute)
	}
}

func TestParseBoards(t *testing.T) {
	for text, want := range map[string][]string{
		"L40S":                     {"L40S"},
		"2xh100-sxm5-80gb, 1xA10G": {"H100-SXM5-80GB", "H100-SXM5-80GB", "A10G"},
		"0xA10G":                   nil,
		"17xA10G":                  nil,
		"9xA10G,8xL40S":            nil,
		"8xB1000":                  nil,
		"":                         nil,
	} {
		boards, err := gpu.ParseBoards(text)
		require.Equal(t, want == nil, err != nil, text)
		var names []string
		for _, b := range boards {
			names = append(names, b.Name)
		}
		require.Equal(t, want, names, text)
	}
}
