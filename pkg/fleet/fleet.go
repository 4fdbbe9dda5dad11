// Package fleet allocates claims on the nodes of a cluster, as the scheduler
// would: with the scheduler's own allocator, in this process, from
// ResourceSlices, claims, device classes and taint rules that somebody has read
// or made up. It owns what-if questions: does it fit, on which node, after whom.
// It never writes to an API server, and it never explains: that is pkg/explain.
package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/dynamic-resource-allocation/structured"
)

var (
	// ErrNoFit means that the claims do not fit on the node, or on any.
	ErrNoFit = errors.New("the claims do not fit")
	// ErrSearch means that the allocator tried for so long that the scheduler
	// would have given up.
	ErrSearch = errors.New("the search of the allocator takes too long")
)

// DefaultSearch bounds the allocator's search, in attempts to find one device. The
// scheduler gives up after 10 seconds, in which it makes about as many. Counted
// in attempts, the result does not depend on how fast the machine is.
const DefaultSearch = 500_000

// features are the defaults of Kubernetes 1.37.
var features = structured.Features{
	AdminAccess: true, ConsumableCapacity: true, DeviceBindingAndStatus: true, DeviceTaints: true,
	FractionalCapacityRange: true, PartitionableDevices: true, PrioritizedList: true,
}

// Snapshot is what a scheduler knows of a cluster. Nobody changes its objects.
type Snapshot struct {
	// Nodes are tried in this order. Nodes that slices name and that are not here
	// come after them, by name, without labels or taints.
	Nodes  []*corev1.Node
	Slices []*resourceapi.ResourceSlice
	// Classes: the last of a name counts.
	Classes []*resourceapi.DeviceClass
	// Claims hold the devices of their allocations. Those without one count for nothing.
	Claims []*resourceapi.ResourceClaim
	// TaintRules add taints to devices.
	TaintRules []*resourceapi.DeviceTaintRule
}

// Fleet is a cluster in which claims come and go. It is not safe for concurrent use.
type Fleet struct {
	// Search bounds each search of the allocator: DefaultSearch, if not set otherwise.
	Search int

	nodes   []*corev1.Node
	classes classes
	// pools are those that a node could use, by its name: all slices of each, also
	// those for other nodes, because they count for whether the pool is complete.
	pools map[string][]poolSlices
	cache *cel.Cache
	state structured.AllocatedState
	// holders are the claims that a device is allocated to, but for admin access.
	holders map[structured.DeviceID][]*resourceapi.ResourceClaim
	skips   skips
}

type poolID struct{ driver, name string }

type poolSlices struct {
	id     poolID
	slices []*resourceapi.ResourceSlice
}

// New makes a fleet of a snapshot.
func New(s Snapshot) *Fleet {
	f := &Fleet{
		Search: DefaultSearch, nodes: nodesOf(s), classes: classes{}, pools: map[string][]poolSlices{},
		cache: cel.NewCache(256, cel.Features{EnableConsumableCapacity: true}),
		state: structured.AllocatedState{
			AllocatedDevices: sets.New[structured.DeviceID](), AllocatedSharedDeviceIDs: sets.New[structured.SharedDeviceID](),
			AggregatedCapacity: structured.NewConsumedCapacityCollection(),
		},
		holders: map[structured.DeviceID][]*resourceapi.ResourceClaim{},
		skips:   newSkips(),
	}
	for _, c := range s.Classes {
		f.classes[c.Name] = c
	}
	f.gather(taint(s.Slices, s.TaintRules))
	for _, c := range s.Claims {
		f.Take(c)
	}
	return f
}

// With makes a fleet of another snapshot, which shares what this one knows of
// expressions, and its bound on searches.
func (f *Fleet) With(s Snapshot) *Fleet {
	other := New(s)
	other.Search, other.cache = f.Search, f.cache
	return other
}

func nodesOf(s Snapshot) []*corev1.Node {
	all := slices.Clone(s.Nodes)
	known := sets.New[string]()
	for _, n := range all {
		known.Insert(n.Name)
	}
	named := sets.New[string]()
	add := func(name *string) {
		if name != nil && *name != "" && !known.Has(*name) {
			named.Insert(*name)
		}
	}
	for _, slice := range s.Slices {
		add(slice.Spec.NodeName)
		for i := range slice.Spec.Devices {
			add(slice.Spec.Devices[i].NodeName)
		}
	}
	for _, name := range sets.List(named) {
		all = append(all, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	return all
}

// gather sorts the slices by node and pool.
func (f *Fleet) gather(all []*resourceapi.ResourceSlice) {
	byPool := map[poolID][]*resourceapi.ResourceSlice{}
	var order []poolID
	for _, s := range all {
		id := poolID{s.Spec.Driver, s.Spec.Pool.Name}
		if byPool[id] == nil {
			order = append(order, id)
		}
		byPool[id] = append(byPool[id], s)
	}
	// As the allocator orders them.
	slices.SortFunc(order, func(a, b poolID) int {
		if a.driver != b.driver {
			return strings.Compare(a.driver, b.driver)
		}
		return strings.Compare(a.name, b.name)
	})
	for _, id := range order {
		p := poolSlices{id, byPool[id]}
		local, everywhere := sets.New[string](), false
		for _, s := range p.slices {
			if s.Spec.NodeName != nil && *s.Spec.NodeName != "" {
				local.Insert(*s.Spec.NodeName)
			} else {
				everywhere = true
			}
		}
		for _, n := range f.nodes {
			if everywhere || local.Has(n.Name) {
				f.pools[n.Name] = append(f.pools[n.Name], p)
			}
		}
	}
}

// Nodes are the nodes, in the order in which they are tried.
func (f *Fleet) Nodes() []*corev1.Node { return f.nodes }

// Node returns the node of that name.
func (f *Fleet) Node(name string) (*corev1.Node, bool) {
	i := slices.IndexFunc(f.nodes, func(n *corev1.Node) bool { return n.Name == name })
	if i < 0 {
		return nil, false
	}
	return f.nodes[i], true
}

// Only is the snapshot of one node alone: its pools, and the claims that hold
// something of them. It is what a what-if question about the node changes.
func (f *Fleet) Only(node *corev1.Node) Snapshot {
	s := Snapshot{Nodes: []*corev1.Node{node}}
	for _, c := range f.classes {
		s.Classes = append(s.Classes, c)
	}
	seen := sets.New[*resourceapi.ResourceClaim]()
	for _, p := range f.pools[node.Name] {
		s.Slices = append(s.Slices, p.slices...)
		for _, slice := range p.slices {
			for i := range slice.Spec.Devices {
				for _, c := range f.holders[idOf(slice, i)] {
					if !seen.Has(c) {
						seen.Insert(c)
						s.Claims = append(s.Claims, c)
					}
				}
			}
		}
	}
	return s
}

// Allocate finds devices for claims of one pod, all on the node, and takes none.
// The results are in the order of the claims. The error is ErrNoFit, ErrSearch, or
// says why the scheduler would not even try, for example because a selector fails.
func (f *Fleet) Allocate(ctx context.Context, node *corev1.Node, claims ...*resourceapi.ResourceClaim) ([]resourceapi.AllocationResult, error) {
	var all []*resourceapi.ResourceSlice
	for _, p := range f.pools[node.Name] {
		all = append(all, p.slices...)
	}
	limited := &limit{Context: ctx, left: f.Search}
	allocator, err := structured.NewAllocator(limited, features, f.state, f.classes, all, f.cache)
	if err != nil {
		return nil, err
	}
	results, err := allocator.Allocate(limited, node, claims)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case limited.left <= 0:
		return nil, ErrSearch
	case errors.Is(err, structured.ErrFailedAllocationOnNode):
		return nil, ErrNoFit
	case err != nil:
		return nil, err
	case len(results) == 0 && len(claims) > 0:
		return nil, ErrNoFit
	}
	return results, nil
}

// limit is a context that ends after so many looks at it. The allocator looks
// once for each device that it tries to find, and in the same goroutine.
type limit struct {
	context.Context
	left int
}

func (l *limit) Err() error {
	if l.left--; l.left <= 0 {
		return ErrSearch
	}
	return l.Context.Err()
}

// Place allocates the pod's claims on the first node where they fit, and takes the
// devices. The claims returned are copies with their allocations. Nodes that cannot
// have what is asked for are skipped without asking the allocator.
func (f *Fleet) Place(ctx context.Context, p Pod) (node string, placed []*resourceapi.ResourceClaim, err error) {
	pending, shape := p.Pending(), ""
	for _, c := range pending {
		spec, err := json.Marshal(c.Spec.Devices)
		if err != nil {
			return "", nil, fmt.Errorf("claim %s: %w", Key(c), err)
		}
		shape += string(spec)
	}
	var errs []error
	for _, n := range f.nodes {
		if f.skips.refused[n.Name].Has(shape) || p.Excluded(n) != "" {
			continue
		}
		var results []resourceapi.AllocationResult
		hopeless, err := f.hopeless(ctx, n, pending)
		if hopeless {
			err = ErrNoFit
		} else if err == nil {
			results, err = f.Allocate(ctx, n, pending...)
		}
		if errors.Is(err, ErrSearch) {
			errs = append(errs, fmt.Errorf("node %s: %w", n.Name, err))
		}
		if errors.Is(err, ErrNoFit) || errors.Is(err, ErrSearch) {
			f.skips.refuse(n.Name, shape)
			continue
		}
		if err != nil {
			// One node's error ends the attempt, as it does in the scheduler.
			return "", nil, fmt.Errorf("node %s: %w", n.Name, err)
		}
		for i, c := range pending {
			c = c.DeepCopy()
			c.Status.Allocation = &results[i]
			f.Take(c)
			placed = append(placed, c)
		}
		return n.Name, placed, nil
	}
	return "", nil, errors.Join(append(errs, ErrNoFit)...)
}

// Take makes the devices of an allocated claim be in use.
func (f *Fleet) Take(c *resourceapi.ResourceClaim) {
	taken := sets.New[poolID]()
	defer func() { f.changed(taken, false) }()
	for id, r := range held(c) {
		taken.Insert(poolID{r.Driver, r.Pool})
		f.holders[id] = append(f.holders[id], c)
		if r.ShareID == nil {
			f.state.AllocatedDevices.Insert(id)
			continue
		}
		f.state.AllocatedSharedDeviceIDs.Insert(structured.MakeSharedDeviceID(id, r.ShareID))
		if r.ConsumedCapacity != nil {
			f.state.AggregatedCapacity.Insert(structured.NewDeviceConsumedCapacity(id, r.ConsumedCapacity))
		}
	}
}

// Release gives the devices of a claim that was taken back.
func (f *Fleet) Release(c *resourceapi.ResourceClaim) {
	released := sets.New[poolID]()
	for id, r := range held(c) {
		released.Insert(poolID{r.Driver, r.Pool})
		if f.holders[id] = slices.DeleteFunc(f.holders[id], func(h *resourceapi.ResourceClaim) bool { return h == c }); len(f.holders[id]) == 0 {
			delete(f.holders, id)
		}
		if r.ShareID == nil {
			f.state.AllocatedDevices.Delete(id)
			continue
		}
		f.state.AllocatedSharedDeviceIDs.Delete(structured.MakeSharedDeviceID(id, r.ShareID))
		if r.ConsumedCapacity != nil {
			f.state.AggregatedCapacity.Remove(structured.NewDeviceConsumedCapacity(id, r.ConsumedCapacity))
		}
	}
	f.changed(released, true)
}

// held are the devices that a claim has in use. Admin access uses none.
func held(c *resourceapi.ResourceClaim) func(func(structured.DeviceID, *resourceapi.DeviceRequestAllocationResult) bool) {
	return func(yield func(structured.DeviceID, *resourceapi.DeviceRequestAllocationResult) bool) {
		if c.Status.Allocation == nil {
			return
		}
		for i := range c.Status.Allocation.Devices.Results {
			r := &c.Status.Allocation.Devices.Results[i]
			if r.AdminAccess != nil && *r.AdminAccess {
				continue
			}
			if !yield(structured.MakeDeviceID(r.Driver, r.Pool, r.Device), r) {
				return
			}
		}
	}
}

// Key is how a claim is named: namespace/name.
func Key(o metav1.Object) string {
	if o.GetNamespace() == "" {
		return o.GetName()
	}
	return o.GetNamespace() + "/" + o.GetName()
}

func idOf(s *resourceapi.ResourceSlice, device int) structured.DeviceID {
	return structured.MakeDeviceID(s.Spec.Driver, s.Spec.Pool.Name, s.Spec.Devices[device].Name)
}

// classes is the allocator's lister.
type classes map[string]*resourceapi.DeviceClass

func (c classes) List() ([]*resourceapi.DeviceClass, error) { return nil, nil }

func (c classes) Get(name string) (*resourceapi.DeviceClass, error) {
	if class, ok := c[name]; ok {
		return class, nil
	}
	return nil, apierrors.NewNotFound(resourceapi.Resource("deviceclasses"), name)
}
