package fleet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

// cluster is what a controller has of a cluster: 5,000 nodes of 8 boards, of which
// 10,000 claims hold something, as informers with an Interner keep them.
type cluster struct {
	Snapshot
	// pods have 24 shapes.
	pods []Pod
	// heap is what is alive because of the objects, in bytes.
	heap uint64
}

var large = sync.OnceValues(func() (*cluster, error) { return newCluster(5000, 10000) })

func newCluster(nodes, claims int) (*cluster, error) {
	before := heap()
	c := &cluster{Snapshot: Snapshot{Classes: DefaultClasses(pool.DefaultDriver)}}
	for _, class := range c.Classes {
		class.UID, class.ResourceVersion = types.UID(class.Name), "1"
	}
	boards, err := gpu.ParseBoards("8xH100-SXM5-80GB")
	if err != nil {
		return nil, err
	}
	interner := NewInterner()
	for i := range nodes {
		name := fmt.Sprintf("gpu-%05d", i)
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("n" + name), ResourceVersion: "1", Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelTopologyZone: "zone-" + strconv.Itoa(i%3), corev1.LabelInstanceTypeStable: "gpu.8x",
		}}}
		c.Nodes = append(c.Nodes, n)
		published, err := Publish(name, pool.DefaultDriver, boards, nil)
		if err != nil {
			return nil, err
		}
		for _, s := range published {
			raw, err := s.Marshal()
			if err != nil {
				return nil, err
			}
			decoded := &resourceapi.ResourceSlice{} // As an informer has it: nothing in it is another's.
			if err := decoded.Unmarshal(raw); err != nil {
				return nil, err
			}
			decoded.UID, decoded.ResourceVersion = types.UID("s"+decoded.Name), "1"
			if _, err := interner.Transform(decoded); err != nil {
				return nil, err
			}
			c.Slices = append(c.Slices, decoded)
		}
	}
	for i, p := range []string{"1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"} {
		zone := &corev1.PodSpec{NodeSelector: map[string]string{corev1.LabelTopologyZone: "zone-" + strconv.Itoa(i%3)}}
		c.pods = append(c.pods, alone(claim("a", profile(p))), alone(claim("b", profile(p), profile(p))), alone(claim("c", profile(p), profile("1g.10gb"))),
			Pod{Spec: zone, Claims: []*resourceapi.ResourceClaim{claim("d", profile(p), wholeClass)}})
	}
	parent := resourceapi.FullyQualifiedName("gpu.nvidia.com/parentUUID")
	f := New(c.Snapshot)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range claims {
		at := random.IntN(nodes)
		p, on := c.pods[4*random.IntN(4)], slices.Concat(c.Nodes[at:], c.Nodes[:at])
		if i < nodes {
			// On every GPU is a small instance, so that nothing large fits on any node.
			p, on = alone(claim("spread", slices.Repeat([]string{profile("1g.10gb")}, 8)...)), c.Nodes[i:i+1]
			p.Claims[0].Spec.Devices.Constraints = []resourceapi.DeviceConstraint{{DistinctAttribute: &parent}}
		}
		_, placed, err := f.PlaceOn(context.Background(), p, on)
		if err != nil {
			return nil, err
		}
		placed[0].Name = fmt.Sprintf("claim-%d", i)
		placed[0].UID, placed[0].ResourceVersion = types.UID(placed[0].Name), "1"
		c.Claims = append(c.Claims, placed[0])
	}
	c.heap = heap() - before
	runtime.KeepAlive(interner)
	return c, nil
}

// heap is how much is alive, in bytes.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// another is the snapshot with all objects copied, as a cache hands them out.
func (c *cluster) another() Snapshot {
	return Snapshot{Nodes: copies(c.Nodes), Slices: copies(c.Slices), Classes: copies(c.Classes), Claims: copies(c.Claims), TaintRules: copies(c.TaintRules)}
}

func copies[T any](all []*T) []*T {
	made := make([]*T, len(all))
	for i, o := range all {
		c := *o
		made[i] = &c
	}
	return made
}

func BenchmarkNew5000Nodes(b *testing.B) {
	c, err := large()
	require.NoError(b, err)
	for b.Loop() {
		New(c.Snapshot)
	}
}

func BenchmarkRefreshUnchanged5000Nodes(b *testing.B) {
	c, err := large()
	require.NoError(b, err)
	f, next := New(c.Snapshot), [2]Snapshot{c.another(), c.Snapshot}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		f.Refresh(next[i%2])
	}
}

// fewer is the snapshot when 1 % of the claims have given their devices back.
func (c *cluster) fewer() Snapshot {
	s := c.another()
	for i := 0; i < len(s.Claims); i += 100 {
		s.Claims[i].ResourceVersion, s.Claims[i].Status = "2", resourceapi.ResourceClaimStatus{}
	}
	return s
}

func BenchmarkRefreshClaims5000Nodes(b *testing.B) {
	c, err := large()
	require.NoError(b, err)
	f, next := New(c.Snapshot), [2]Snapshot{c.fewer(), c.Snapshot}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		f.Refresh(next[i%2])
	}
}

// tick places 500 pods and takes them back. It returns how many did not fit.
func (c *cluster) tick(b *testing.B, f *Fleet, nodes []*corev1.Node) (refused int) {
	var all []*resourceapi.ResourceClaim
	for i := range 500 {
		_, placed, err := f.PlaceOn(b.Context(), c.pods[i%len(c.pods)], nodes)
		if errors.Is(err, ErrNoFit) {
			refused++
			continue
		}
		require.NoError(b, err)
		all = append(all, placed...)
	}
	for _, c := range all {
		f.Release(c)
	}
	return refused
}

func BenchmarkPlacements5000Nodes(b *testing.B) {
	c, err := large()
	require.NoError(b, err)
	f := New(c.Snapshot)
	c.tick(b, f, c.Nodes)
	b.ReportAllocs()
	refused := 0
	for b.Loop() {
		refused = c.tick(b, f, c.Nodes)
	}
	b.ReportMetric(float64(refused), "refused/op")
}

// BenchmarkTick5000Nodes is all that a controller asks in a tick: what has changed, 500
// placements, what would fit on new nodes, and who has to go on one of them.
func BenchmarkTick5000Nodes(b *testing.B) {
	c, err := large()
	require.NoError(b, err)
	f, next := New(c.Snapshot), [2]Snapshot{c.fewer(), c.Snapshot}
	c.tick(b, f, c.Nodes)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		f.Refresh(next[i%2])
		c.tick(b, f, c.Nodes)
		for n := range 100 {
			p := c.pods[n%len(c.pods)]
			_, err := f.FitsEmpty(b.Context(), p)
			require.NoError(b, err)
			node := c.Nodes[n]
			_, err = f.MakeRoom(b.Context(), p, node, f.Only(node).Claims)
			require.NoError(b, err)
		}
	}
}

// The live heap of the objects, and of what the fleet knows after a tick of its own.
func BenchmarkHeap5000Nodes(b *testing.B) {
	c, err := large()
	require.NoError(b, err)
	var grown uint64
	for b.Loop() {
		before := heap()
		f := New(c.Snapshot)
		c.tick(b, f, c.Nodes)
		grown = heap() - before
		runtime.KeepAlive(f)
	}
	b.ReportMetric(float64(c.heap)/(1<<20), "objects-MiB")
	b.ReportMetric(float64(grown)/(1<<20), "fleet-MiB")
}
