package nvmlsim

import (
	"slices"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// fabricReads is how often a board that has just come up is seen joining the fabric [inferred].
const fabricReads = 3

// createInstance makes a GPU instance, where at is nil at a place of the driver's choice.
func (g *board) createInstance(profileID int, at *gpu.Placement) (int, nvml.Return) {
	if !g.MIG {
		return 0, nvml.ERROR_NOT_SUPPORTED
	}
	b := g.table
	p, ok := profileByID(b, profileID)
	if !ok {
		return 0, nvml.ERROR_INVALID_ARGUMENT
	}
	if holdsMedia(p) && slices.ContainsFunc(g.Instances, func(i instance) bool {
		other, _ := profileByID(b, i.Profile)
		return holdsMedia(other)
	}) {
		return 0, nvml.ERROR_INSUFFICIENT_RESOURCES
	}
	if at != nil && !slices.Contains(p.Placements, *at) {
		// [inferred]: nvml.h calls an invalid placement an invalid argument.
		return 0, nvml.ERROR_INVALID_ARGUMENT
	}
	candidates := p.Placements
	if at != nil {
		candidates = []gpu.Placement{*at}
	}
	// The last place first [inferred]: like the driver's own choice it fragments
	// a board, so that 1g, 1g, 2g leave no room for 3g.
	for _, place := range slices.Backward(candidates) {
		if g.free(place) {
			id := g.freeInstanceID(p)
			g.Instances = append(g.Instances, instance{ID: id, Profile: p.ID, Placement: place})
			return id, nvml.SUCCESS
		}
	}
	return 0, nvml.ERROR_INSUFFICIENT_RESOURCES
}

func (g *board) free(at gpu.Placement) bool {
	return !slices.ContainsFunc(g.Instances, func(i instance) bool { return i.Placement.Overlaps(at) })
}

func (g *board) freeInstanceID(p gpu.Profile) int {
	for _, id := range instanceIDs(p) {
		if g.instance(id) == nil {
			return id
		}
	}
	// No board has room for more instances of a size than the size has ids.
	return -1
}

func (g *board) destroyInstance(id int) nvml.Return {
	if !g.MIG {
		return nvml.ERROR_NOT_SUPPORTED
	}
	i := g.instance(id)
	if i == nil {
		return nvml.ERROR_INVALID_ARGUMENT
	}
	if len(i.Compute) > 0 || slices.ContainsFunc(g.Clients, func(c Client) bool { return c.GI != nil && *c.GI == id }) {
		return nvml.ERROR_IN_USE
	}
	g.Instances = slices.DeleteFunc(g.Instances, func(i instance) bool { return i.ID == id })
	return nvml.SUCCESS
}

// createCompute makes a compute instance, where at is nil at the first free place.
func (g *board) createCompute(gi, profileID int, at *gpu.Placement) (int, nvml.Return) {
	i := g.instance(gi)
	if i == nil {
		return 0, nvml.ERROR_INVALID_ARGUMENT
	}
	b := g.table
	p, _ := profileByID(b, i.Profile)
	c, ok := computeProfileByID(b, p, profileID)
	if !ok {
		return 0, nvml.ERROR_NOT_SUPPORTED
	}
	places := c.places(p)
	if at != nil && !slices.Contains(places, *at) {
		return 0, nvml.ERROR_INVALID_ARGUMENT
	}
	for _, place := range places {
		if at != nil && place != *at {
			continue
		}
		if i.taken(place) {
			continue
		}
		id := 0
		for i.compute(id) != nil {
			id++
		}
		i.Compute = append(i.Compute, compute{ID: id, Profile: c.id, Start: place.Start, Size: place.Size, Index: g.freeMIGIndex()})
		return id, nvml.SUCCESS
	}
	return 0, nvml.ERROR_INSUFFICIENT_RESOURCES
}

func (i *instance) taken(at gpu.Placement) bool {
	return slices.ContainsFunc(i.Compute, func(c compute) bool { return c.place().Overlaps(at) })
}

// freeMIGIndex is the lowest index that no MIG device has. An index stays with
// its device, so a destroyed one leaves a hole [inferred].
func (g *board) freeMIGIndex() int {
	for index := 0; ; index++ {
		if _, c := g.migDevice(index); c == nil {
			return index
		}
	}
}

func (g *board) migDevice(index int) (*instance, *compute) {
	for n := range g.Instances {
		i := &g.Instances[n]
		for m := range i.Compute {
			if i.Compute[m].Index == index {
				return i, &i.Compute[m]
			}
		}
	}
	return nil, nil
}

func (g *board) destroyCompute(gi, id int) nvml.Return {
	i := g.instance(gi)
	if i == nil || i.compute(id) == nil {
		return nvml.ERROR_INVALID_ARGUMENT
	}
	if slices.ContainsFunc(g.Clients, func(c Client) bool { return c.GI != nil && *c.GI == gi && c.CI != nil && *c.CI == id }) {
		return nvml.ERROR_IN_USE
	}
	i.Compute = slices.DeleteFunc(i.Compute, func(c compute) bool { return c.ID == id })
	return nvml.SUCCESS
}

// setMIGMode asks for a mode. The first answer is about the request, the second
// about whether it is in effect. held is true where a session holds the board;
// with fault, the request is not activated for that reason.
func (s *state) setMIGMode(index int, on, held bool, fault nvml.Return) (nvml.Return, nvml.Return) {
	g := &s.GPUs[index]
	b := g.table
	switch {
	case len(b.Profiles) == 0:
		return nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_NOT_SUPPORTED
	case g.MIG == on:
		g.Pending = on
		return nvml.SUCCESS, nvml.SUCCESS
	}
	// The request stands even where it can't take effect now (nvml.h: pending is the target of the next activation).
	g.Pending = on
	switch {
	case fault != nvml.SUCCESS:
		return nvml.SUCCESS, fault
	case held || len(g.Clients) > 0 || len(g.Instances) > 0:
		return nvml.SUCCESS, nvml.ERROR_IN_USE
	case b.ToggleNeedsReset:
		return nvml.SUCCESS, nvml.ERROR_RESET_REQUIRED
	}
	g.MIG = on
	// nvml.h: the board may be unbound, and its minor number may change. [inferred]: it always does.
	g.Minor = s.freeMinor()
	g.comeUp()
	return nvml.SUCCESS, nvml.SUCCESS
}

func (s *state) freeMinor() int {
	minor := 0
	for slices.ContainsFunc(s.GPUs, func(g board) bool { return g.Minor == minor }) {
		minor++
	}
	return minor
}

// comeUp is what every reset of a board means to its users: no instance lives
// on, no handle is good, and the fabric has to be joined again. That time slice
// and compute mode are the defaults again is [inferred].
func (g *board) comeUp() {
	g.Instances = nil
	g.TimeSlice, g.ComputeMode = "", ""
	g.Load = work{}
	g.Generation++
	g.FabricReads = 0
	if g.onFabric() {
		g.FabricReads = fabricReads
	}
}

// onFabric reports whether NVML tells a fabric state. nvml.h: for Hopper or newer, on NVSwitch systems.
func (g *board) onFabric() bool {
	b := g.table
	return b.NVSwitch && b.Architecture == "Hopper"
}

// reset is a GPU reset. MIG guide: the mode of an A100 takes effect with one, that of later boards is lost.
func (g *board) reset() {
	g.Pending = g.Pending && g.table.ToggleNeedsReset
	g.MIG = g.Pending
	// nvml.h: volatile counters begin anew, and pending rows are remapped. A failure stays.
	g.UncorrectedECC, g.RemapPending = 0, false
	g.comeUp()
}

// reboot ends every process and session, and resets every board.
func (s *state) reboot() {
	s.Boot++
	s.Events = nil
	for n := range s.GPUs {
		g := &s.GPUs[n]
		g.Clients = nil
		g.Lost = false
		g.Minor = n
		g.reset()
	}
}
