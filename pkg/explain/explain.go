// Package explain says why claims do not fit on the nodes of a fleet, and what
// would make them fit. It owns the words and the what-if questions behind them:
// every change that it proposes has been tried with the scheduler's allocator. It
// never reads a cluster and never changes one.
package explain

import (
	"context"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/fleet"
)

// Kind is what a cause is.
type Kind string

// The kinds of causes.
const (
	// NodeExcluded: the pod may not run on the node.
	NodeExcluded Kind = "NodeExcluded"
	// NoDevices: no slice is for the node.
	NoDevices Kind = "NoDevices"
	// PoolIncomplete: slices of the pool's newest generation are missing.
	PoolIncomplete Kind = "PoolIncomplete"
	// PoolInvalid: the slices of the pool contradict one another.
	PoolInvalid Kind = "PoolInvalid"
	// ClassMissing: there is no device class of that name.
	ClassMissing Kind = "ClassMissing"
	// SelectorError: an expression fails on a device, which ends the whole attempt.
	SelectorError Kind = "SelectorError"
	// NoMatch: a selector, of the class or of the request, leaves too few devices.
	NoMatch Kind = "NoMatch"
	// Tainted: devices have taints that the request does not tolerate.
	Tainted Kind = "Tainted"
	// InUse: devices are in use, or the counters that they need are.
	InUse Kind = "InUse"
	// Fragmented: as InUse, while a GPU has enough free memory slices in the wrong places.
	Fragmented Kind = "Fragmented"
	// Constraint: the devices that are left do not satisfy a constraint of the claim.
	Constraint Kind = "Constraint"
	// Count: so many devices are not to be had, but fewer are.
	Count Kind = "Count"
	// Capacity: no device has the capacity that is asked for left.
	Capacity Kind = "Capacity"
	// Together: each request would fit alone.
	Together Kind = "Together"
	// SearchTooLong: the allocator tries so many combinations that the scheduler gives up.
	SearchTooLong Kind = "SearchTooLong"
	// Other: what the allocator says.
	Other Kind = "Other"
)

// Report is whether and where claims fit, or why they do not.
type Report struct {
	// Claims are those that are allocated together, as namespace/name.
	Claims []string `json:"claims"`
	// Allocated is true if all of them are allocated already. Nodes is empty then.
	Allocated bool `json:"allocated,omitempty"`
	// Fits is false as well if a selector fails on any of the nodes: that ends the
	// scheduler's attempt, whatever other nodes have.
	Fits bool `json:"fits"`
	// Devices are those that the claims have, or would get on the first node where they fit.
	Devices []Device `json:"devices,omitempty"`
	Nodes   []Node   `json:"nodes,omitempty"`
	// Cures are changes after which the claims fit, the cheapest first, each tried.
	Cures []Cure `json:"cures,omitempty"`
	// Hints are what is no cure but worth knowing.
	Hints []string `json:"hints,omitempty"`
}

// Device is a device that a claim has or would get.
type Device struct {
	Claim   string `json:"claim"`
	Request string `json:"request"`
	Node    string `json:"node,omitempty"`
	Device  string `json:"device"`
}

// Node is what one node says to the claims.
type Node struct {
	Name string `json:"name"`
	Fits bool   `json:"fits"`
	// Why is one line, empty if it fits.
	Why string `json:"why,omitempty"`
	// Causes: each would be enough to refuse the claims, and without any of them
	// they would fit, unless it has a Kind that cannot be undone from here.
	Causes []Cause `json:"causes,omitempty"`
	// Requests are how many devices are left to each request that does not fit.
	Requests []Request `json:"requests,omitempty"`

	devices []Device
	cures   []Cure
	slow    bool
}

// Cause is something that keeps claims from a node.
type Cause struct {
	Kind Kind `json:"kind"`
	// Claim and Request are those that it concerns. A request with alternatives is request/alternative.
	Claim   string `json:"claim,omitempty"`
	Request string `json:"request,omitempty"`
	// Subject is what is to blame: a class, an expression, a taint, an attribute, a pool.
	Subject string `json:"subject,omitempty"`
	// Joint is true if it is one of several that have to be undone together.
	Joint bool   `json:"joint,omitempty"`
	Text  string `json:"text"`
	// GPUs are those whose devices are in use, for InUse and Fragmented.
	GPUs []GPU `json:"gpus,omitempty"`
}

// Cure is a set of changes after which the claims fit on a node, most often one.
type Cure struct {
	Node    string   `json:"node"`
	Changes []Change `json:"changes"`
	// Devices are those that the claims would get.
	Devices []Device `json:"devices"`
}

// Options tune Explain.
type Options struct {
	// Progress is told, from several goroutines one at a time, how many nodes are done.
	Progress func(done, total int)
}

// Explain examines the pod's claims on every node.
func Explain(ctx context.Context, f *fleet.Fleet, pod fleet.Pod, o Options) (*Report, error) {
	r := &Report{}
	for _, c := range pod.Claims {
		r.Claims = append(r.Claims, fleet.Key(c))
		if c.Status.Allocation != nil {
			r.Devices = append(r.Devices, devices("", []*resourceapi.ResourceClaim{c}, []resourceapi.AllocationResult{*c.Status.Allocation})...)
		}
	}
	if len(pod.Pending()) == 0 {
		r.Fits, r.Allocated = true, true
		return r, nil
	}
	r.Nodes = make([]Node, len(f.Nodes()))
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	var mutex sync.Mutex
	done := 0
	for i, n := range f.Nodes() {
		e := newExaminer(f, n, pod)
		work.Go(func() (err error) {
			if r.Nodes[i], err = e.examine(ctx); err != nil {
				return err
			}
			mutex.Lock()
			defer mutex.Unlock()
			if done++; o.Progress != nil {
				o.Progress(done, len(r.Nodes))
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return nil, err
	}
	return r, r.conclude(ctx, f, pod)
}

// conclude draws the nodes together.
func (r *Report) conclude(ctx context.Context, f *fleet.Fleet, pod fleet.Pod) error {
	first := slices.IndexFunc(r.Nodes, func(n Node) bool { return n.Fits })
	var failing []*examiner
	for i, n := range r.Nodes {
		if slices.ContainsFunc(n.Causes, func(c Cause) bool { return c.Kind == SelectorError }) {
			failing = append(failing, newExaminer(f, f.Nodes()[i], pod))
		}
	}
	r.Fits = first >= 0 && failing == nil
	if r.Fits {
		r.Devices = append(r.Devices, r.Nodes[first].devices...)
		return nil
	}
	if first >= 0 {
		r.Hints = append(r.Hints, "They would fit on node "+r.Nodes[first].Name+", but an expression that fails on any device ends the scheduler's attempt.")
	}
	for _, n := range r.Nodes {
		for _, c := range n.cures {
			if slices.ContainsFunc(r.Cures, func(o Cure) bool { return o.text() == c.text() }) {
				continue
			}
			ends, err := c.endsAttempt(ctx, failing)
			if err != nil {
				return err
			}
			if !ends {
				r.Cures = append(r.Cures, c)
			}
		}
	}
	slices.SortStableFunc(r.Cures, func(a, b Cure) int { return a.cost() - b.cost() })
	if i := slices.IndexFunc(r.Nodes, func(n Node) bool { return n.slow }); i >= 0 {
		hint, err := newExaminer(f, f.Nodes()[i], pod).slowHint(ctx)
		if err != nil {
			return err
		}
		r.Hints = append(r.Hints, hint...)
	}
	return nil
}

// endsAttempt reports whether an expression fails on a node also after the cure,
// which then is none, whatever the node has that it was found on.
func (c Cure) endsAttempt(ctx context.Context, failing []*examiner) (bool, error) {
	for _, e := range failing {
		_, no, err := e.allocate(ctx, e.world.changed(c.Changes...), whatIfSearch)
		if err != nil || no != nil && !isRefusal(no) {
			return true, err
		}
	}
	return false, nil
}

// devices lists allocations.
func devices(node string, claims []*resourceapi.ResourceClaim, results []resourceapi.AllocationResult) []Device {
	var all []Device
	for i, result := range results {
		for _, d := range result.Devices.Results {
			all = append(all, Device{Claim: fleet.Key(claims[i]), Request: d.Request, Node: node, Device: d.Device})
		}
	}
	return all
}
