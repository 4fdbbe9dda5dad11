package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/structured"
)

// terms are what keeps a pod from nodes, whatever devices they have.
type terms struct {
	// asked are the slots of nodes that were asked for, out those that the pod cannot run on.
	asked, out bitset
}

// emptiness is the answer of FitsEmpty, as long as the topology is that.
type emptiness struct {
	topology int
	fits     bool
	err      error
}

// moved forgets what is known of a node but for its devices.
func (m *memory) moved(slot int) {
	for _, t := range m.terms {
		t.asked.clear(slot)
		t.out.clear(slot)
	}
}

// released forgets what did not fit on a node.
func (m *memory) released(slot int) {
	for _, sh := range m.shapes {
		sh.refused.clear(slot)
	}
}

func (f *Fleet) termsOf(p Pod) (*terms, error) {
	key, err := json.Marshal(p.terms())
	if err != nil {
		return nil, fmt.Errorf("what restricts the pod's nodes: %w", err)
	}
	t := f.memory.terms[string(key)]
	if t == nil {
		if len(f.memory.terms) > maxShapes {
			f.forget()
		}
		t = &terms{}
		f.memory.terms[string(key)] = t
	}
	return t, nil
}

// excludes reports whether the pod, whose terms they are, cannot run on the node.
func (t *terms) excludes(p Pod, n *node) bool {
	if !t.asked.has(n.slot) {
		t.asked.set(n.slot)
		if p.Excluded(n.Node) != "" {
			t.out.set(n.slot)
		}
	}
	return t.out.has(n.slot)
}

// Place allocates the pod's claims on the first node where they fit, and takes the
// devices. The claims returned are copies with their allocations. Nodes that cannot
// have what is asked for are skipped without asking the allocator.
func (f *Fleet) Place(ctx context.Context, p Pod) (node string, placed []*resourceapi.ResourceClaim, err error) {
	return f.place(ctx, p, slices.Values(f.all))
}

// PlaceOn is Place on the nodes given, in their order. Those that the fleet does not
// have are passed over, and of those that it has it takes its own version.
func (f *Fleet) PlaceOn(ctx context.Context, p Pod, nodes []*corev1.Node) (node string, placed []*resourceapi.ResourceClaim, err error) {
	return f.place(ctx, p, f.own(nodes))
}

func (f *Fleet) own(nodes []*corev1.Node) iter.Seq[*node] {
	return func(yield func(*node) bool) {
		for _, n := range nodes {
			if own := f.byName[n.Name]; own != nil && !yield(own) {
				return
			}
		}
	}
}

func (f *Fleet) place(ctx context.Context, p Pod, nodes iter.Seq[*node]) (string, []*resourceapi.ResourceClaim, error) {
	pending := p.Pending()
	sh, err := f.shapeOf(pending)
	if err != nil {
		return "", nil, err
	}
	t, err := f.termsOf(p)
	if err != nil {
		return "", nil, err
	}
	if f.live.within(sh.refused, t.out) {
		return "", nil, ErrNoFit
	}
	var errs []error
	for n := range nodes {
		if sh.refused.has(n.slot) || t.excludes(p, n) {
			continue
		}
		results, err := f.fit(ctx, n, sh, pending, nil)
		if errors.Is(err, ErrSearch) {
			errs = append(errs, fmt.Errorf("node %s: %w", n.Name, err))
		}
		if refusal(err) {
			sh.refused.set(n.slot)
			continue
		}
		if err != nil {
			// One node's error ends the attempt, as it does in the scheduler.
			return "", nil, fmt.Errorf("node %s: %w", n.Name, err)
		}
		placed := make([]*resourceapi.ResourceClaim, len(pending))
		for i, c := range pending {
			placed[i] = c.DeepCopy()
			placed[i].Status.Allocation = &results[i]
			f.Take(placed[i])
		}
		return n.Name, placed, nil
	}
	return "", nil, errors.Join(append(errs, ErrNoFit)...)
}

func refusal(err error) bool { return errors.Is(err, ErrNoFit) || errors.Is(err, ErrSearch) }

// fit is Allocate when some claims are gone. It asks the allocator only if nothing is
// known of the state, and for what can decide alone. That never changes a result: a
// request for more devices than are free does not fit, the allocator passes over
// devices that a request does not take, and what does not fit on a node does not fit on
// another of its kind that is in the same state.
func (f *Fleet) fit(ctx context.Context, n *node, sh *shape, claims, without []*resourceapi.ResourceClaim) ([]resourceapi.AllocationResult, error) {
	inUse := func() structured.AllocatedState {
		if len(without) > 0 {
			return n.allocatedWithout(without)
		}
		return n.allocated(f.state)
	}
	if sh.identity {
		if n.slim() {
			return nil, ErrDropped
		}
		return f.allocate(ctx, n, n.slices(), inUse(), claims)
	}
	s, err := f.stateOf(n, without)
	if err != nil {
		return nil, err
	}
	return f.fitIn(ctx, n, s, sh, claims, inUse)
}

// fitIn is fit in a state of the node's kind.
func (f *Fleet) fitIn(ctx context.Context, n *node, s *state, sh *shape, claims []*resourceapi.ResourceClaim, inUse func() structured.AllocatedState) ([]resourceapi.AllocationResult, error) {
	if err := s.asked[sh]; err != nil {
		return nil, err
	}
	needed, hope, known, err := f.needed(ctx, n.kind, s, sh)
	if err != nil {
		return nil, err
	}
	if known && !hope {
		return nil, ErrNoFit
	}
	all := n.slices
	if known && n.kind.plain {
		all = func() []*resourceapi.ResourceSlice { return n.slicesWith(needed) }
	}
	results, err := f.allocate(ctx, n, all(), inUse(), claims)
	if err == nil || refusal(err) {
		s.asked[sh] = err
	}
	return results, err
}

// FitsEmpty reports whether the pod would fit on one of the nodes if nobody used
// anything there. It asks the allocator for one node of each kind alone.
func (f *Fleet) FitsEmpty(ctx context.Context, p Pod) (bool, error) {
	pending := p.Pending()
	sh, err := f.shapeOf(pending)
	if err != nil {
		return false, err
	}
	t, err := f.termsOf(p)
	if err != nil {
		return false, err
	}
	if known, ok := sh.empty[t]; ok && known.topology == f.topology {
		return known.fits, known.err
	}
	fits, err := f.fitsEmpty(ctx, p, sh, t, pending)
	if err == nil || refusal(err) {
		sh.empty[t] = emptiness{f.topology, fits, err}
	}
	return fits, err
}

func (f *Fleet) fitsEmpty(ctx context.Context, p Pod, sh *shape, t *terms, pending []*resourceapi.ResourceClaim) (bool, error) {
	var searched error
	asked := map[*kind]bool{}
	for _, n := range f.all {
		k, err := f.kindOf(n)
		if err != nil {
			return false, err
		}
		if asked[k] && !sh.identity || t.excludes(p, n) {
			continue
		}
		asked[k] = true
		if sh.identity && n.slim() {
			return false, fmt.Errorf("node %s: %w", n.Name, ErrDropped)
		}
		if sh.identity {
			_, err = f.allocate(ctx, n, n.slices(), newAllocated(), pending)
		} else {
			_, err = f.fitIn(ctx, n, k.stateWith(nil, false), sh, pending, newAllocated)
		}
		switch {
		case err == nil:
		case errors.Is(err, ErrSearch):
			searched = fmt.Errorf("node %s: %w", n.Name, err)
		case !errors.Is(err, ErrNoFit):
			return false, fmt.Errorf("node %s: %w", n.Name, err)
		}
		if err == nil {
			return true, nil
		}
	}
	return false, searched
}
