// Package pool decides what a node publishes: which devices each GPU offers, and
// the ResourceSlices that describe them. It owns the names, attributes,
// capacities, counters and taints of published devices. It is a pure function of
// its arguments: it never asks the hardware, the API server or the clock.
package pool

import (
	"cmp"
	"slices"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// Device is a device that a GPU offers.
type Device struct {
	gpu.Device
	// UUID is set for a MIG instance that exists before any claim asks for it.
	UUID string `json:"uuid,omitempty"`
}

// Offer is what one GPU offers: its devices in the order in which they are
// published, which is the order in which the scheduler takes them. It is a plain
// value that can be stored as JSON. A nil Offer is that of a GPU that was never published.
type Offer []Device

// Desired is what a GPU would offer if none of its devices were in use.
//
// The foreign instances are those on this GPU that kerf did not make. Where there
// are any, they are offered as they are, if a container can be given them, and
// beside them only what leaves them alone. A board whose toggle needs a reset is
// offered by the mode that it is in, whatever the policy wishes.
func Desired(g gpu.GPU, policy configv1alpha1.Policy, foreign []gpu.Instance) Offer {
	whole, partitions := true, true
	switch {
	case !g.MIG.Capable:
		partitions = false
	case g.ToggleNeedsReset:
		whole, partitions = !g.MIG.Current, g.MIG.Current
	case policy.MIG.Mode == configv1alpha1.MIGOff:
		partitions = false
	case policy.MIG.Mode == configv1alpha1.MIGKeepOn:
		whole = false
	}
	if len(foreign) > 0 {
		whole = false
	}

	offer := Offer{}
	if whole {
		offer = append(offer, Device{Device: gpu.Device{Type: gpu.TypeGPU, GPU: g.UUID}})
	}
	mediaTaken := slices.ContainsFunc(foreign, func(i gpu.Instance) bool {
		p, _ := g.Profile(i.Profile)
		return p.MediaExtensions
	})
	for _, p := range smallestFirst(g.Profiles) {
		// First the ones that exist: to use them takes nothing more away.
		for _, i := range foreign {
			if i.Profile == p.Name && i.Usable() {
				offer = append(offer, Device{Device: migDevice(g, p, i.Placement), UUID: i.Compute[0].UUID})
			}
		}
		if !partitions || p.MediaExtensions && (mediaTaken || !policy.MIG.MediaExtensions) {
			continue
		}
		for _, at := range gpu.LeastBlocking(p, g.Profiles) {
			if _, free := gpu.Fits(at, foreign); free {
				offer = append(offer, Device{Device: migDevice(g, p, at)})
			}
		}
	}
	if whole {
		for r := range policy.TimeSlicing.Replicas {
			offer = append(offer, Device{Device: gpu.Device{Type: gpu.TypeTimeSlice, GPU: g.UUID, Replica: r}})
		}
	}
	return offer
}

// smallestFirst makes a claim for "any instance with so much memory" get the
// smallest that does, because the scheduler takes the first that fits.
func smallestFirst(profiles []gpu.Profile) []gpu.Profile {
	return slices.SortedFunc(slices.Values(profiles), func(a, b gpu.Profile) int {
		return cmp.Or(cmp.Compare(a.MemoryMiB, b.MemoryMiB), cmp.Compare(a.Multiprocessors, b.Multiprocessors), cmp.Compare(a.Name, b.Name))
	})
}

func migDevice(g gpu.GPU, p gpu.Profile, at gpu.Placement) gpu.Device {
	return gpu.Device{Type: gpu.TypeMIG, GPU: g.UUID, Profile: p.Name, Placement: at}
}

// Settle is what the GPU offers now, on the way from the previous offer to the
// desired one, and whether it is still on that way. inUse are the GPU's devices
// that a live allocation or a record of the node names, in any order.
//
// Devices come and go at once, because the counters of a GPU never change and
// exclude new devices from colliding with used ones, with two exceptions. A
// device in use stays: the scheduler counts only what is published, and would
// sell its slices again. And while a replica is in use no further replicas come,
// which would shrink its share of the time and the memory.
func Settle(previous, desired Offer, inUse []gpu.Device) (Offer, bool) {
	shared := previous != nil && slices.ContainsFunc(inUse, func(d gpu.Device) bool { return d.Type == gpu.TypeTimeSlice })
	settled := slices.DeleteFunc(slices.Clone(desired), func(d Device) bool {
		return shared && d.Type == gpu.TypeTimeSlice && previous.find(d.Device) < 0
	})
	pending := len(settled) < len(desired)
	for _, d := range slices.SortedFunc(slices.Values(inUse), compare) {
		if settled.find(d) >= 0 {
			continue
		}
		kept := Device{Device: d}
		if i := previous.find(d); i >= 0 {
			kept = previous[i]
		}
		settled, pending = append(settled, kept), true
	}
	return settled, pending
}

func (o Offer) find(d gpu.Device) int {
	return slices.IndexFunc(o, func(e Device) bool { return e.Device == d })
}

func (o Offer) replicas() int {
	n := 0
	for _, d := range o {
		if d.Type == gpu.TypeTimeSlice {
			n++
		}
	}
	return n
}

// compare is a total order, so that devices kept publish the same slice again
// however they were listed. The whole GPU comes first, as everywhere.
func compare(a, b gpu.Device) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Profile, b.Profile),
		cmp.Compare(a.Placement.Start, b.Placement.Start), cmp.Compare(a.Placement.Size, b.Placement.Size), cmp.Compare(a.Replica, b.Replica))
}
