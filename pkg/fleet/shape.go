package fleet

import (
	"encoding/json"
	"fmt"

	resourceapi "k8s.io/api/resource/v1"
)

// maxShapes bounds the shapes, requests and pod specs that are known. When there are
// more, everything known of them is forgotten.
const maxShapes = 1 << 11

// shape is what claims ask together, but for their names.
type shape struct {
	// requests have their alternatives, which is one for most.
	requests [][]alternative
	// identity is whether an expression may read identities.
	identity bool
	// refused are the nodes where the claims did not fit, and will not before one of
	// their devices is released.
	refused bitset
	// empty is whether they fit on empty nodes, for pods that go there.
	empty map[*terms]emptiness
}

type alternative struct {
	*ask
	count      int64
	all, admin bool
}

// ask is which devices a request takes.
type ask struct {
	class       string
	selectors   []resourceapi.DeviceSelector
	tolerations []resourceapi.DeviceToleration
	models      map[*model]verdict
}

type verdict struct{ matches, fails bool }

// shapeOf finds the shape of claims.
func (f *Fleet) shapeOf(claims []*resourceapi.ResourceClaim) (*shape, error) {
	var key []byte
	for _, c := range claims {
		spec, err := json.Marshal(c.Spec.Devices)
		if err != nil {
			return nil, fmt.Errorf("claim %s: %w", Key(c), err)
		}
		key = append(key, spec...)
	}
	if sh, ok := f.memory.shapes[string(key)]; ok {
		return sh, nil
	}
	if len(f.memory.shapes) > maxShapes {
		f.forget()
	}
	sh := &shape{identity: f.readIdentity(claims), empty: map[*terms]emptiness{}}
	at := map[[2]any]int{}
	for _, r := range Requests(claims) {
		selectors, err := json.Marshal([]any{r.Class, r.Selectors, r.Tolerations})
		if err != nil {
			return nil, fmt.Errorf("%s of claim %s: %w", r.Name, Key(r.Claim), err)
		}
		a := f.memory.asks[string(selectors)]
		if a == nil {
			a = &ask{r.Class, r.Selectors, r.Tolerations, map[*model]verdict{}}
			f.memory.asks[string(selectors)] = a
		}
		request := [2]any{r.Claim, r.Index}
		i, ok := at[request]
		if !ok {
			i = len(sh.requests)
			at[request] = i
			sh.requests = append(sh.requests, nil)
		}
		sh.requests[i] = append(sh.requests[i], alternative{a, r.Count, r.All, r.AdminAccess})
	}
	f.memory.shapes[string(key)] = sh
	return sh, nil
}

// readIdentity reports whether an expression of the claims, or of their classes, may read identities.
func (f *Fleet) readIdentity(claims []*resourceapi.ResourceClaim) bool {
	for _, r := range Requests(claims) {
		selectors := r.Selectors
		if class, ok := f.Class(r.Class); ok {
			selectors = append(class.Spec.Selectors[:len(class.Spec.Selectors):len(class.Spec.Selectors)], selectors...)
		}
		for _, s := range selectors {
			if s.CEL != nil && readsIdentity(s.CEL.Expression) {
				return true
			}
		}
	}
	return false
}

// forget drops all that is known of shapes, requests, pod specs and states.
func (f *Fleet) forget() {
	f.memory = newMemory()
	for _, n := range f.byName {
		n.kind, n.offers, n.state = nil, nil, nil
	}
}
