// Package fleet allocates claims on the nodes of a cluster, as the scheduler
// would: with the scheduler's own allocator, in this process, from
// ResourceSlices, claims, device classes and taint rules that somebody has read
// or made up. It owns what-if questions: does it fit, on which node, after whom.
// It never writes to an API server, and it never explains: that is pkg/explain.
//
// A Fleet remembers what it has found out, by kinds of nodes, so that thousands of
// alike nodes cost little more than one, and Refresh keeps it from one snapshot to the
// next. An Interner makes the objects of so many nodes small.
package fleet

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/dynamic-resource-allocation/structured"
)

var (
	// ErrNoFit means that the claims do not fit on the node, or on any.
	ErrNoFit = errors.New("the claims do not fit")
	// ErrSearch means that the allocator tried for so long that the scheduler
	// would have given up.
	ErrSearch = errors.New("the search of the allocator takes too long")
	// ErrDropped means that it cannot be known whether the claims fit, because an
	// expression may read an attribute that an Interner has replaced.
	ErrDropped = errors.New("a selector may read an attribute that names a device, which is not kept")
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
	// Set it before the first question: that a search was given up is remembered.
	Search int

	nodes []*corev1.Node
	all   []*node // in the same order
	// byName are the nodes, live their slots, and free are slots that were given back.
	byName map[string]*node
	live   bitset
	free   []int
	// classes and rules are those of the last refresh, round is its number, and topology
	// counts the changes of nodes and slices.
	classes         classes
	rules           []*resourceapi.DeviceTaintRule
	round, topology int
	pools           map[poolID]*poolState
	cache           *cel.Cache
	// state is what is in use, and taken are the claims that have it, with the last
	// refresh that had them.
	state  structured.AllocatedState
	taken  map[*resourceapi.ResourceClaim]int
	byUID  map[types.UID]*resourceapi.ResourceClaim
	memory memory
}

// New makes a fleet of a snapshot.
func New(s Snapshot) *Fleet {
	f := &Fleet{Search: DefaultSearch, cache: cel.NewCache(256, cel.Features{EnableConsumableCapacity: true})}
	f.Refresh(s)
	return f
}

// With makes a fleet of another snapshot, which shares what this one knows of
// expressions, and its bound on searches.
func (f *Fleet) With(s Snapshot) *Fleet {
	other := &Fleet{Search: f.Search, cache: f.cache}
	other.Refresh(s)
	return other
}

// Nodes are the nodes, in the order in which they are tried.
func (f *Fleet) Nodes() []*corev1.Node { return f.nodes }

// Node returns the node of that name.
func (f *Fleet) Node(name string) (*corev1.Node, bool) {
	n, ok := f.byName[name]
	if !ok {
		return nil, false
	}
	return n.Node, true
}

// Only is the snapshot of one node alone: its pools, and the claims that hold
// something of them. It is what a what-if question about the node changes.
func (f *Fleet) Only(node *corev1.Node) Snapshot {
	s := Snapshot{Nodes: []*corev1.Node{node}}
	for _, c := range f.classes {
		s.Classes = append(s.Classes, c)
	}
	n, ok := f.byName[node.Name]
	if !ok {
		return s
	}
	for _, p := range n.pools {
		s.Slices = append(s.Slices, p.slices...)
	}
	s.Claims = n.holders()
	return s
}

// Allocate finds devices for claims of one pod, all on the node, and takes none.
// The results are in the order of the claims. The error is ErrNoFit, ErrSearch,
// ErrDropped, or says why the scheduler would not even try, for example because a
// selector fails.
func (f *Fleet) Allocate(ctx context.Context, node *corev1.Node, claims ...*resourceapi.ResourceClaim) ([]resourceapi.AllocationResult, error) {
	n := f.byName[node.Name]
	if n == nil {
		n = unknown(node)
	}
	if n.slim() && f.readIdentity(claims) {
		return nil, ErrDropped
	}
	return f.allocate(ctx, n, n.slices(), n.allocated(f.state), claims)
}

// allocate asks the allocator, when there are those slices and that state is in use.
func (f *Fleet) allocate(ctx context.Context, n *node, all []*resourceapi.ResourceSlice, inUse structured.AllocatedState, claims []*resourceapi.ResourceClaim) ([]resourceapi.AllocationResult, error) {
	limited := &limit{Context: ctx, left: f.Search}
	allocator, err := structured.NewAllocator(limited, features, inUse, f.classes, all, f.cache)
	if err != nil {
		return nil, err
	}
	results, err := allocator.Allocate(limited, n.Node, claims)
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

// Key is how a claim is named: namespace/name.
func Key(o metav1.Object) string {
	if o.GetNamespace() == "" {
		return o.GetName()
	}
	return o.GetNamespace() + "/" + o.GetName()
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
