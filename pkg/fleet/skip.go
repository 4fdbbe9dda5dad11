package fleet

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/sets"
)

// skips knows on which nodes it is no use to ask the allocator. It never changes a
// result: what has not fitted does not fit when more is in use, and a request for
// more devices than are free does not fit either.
type skips struct {
	// refused are the shapes of claims that did not fit on a node, and will not
	// before one of its devices is released.
	refused map[string]sets.Set[string]
	// views are the pools of the nodes.
	views map[string][]*Pool
	// wanted are the devices of a node that a request takes, by both. It is nil where
	// an expression fails: what then happens is for the allocator to say.
	wanted map[wish][]offered
}

type wish struct{ node, request string }

type offered struct {
	Device
	pool *Pool
}

func newSkips() skips {
	return skips{refused: map[string]sets.Set[string]{}, views: map[string][]*Pool{}, wanted: map[wish][]offered{}}
}

func (s skips) refuse(node, shape string) {
	if s.refused[node] == nil {
		s.refused[node] = sets.New[string]()
	}
	s.refused[node].Insert(shape)
}

// changed forgets what is no longer true of the pools.
func (f *Fleet) changed(pools sets.Set[poolID], released bool) {
	for _, n := range f.nodes {
		touched := false
		for _, p := range f.pools[n.Name] {
			touched = touched || pools.Has(p.id)
		}
		if !touched {
			continue
		}
		for _, p := range f.skips.views[n.Name] {
			p.now = nil
		}
		if released {
			delete(f.skips.refused, n.Name)
		}
	}
}

// hopeless reports that a request wants more devices than are free for it.
func (f *Fleet) hopeless(ctx context.Context, node *corev1.Node, claims []*resourceapi.ResourceClaim) (bool, error) {
	best := map[[2]any]bool{} // whether any alternative of a request has hope
	for _, r := range Requests(claims) {
		devices, known, err := f.offers(ctx, node, r)
		if err != nil || !known {
			return false, err
		}
		free := int64(0)
		for _, d := range devices {
			if free == r.Count {
				break
			}
			if !d.pool.Taken(d.Device, r.AdminAccess) {
				free++
			}
		}
		key := [2]any{r.Claim, r.Index}
		best[key] = best[key] || r.All || free >= r.Count
	}
	for _, hope := range best {
		if !hope {
			return true, nil
		}
	}
	return false, nil
}

// offers are the devices of a node that a request takes, whoever uses them. They
// are not known if an expression fails, or the class is missing.
func (f *Fleet) offers(ctx context.Context, node *corev1.Node, r Request) (devices []offered, known bool, err error) {
	selectors, err := json.Marshal([]any{r.Class, r.Selectors, r.Tolerations})
	if err != nil {
		return nil, false, fmt.Errorf("%s of claim %s: %w", r.Name, Key(r.Claim), err)
	}
	key := wish{node.Name, string(selectors)}
	if devices, ok := f.skips.wanted[key]; ok {
		return devices, devices != nil, nil
	}
	f.skips.wanted[key] = nil
	if _, ok := f.Class(r.Class); !ok {
		return nil, false, nil
	}
	pools, ok := f.skips.views[node.Name]
	if !ok {
		if pools, err = f.Pools(node); err != nil {
			return nil, false, err
		}
		f.skips.views[node.Name] = pools
	}
	devices = []offered{}
	for _, p := range pools {
		if !p.Usable() {
			continue
		}
		for _, d := range p.Devices {
			matches, err := f.Selects(ctx, r, d)
			if ctx.Err() != nil {
				delete(f.skips.wanted, key)
				return nil, false, context.Cause(ctx)
			}
			if err != nil {
				return nil, false, nil //nolint:nilerr // For the allocator to say.
			}
			if matches && len(NotTolerated(d, r.Tolerations)) == 0 {
				devices = append(devices, offered{d, p})
			}
		}
	}
	f.skips.wanted[key] = devices
	return devices, true, nil
}
