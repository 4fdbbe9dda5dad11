package simulate

import (
	"context"
	"math/bits"
	"slices"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/structured"

	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/pool"
)

// usage counts memory slices: those in use, and those that are stranded, which
// are free, but no device that the workloads ask for could still cover them. A
// board without MIG counts as one slice.
type usage struct {
	devices        map[structured.DeviceID]place
	gpus           []*board
	total          int
	used, stranded int
	// seen are the workloads whose wishes are known.
	seen map[string]bool
}

type place struct {
	*board
	mask uint64
}

// board is a GPU with its memory slices as bits.
type board struct {
	slices uint64
	// users is how many claims use each slice: replicas share all.
	users [64]int
	// wanted are the places of the devices that a workload asks for.
	wanted         []uint64
	used, stranded int
}

func newUsage(all []*resourceapi.ResourceSlice) *usage {
	type key struct{ driver, pool, set string }
	u := &usage{devices: map[structured.DeviceID]place{}, seen: map[string]bool{}}
	boards := map[key]*board{}
	for _, s := range all {
		for i := range s.Spec.Devices {
			d := &s.Spec.Devices[i]
			name, at, ok := pool.Covers(d)
			if !ok || at.Start+at.Size > 64 {
				continue
			}
			k := key{s.Spec.Driver, s.Spec.Pool.Name, name}
			b := boards[k]
			if b == nil {
				b = &board{}
				boards[k] = b
				u.gpus = append(u.gpus, b)
			}
			mask := (uint64(1)<<at.Size - 1) << at.Start
			b.slices |= mask
			u.devices[structured.MakeDeviceID(s.Spec.Driver, s.Spec.Pool.Name, d.Name)] = place{b, mask}
		}
	}
	for _, b := range u.gpus {
		u.total += bits.OnesCount64(b.slices)
		u.update(b)
	}
	return u
}

// want notes which devices a workload asks for, on all nodes.
func (u *usage) want(ctx context.Context, f *fleet.Fleet, workload string, claims []*resourceapi.ResourceClaim) error {
	if u.seen[workload] {
		return nil
	}
	u.seen[workload] = true
	for _, n := range f.Nodes() {
		pools, err := f.Pools(n)
		if err != nil {
			return err
		}
		for _, p := range pools {
			for _, d := range p.Devices {
				at, ok := u.devices[d.ID()]
				if !ok || slices.Contains(at.wanted, at.mask) {
					continue
				}
				for _, r := range fleet.Requests(claims) {
					// An expression that fails is found out when the claim is allocated.
					if matches, err := f.Selects(ctx, r, d); err == nil && matches {
						at.wanted = append(at.wanted, at.mask)
						break
					}
				}
			}
		}
	}
	for _, b := range u.gpus {
		u.update(b)
	}
	return ctx.Err()
}

// change adds the devices of a claim with 1, and takes them away with -1.
func (u *usage) change(c *resourceapi.ResourceClaim, by int) {
	if c.Status.Allocation == nil {
		return
	}
	for _, r := range c.Status.Allocation.Devices.Results {
		at, ok := u.devices[structured.MakeDeviceID(r.Driver, r.Pool, r.Device)]
		if !ok || r.AdminAccess != nil && *r.AdminAccess {
			continue
		}
		for i := range at.users {
			if at.mask>>i&1 == 1 {
				at.users[i] += by
			}
		}
		u.update(at.board)
	}
}

// update counts a board anew.
func (u *usage) update(b *board) {
	var inUse, reachable uint64
	for i, n := range b.users {
		if n > 0 {
			inUse |= 1 << i
		}
	}
	for _, mask := range b.wanted {
		if mask&inUse == 0 {
			reachable |= mask
		}
	}
	u.used, u.stranded = u.used-b.used, u.stranded-b.stranded
	b.used, b.stranded = bits.OnesCount64(inUse), bits.OnesCount64(b.slices&^inUse&^reachable)
	u.used, u.stranded = u.used+b.used, u.stranded+b.stranded
}
