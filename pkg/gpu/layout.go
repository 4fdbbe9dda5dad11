package gpu

import "slices"

// Placed is a profile at one of its placements.
type Placed struct {
	Profile   Profile
	Placement Placement
}

// AllPlaced lists every placement of every profile, in the order of the profiles and of their placements.
func AllPlaced(profiles []Profile) []Placed {
	var all []Placed
	for _, p := range profiles {
		for _, at := range p.Placements {
			all = append(all, Placed{p, at})
		}
	}
	return all
}

// LeastBlocking orders the placements of one profile so that the first takes
// the fewest other possibilities away: by the number of placements, of all
// profiles, that it overlaps, then by its start. The scheduler takes devices
// in order of publication, so this order is what fights fragmentation.
//
// Profiles with media extensions are left out of the count: they mirror the
// plain profile's placements and are not always offered, and an order must not
// change when they are.
func LeastBlocking(p Profile, all []Profile) []Placement {
	weight := func(at Placement) int {
		n := 0
		for _, other := range AllPlaced(all) {
			if !other.Profile.MediaExtensions && other.Placement.Overlaps(at) {
				n++
			}
		}
		return n
	}
	ordered := slices.Clone(p.Placements)
	slices.SortStableFunc(ordered, func(a, b Placement) int {
		if d := weight(a) - weight(b); d != 0 {
			return d
		}
		return a.Start - b.Start
	})
	return ordered
}

// Fits reports whether a placement is free of all the instances given, and if not, the first in the way.
func Fits(at Placement, instances []Instance) (blocker Instance, ok bool) {
	for _, i := range instances {
		if i.Placement.Overlaps(at) {
			return i, false
		}
	}
	return Instance{}, true
}
