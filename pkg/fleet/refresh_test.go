package fleet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

// world is a cluster that changes as one does: an object of which anything changes
// is another one, with a new version.
type world struct {
	Snapshot
	*rand.Rand
	t       *testing.T
	version int
	intern  func(any) (any, error)
}

func (w *world) stamp(o metav1.Object) {
	w.version++
	o.SetResourceVersion(strconv.Itoa(w.version))
	if o.GetUID() == "" {
		o.SetUID(types.UID("uid-" + strconv.Itoa(w.version)))
	}
}

// change replaces one of the objects.
func change[T interface {
	metav1.Object
	DeepCopy() T
}](w *world, all []T, edit func(T)) {
	if len(all) == 0 {
		return
	}
	i := w.IntN(len(all))
	all[i] = all[i].DeepCopy()
	edit(all[i])
	w.stamp(all[i])
}

func drop[T any](w *world, all []T) []T {
	if len(all) == 0 {
		return all
	}
	i := w.IntN(len(all))
	return slices.Delete(slices.Clone(all), i, i+1)
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 1)), t: t, intern: func(o any) (any, error) { return o, nil }}
	if seed%2 == 0 {
		w.intern = NewInterner().Transform
	}
	w.Classes = DefaultClasses(pool.DefaultDriver)
	w.Classes = append(w.Classes, &resourceapi.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "any"}}, &resourceapi.DeviceClass{
		ObjectMeta: metav1.ObjectMeta{Name: "net.example.com"}, Spec: resourceapi.DeviceClassSpec{Selectors: []resourceapi.DeviceSelector{{
			CEL: &resourceapi.CELDeviceSelector{Expression: `device.driver == "net.example.com"`}}}}})
	for _, c := range w.Classes {
		w.stamp(c)
	}
	everywhere := true
	net := &resourceapi.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: "net"}, Spec: resourceapi.ResourceSliceSpec{
		Driver: "net.example.com", AllNodes: &everywhere, Pool: resourceapi.ResourcePool{Name: "fabric", ResourceSliceCount: 1},
		Devices: []resourceapi.Device{{Name: "a"}, {Name: "b"}},
	}}
	w.stamp(net)
	w.Slices = append(w.Slices, net)
	for range 3 {
		w.addNode()
	}
	return w
}

func (w *world) addNode() {
	name := fmt.Sprintf("node-%d", w.version)
	boards, err := gpu.ParseBoards([]string{"2xH100-SXM5-80GB", "H100-SXM5-80GB,L40S"}[w.IntN(2)])
	require.NoError(w.t, err)
	published, err := Publish(name, pool.DefaultDriver, boards, nil)
	require.NoError(w.t, err)
	for _, s := range published {
		w.stamp(s)
		_, err := w.intern(s)
		require.NoError(w.t, err)
	}
	w.Slices = append(w.Slices, published...)
	if w.IntN(4) > 0 {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": strconv.Itoa(w.IntN(2))}}}
		w.stamp(n)
		w.Nodes = append(w.Nodes, n)
	}
}

// allocate gives a new claim devices somewhere.
func (w *world) allocate() {
	_, placed, err := New(w.Snapshot).Place(w.t.Context(), w.pod())
	if errors.Is(err, ErrNoFit) {
		return
	}
	require.NoError(w.t, err)
	for _, c := range placed {
		w.stamp(c)
		w.Claims = append(w.Claims, c)
	}
}

func (w *world) pod() Pod {
	classNames := []string{profile("1g.10gb"), profile("2g.20gb"), profile("3g.40gb"), profile("7g.80gb"), wholeClass, "net.example.com"}
	some := func() string { return classNames[w.IntN(len(classNames))] }
	p := alone(claim("c", some()))
	if w.IntN(3) == 0 {
		p = alone(claim("c", some(), some()))
	}
	if parent := resourceapi.FullyQualifiedName("gpu.nvidia.com/parentUUID"); w.IntN(4) == 0 {
		p = alone(claim("c", profile("1g.10gb"), profile("3g.40gb")))
		p.Claims[0].Spec.Devices.Constraints = []resourceapi.DeviceConstraint{{MatchAttribute: &parent}}
		if w.IntN(2) == 0 {
			p.Claims[0].Spec.Devices.Constraints = []resourceapi.DeviceConstraint{{DistinctAttribute: &parent}}
		}
	}
	if w.IntN(4) == 0 {
		p.Spec = &corev1.PodSpec{NodeSelector: map[string]string{"zone": strconv.Itoa(w.IntN(2))}}
	}
	return p
}

func (w *world) step() {
	taint := resourceapi.DeviceTaint{Key: "example.com/broken", Effect: resourceapi.DeviceTaintEffectNoSchedule}
	switch w.IntN(14) {
	case 0:
		w.addNode()
	case 1:
		if len(w.Nodes) == 0 {
			return
		}
		gone := w.Nodes[w.IntN(len(w.Nodes))]
		w.Nodes = slices.DeleteFunc(slices.Clone(w.Nodes), func(n *corev1.Node) bool { return n == gone })
		w.Slices = slices.DeleteFunc(slices.Clone(w.Slices), func(s *resourceapi.ResourceSlice) bool { return value(s.Spec.NodeName) == gone.Name && w.IntN(4) > 0 })
	case 2:
		change(w, w.Nodes, func(n *corev1.Node) { n.Labels = map[string]string{"zone": strconv.Itoa(w.IntN(2))} })
	case 3:
		change(w, w.Nodes, func(n *corev1.Node) { n.Spec.Unschedulable = !n.Spec.Unschedulable })
	case 4:
		change(w, w.Slices, func(s *resourceapi.ResourceSlice) {
			for i := range s.Spec.Devices {
				s.Spec.Devices[i].Taints = nil
				if w.IntN(4) == 0 {
					s.Spec.Devices[i].Taints = []resourceapi.DeviceTaint{taint}
				}
			}
		})
	case 5:
		change(w, w.Slices, func(s *resourceapi.ResourceSlice) { s.Spec.Pool.Generation = int64(w.IntN(2)) })
	case 6:
		w.Slices = drop(w, w.Slices)
	case 7:
		change(w, w.Classes, func(c *resourceapi.DeviceClass) {
			c.Spec.Selectors = append(c.Spec.Selectors, resourceapi.DeviceSelector{CEL: &resourceapi.CELDeviceSelector{
				Expression: fmt.Sprintf(`device.driver != "%d"`, w.version)}})
		})
	case 8:
		w.TaintRules = drop(w, w.TaintRules)
	case 9:
		name := w.Slices[w.IntN(len(w.Slices))].Spec.Pool.Name
		r := &resourceapi.DeviceTaintRule{ObjectMeta: metav1.ObjectMeta{Name: strconv.Itoa(w.version)}, Spec: resourceapi.DeviceTaintRuleSpec{
			DeviceSelector: &resourceapi.DeviceTaintSelector{Pool: &name}, Taint: taint}}
		w.stamp(r)
		w.TaintRules = append(w.TaintRules, r)
	case 10:
		w.Claims = drop(w, w.Claims)
	case 11:
		change(w, w.Claims, func(c *resourceapi.ResourceClaim) { c.Status.Allocation = nil })
	default:
		w.allocate()
	}
}

// A fleet that is refreshed answers as one that is made of the snapshot, after any
// change, whatever it was asked before and whatever is left of what it placed.
func TestRefreshIsNew(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, seed)
			f := New(w.Snapshot)
			fits := 0
			for range 40 {
				for range 1 + w.IntN(3) {
					w.step()
				}
				c := cluster{Snapshot: w.Snapshot}
				next := c.another()
				shuffle(w, next.Slices)
				shuffle(w, next.Claims)
				f.Refresh(next)
				fresh := New(w.Snapshot)
				require.Equal(t, names(fresh.Nodes()), names(f.Nodes()))
				for range 6 {
					p := w.pod()
					wantFits, wantErr := fresh.FitsEmpty(t.Context(), p)
					gotFits, err := f.FitsEmpty(t.Context(), p)
					require.Equal(t, fmt.Sprint(wantErr), fmt.Sprint(err))
					require.Equal(t, wantFits, gotFits)

					wantNode, want, wantErr := fresh.Place(t.Context(), p)
					gotNode, got, err := f.Place(t.Context(), p)
					require.Equal(t, fmt.Sprint(wantErr), fmt.Sprint(err))
					require.Equal(t, wantNode, gotNode)
					require.Equal(t, want, got)
					if err == nil {
						fits++
						require.True(t, gotFits, "what fits now fits when nothing is in use")
					}
					if w.IntN(2) == 0 {
						for i := range got {
							f.Release(got[i])
							fresh.Release(want[i])
						}
					}
				}
			}
			require.Greater(t, fits, 40)
		})
	}
}

func shuffle[T any](w *world, all []T) {
	w.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
}

func names(nodes []*corev1.Node) []string {
	var all []string
	for _, n := range nodes {
		all = append(all, n.Name)
	}
	return all
}

// What is unchanged is not looked at again, and older copies of it are let go.
func TestRefreshKeeps(t *testing.T) {
	w := newWorld(t, 1)
	w.allocate()
	f := New(w.Snapshot)
	_, _, err := f.Place(t.Context(), alone(claim("c", wholeClass)))
	require.NoError(t, err)
	n := f.all[0]
	k := n.kind
	require.NotNil(t, k)
	c := cluster{Snapshot: w.Snapshot}
	next := c.another()
	f.Refresh(next)
	require.Same(t, k, n.kind)
	for _, p := range n.pools {
		for _, s := range p.slices {
			require.True(t, slices.Contains(next.Slices, s), "the newer copy of slice %s", s.Name)
		}
	}
	for c := range f.taken {
		require.True(t, slices.Contains(next.Claims, c), "the newer copy of claim %s", c.Name)
	}
	f.Release(w.Claims[0])
	require.Empty(t, f.taken, "an older copy of a claim is that claim")
}
