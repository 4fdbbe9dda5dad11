package fleet

import (
	"context"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/cel"
)

// Request is a request of a claim, or one of the alternatives of a request.
type Request struct {
	Claim *resourceapi.ResourceClaim
	// Index is that of the request in the claim, Alternative that of the
	// subrequest in the request, or -1.
	Index, Alternative int
	// Name is that of the request, or request/subrequest.
	Name, Class string
	// Count is how many devices are asked for. With All, every device that matches.
	Count       int64
	All         bool
	AdminAccess bool
	Selectors   []resourceapi.DeviceSelector
	Tolerations []resourceapi.DeviceToleration
	Capacity    *resourceapi.CapacityRequirements
}

// Requests are the requests of the claims, alternatives one by one.
func Requests(claims []*resourceapi.ResourceClaim) []Request {
	var all []Request
	for _, c := range claims {
		for i := range c.Spec.Devices.Requests {
			r := &c.Spec.Devices.Requests[i]
			if e := r.Exactly; e != nil {
				all = append(all, Request{c, i, -1, r.Name, e.DeviceClassName, e.Count, e.AllocationMode == resourceapi.DeviceAllocationModeAll,
					isTrue(e.AdminAccess), e.Selectors, e.Tolerations, e.Capacity})
			}
			for n, s := range r.FirstAvailable {
				all = append(all, Request{c, i, n, r.Name + "/" + s.Name, s.DeviceClassName, s.Count, s.AllocationMode == resourceapi.DeviceAllocationModeAll,
					false, s.Selectors, s.Tolerations, s.Capacity})
			}
		}
	}
	return all
}

// Selects reports whether the class and the selectors of a request take the device. A class that is missing selects nothing.
func (f *Fleet) Selects(ctx context.Context, r Request, d Device) (bool, error) {
	if _, ok := f.Class(r.Class); !ok {
		return false, nil
	}
	return f.selects(ctx, r.Class, r.Selectors, d.cel())
}

// selects is Selects, but that a class that is missing is an error.
func (f *Fleet) selects(ctx context.Context, class string, own []resourceapi.DeviceSelector, d cel.Device) (bool, error) {
	c, err := f.classes.Get(class)
	if err != nil {
		return false, err
	}
	for _, selectors := range [][]resourceapi.DeviceSelector{c.Spec.Selectors, own} {
		for _, s := range selectors {
			if matches, err := f.matches(ctx, s, d); !matches || err != nil {
				return false, err
			}
		}
	}
	return true, nil
}
