package simulate

import (
	"fmt"
	"slices"

	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/pool"
)

// Order is an order in which the placements of a profile are published, and so taken.
type Order string

// The orders.
const (
	// LeastBlocking is kerf's own.
	LeastBlocking Order = "least-blocking"
	// Ascending and Descending are by the first memory slice.
	Ascending  Order = "ascending"
	Descending Order = "descending"
)

// ParseOrder reads an order.
func ParseOrder(text string) (Order, error) {
	all := []Order{LeastBlocking, Ascending, Descending}
	if !slices.Contains(all, Order(text)) {
		return "", fmt.Errorf("order %q is none of %v", text, all)
	}
	return Order(text), nil
}

// sorted are the slices with the placements in that order.
func (o Order) sorted(all []*resourceapi.ResourceSlice) []*resourceapi.ResourceSlice {
	if o == LeastBlocking {
		return all
	}
	sorted := make([]*resourceapi.ResourceSlice, len(all))
	for i, s := range all {
		s = s.DeepCopy()
		devices := s.Spec.Devices
		for from := 0; from < len(devices); {
			to := from + 1
			for to < len(devices) && sameProfile(&devices[from], &devices[to]) {
				to++
			}
			slices.SortStableFunc(devices[from:to], func(a, b resourceapi.Device) int {
				_, x, _ := pool.Covers(&a)
				_, y, _ := pool.Covers(&b)
				if o == Descending {
					x, y = y, x
				}
				return x.Start - y.Start
			})
			from = to
		}
		sorted[i] = s
	}
	return sorted
}

func sameProfile(a, b *resourceapi.Device) bool {
	p, on, ok := profileOf(a)
	q, other, also := profileOf(b)
	return ok && also && p == q && on == other
}

func profileOf(d *resourceapi.Device) (profile, on string, ok bool) {
	on, _, ok = pool.Covers(d)
	for _, name := range []resourceapi.QualifiedName{"profile", pool.DefaultDriver + "/profile"} {
		if a := d.Attributes[name]; ok && a.StringValue != nil {
			return *a.StringValue, on, true
		}
	}
	return "", "", false
}
