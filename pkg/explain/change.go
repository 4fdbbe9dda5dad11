package explain

import (
	"fmt"
	"slices"
	"strings"

	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/fleet"
)

// ChangeKind is what a change does.
type ChangeKind string

// The kinds of changes, from cheap to dear.
const (
	// Reorder asks for the same, the scarcest first.
	Reorder ChangeKind = "Reorder"
	// GuardSelector makes an expression look first whether a device is of the kind that it is for.
	GuardSelector ChangeKind = "GuardSelector"
	// Evict takes other claims away.
	Evict ChangeKind = "Evict"
	// DropSelector leaves a selector of a request out.
	DropSelector ChangeKind = "DropSelector"
	// DropConstraint leaves a constraint of a claim out.
	DropConstraint ChangeKind = "DropConstraint"
	// Tolerate adds a toleration to a request.
	Tolerate ChangeKind = "Tolerate"
	// LowerCount asks for fewer devices.
	LowerCount ChangeKind = "LowerCount"

	// completePool is what the driver will do some time, and no change to propose.
	completePool ChangeKind = "completePool"
	// dropCapacity tells whether a capacity is to blame.
	dropCapacity ChangeKind = "dropCapacity"
)

// Change is one change, in words and in parts.
type Change struct {
	Kind ChangeKind `json:"kind"`
	Text string     `json:"text"`
	// Claim and Request are what is changed.
	Claim   string `json:"claim,omitempty"`
	Request string `json:"request,omitempty"`
	// Class is the class whose selector is guarded, if it is not a request's.
	Class string `json:"class,omitempty"`
	// Index is that of the selector or constraint.
	Index int `json:"index,omitempty"`
	// Expression is the new one of a guarded selector.
	Expression string `json:"expression,omitempty"`
	// Taint is the one to be tolerated.
	Taint *resourceapi.DeviceTaint `json:"taint,omitempty"`
	Count int64                    `json:"count,omitempty"`
	// Evict are the claims that would have to go.
	Evict []string `json:"evict,omitempty"`
	// Order is that of the requests, each as namespace/claim request.
	Order []string `json:"order,omitempty"`

	pool *fleet.Pool
}

func (c Cure) text() string {
	all := make([]string, len(c.Changes))
	for i := range c.Changes {
		all[i] = c.Changes[i].Text
	}
	return strings.Join(all, ", and ")
}

// cost orders cures: what changes nothing for anybody first, then what changes
// least for the claim itself, then by the number of others that suffer.
func (c Cure) cost() int {
	cost := 0
	for _, change := range c.Changes {
		switch change.Kind {
		case Reorder, GuardSelector:
		case Evict:
			cost += 2 + len(change.Evict)
		case LowerCount:
			cost += 4
		default:
			cost += 3
		}
	}
	return cost
}

// world is what a what-if question changes: one node with its claims, and the
// claims to be allocated.
type world struct {
	fleet.Snapshot
	pending []*resourceapi.ResourceClaim
}

// changed is a copy of the world with the changes.
func (w world) changed(changes ...Change) world {
	pending := make([]*resourceapi.ResourceClaim, len(w.pending))
	for i, c := range w.pending {
		pending[i] = c.DeepCopy()
	}
	w.pending = pending
	for _, c := range changes {
		w.apply(c)
	}
	return w
}

func (w *world) apply(change Change) {
	switch change.Kind {
	case Evict:
		w.Claims = slices.DeleteFunc(slices.Clone(w.Claims), func(c *resourceapi.ResourceClaim) bool { return slices.Contains(change.Evict, fleet.Key(c)) })
	case Tolerate:
		w.request(change, func(r *resourceapi.ExactDeviceRequest) {
			r.Tolerations = append(r.Tolerations, resourceapi.DeviceToleration{Key: change.Taint.Key, Value: change.Taint.Value, Operator: resourceapi.DeviceTolerationOpEqual, Effect: change.Taint.Effect})
		})
	case DropSelector:
		w.request(change, func(r *resourceapi.ExactDeviceRequest) {
			r.Selectors[change.Index].CEL = &resourceapi.CELDeviceSelector{Expression: "true"}
		})
	case GuardSelector:
		if change.Class != "" {
			w.class(change)
			return
		}
		w.request(change, func(r *resourceapi.ExactDeviceRequest) {
			r.Selectors[change.Index].CEL = &resourceapi.CELDeviceSelector{Expression: change.Expression}
		})
	case LowerCount:
		w.request(change, func(r *resourceapi.ExactDeviceRequest) { r.Count = change.Count })
	case dropCapacity:
		w.request(change, func(r *resourceapi.ExactDeviceRequest) { r.Capacity = nil })
	case DropConstraint:
		for _, c := range w.pending {
			if fleet.Key(c) == change.Claim {
				// Kept, so that the others have the same index, and about nothing.
				c.Spec.Devices.Constraints[change.Index].Requests = []string{"-"}
			}
		}
	case Reorder:
		w.reorder(change.Order)
	case completePool:
		w.complete(change.pool)
	}
}

// request changes a request, or an alternative of one, as if it were an exact one.
func (w *world) request(change Change, f func(*resourceapi.ExactDeviceRequest)) {
	for _, c := range w.pending {
		if fleet.Key(c) != change.Claim {
			continue
		}
		for i := range c.Spec.Devices.Requests {
			r := &c.Spec.Devices.Requests[i]
			if r.Exactly != nil && r.Name == change.Request {
				f(r.Exactly)
			}
			for n := range r.FirstAvailable {
				s := &r.FirstAvailable[n]
				if r.Name+"/"+s.Name != change.Request {
					continue
				}
				e := resourceapi.ExactDeviceRequest{Selectors: s.Selectors, Tolerations: s.Tolerations, Count: s.Count, Capacity: s.Capacity}
				f(&e)
				s.Selectors, s.Tolerations, s.Count, s.Capacity = e.Selectors, e.Tolerations, e.Count, e.Capacity
			}
		}
	}
}

func (w *world) class(change Change) {
	w.Classes = slices.Clone(w.Classes)
	for i, c := range w.Classes {
		if c.Name == change.Class {
			c = c.DeepCopy()
			c.Spec.Selectors[change.Index].CEL = &resourceapi.CELDeviceSelector{Expression: change.Expression}
			w.Classes[i] = c
		}
	}
}

// reorder sorts the claims and their requests as the order names them.
func (w *world) reorder(order []string) {
	at := func(c *resourceapi.ResourceClaim, request string) int {
		return slices.Index(order, fleet.Key(c)+" "+request)
	}
	for _, c := range w.pending {
		slices.SortStableFunc(c.Spec.Devices.Requests, func(a, b resourceapi.DeviceRequest) int { return at(c, a.Name) - at(c, b.Name) })
	}
	first := func(c *resourceapi.ResourceClaim) int {
		if len(c.Spec.Devices.Requests) == 0 {
			return -1
		}
		return at(c, c.Spec.Devices.Requests[0].Name)
	}
	slices.SortStableFunc(w.pending, func(a, b *resourceapi.ResourceClaim) int { return first(a) - first(b) })
}

// complete lets the slices that the pool has be all of it.
func (w *world) complete(p *fleet.Pool) {
	w.Slices = slices.Clone(w.Slices)
	for i, s := range w.Slices {
		if s.Spec.Driver == p.Driver && s.Spec.Pool.Name == p.Name && s.Spec.Pool.Generation == p.Generation {
			s = s.DeepCopy()
			s.Spec.Pool.ResourceSliceCount = int64(p.Have)
			w.Slices[i] = s
		}
	}
}

func tolerate(r fleet.Request, t resourceapi.DeviceTaint) Change {
	t = resourceapi.DeviceTaint{Key: t.Key, Value: t.Value, Effect: t.Effect}
	return Change{Kind: Tolerate, Claim: fleet.Key(r.Claim), Request: r.Name, Taint: &t, Text: fmt.Sprintf("let %s tolerate %s", where(r), taintText(t))}
}

func taintText(t resourceapi.DeviceTaint) string {
	if t.Value == "" {
		return t.Key + ":" + string(t.Effect)
	}
	return t.Key + "=" + t.Value + ":" + string(t.Effect)
}

// where names a request for people.
func where(r fleet.Request) string { return "request " + r.Name + " of claim " + fleet.Key(r.Claim) }

func evict(claims []*resourceapi.ResourceClaim) Change {
	keys := make([]string, len(claims))
	for i, c := range claims {
		keys[i] = fleet.Key(c)
	}
	noun := "claim "
	if len(keys) > 1 {
		noun = fmt.Sprintf("%d claims ", len(keys))
	}
	return Change{Kind: Evict, Evict: keys, Text: "end " + noun + strings.Join(keys, ", ")}
}
