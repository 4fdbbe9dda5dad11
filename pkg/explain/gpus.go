package explain

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

// GPU is a GPU, or a device of another kind, that has nothing free for a request.
type GPU struct {
	// Name is as published: that of the counter set, or of the device if it has none.
	Name string `json:"name"`
	// Wanted describes the devices that were looked for, by profile or type.
	Wanted string `json:"wanted,omitempty"`
	// FreeSlices are the memory slices that nobody uses, NeededSlices how many the
	// smallest device that was looked for covers. Both are 0 for devices that have none.
	FreeSlices   int `json:"freeSlices,omitempty"`
	NeededSlices int `json:"neededSlices,omitempty"`
	// Fragmented: enough slices are free, but not where a device could lie.
	Fragmented bool `json:"fragmented,omitempty"`
	// Short are the counters that are not enough for the device that is nearest to being free.
	Short []string `json:"short,omitempty"`
	// Blockers are the claims in the way of the devices for which the fewest are.
	Blockers []Blocker `json:"blockers"`
}

// Blocker is a claim that is in the way, and by which device.
type Blocker struct {
	Claim  string `json:"claim"`
	Device string `json:"device"`
	// Profile is the device's profile or type, Slice its first memory slice.
	Profile string `json:"profile,omitempty"`
	Slice   int    `json:"slice"`

	mig bool
}

// Text is one clause.
func (g GPU) Text() string {
	var by []string
	for _, b := range g.Blockers {
		what := b.Device
		if b.Profile != "" {
			what = b.Profile
			switch {
			case b.mig:
				what = fmt.Sprintf("%s at slice %d", b.Profile, b.Slice)
			case b.Profile == string(gpu.TypeGPU):
				what = "the whole GPU"
			}
		}
		by = append(by, what+" held by "+b.Claim)
	}
	held := strings.Join(by, ", ")
	switch {
	case g.Fragmented:
		return fmt.Sprintf("%s free on %s, none aligned for %s: %s", plural(g.FreeSlices, "slice"), g.Name, g.Wanted, held)
	case len(g.Short) > 0:
		return fmt.Sprintf("%s lacks %s: %s", g.Name, strings.Join(g.Short, ", "), held)
	}
	return g.Name + ": " + held
}

// blocked are the GPUs with nothing free for the request, or, if each has something,
// those with something in use.
func (f *funnel) blocked() []GPU {
	byName := map[string][]candidate{}
	var order []string
	for _, c := range f.selected {
		name := gpuOf(c.Device)
		if byName[name] == nil {
			order = append(order, name)
		}
		byName[name] = append(byName[name], c)
	}
	var full, partly []GPU
	for _, name := range order {
		free := slices.ContainsFunc(byName[name], func(c candidate) bool { return !c.taken })
		on := slices.DeleteFunc(byName[name], func(c candidate) bool { return !c.taken })
		switch {
		case len(on) == 0:
		case free:
			g := f.newGPU(name, on)
			g.Fragmented = false
			partly = append(partly, g)
		default:
			full = append(full, f.newGPU(name, on))
		}
	}
	if full == nil {
		return partly
	}
	return full
}

func (f *funnel) newGPU(name string, on []candidate) GPU {
	g := GPU{Name: name}
	blockers := make([][]*resourceapi.ResourceClaim, len(on))
	least := 0
	for i, c := range on {
		if blockers[i] = c.pool.Blockers(c.Device, f.r.AdminAccess); len(blockers[i]) < len(blockers[least]) {
			least = i
		}
	}
	fewest := on[least]
	g.Short = compress(fewest.pool.Short(fewest.Device))
	wanted := map[string]bool{}
	for i, c := range on {
		wanted[kindOf(c.Device)] = true
		if _, at, ok := pool.Covers(c.Device.Device); ok && (g.NeededSlices == 0 || at.Size < g.NeededSlices) {
			g.NeededSlices = at.Size
		}
		if len(blockers[i]) > len(blockers[least]) {
			continue
		}
		for _, claim := range blockers[i] {
			g.block(claim, c.pool)
		}
	}
	g.Wanted = strings.Join(slices.Sorted(maps.Keys(wanted)), " or ")
	if g.NeededSlices == 0 {
		return g
	}
	for counter, left := range fewest.pool.Left(name) {
		if _, last := pool.MemorySlices(map[string]resourceapi.Counter{counter: left}); last >= 0 && left.Value.Cmp(fewest.pool.All(name)[counter].Value) == 0 {
			g.FreeSlices++
		}
	}
	// With the slices free and another counter short it is that counter.
	g.Fragmented = g.FreeSlices >= g.NeededSlices && slices.ContainsFunc(g.Short, func(c string) bool { return strings.HasPrefix(c, "memory") })
	return g
}

// withClaims adds the devices of the claims of the smallest sets to the GPUs, where they are not named already.
func withClaims(gpus []GPU, pools []*fleet.Pool, sets [][]*resourceapi.ResourceClaim) []GPU {
	for _, set := range sets {
		if len(set) > len(sets[0]) {
			break
		}
		for _, claim := range set {
			if slices.ContainsFunc(gpus, func(g GPU) bool {
				return slices.ContainsFunc(g.Blockers, func(b Blocker) bool { return b.Claim == fleet.Key(claim) })
			}) {
				continue
			}
			for _, p := range pools {
				for _, d := range p.HeldBy(claim) {
					name := gpuOf(d)
					i := slices.IndexFunc(gpus, func(g GPU) bool { return g.Name == name })
					if i < 0 {
						gpus, i = append(gpus, GPU{Name: name}), len(gpus)
					}
					gpus[i].block(claim, p)
				}
			}
		}
	}
	return gpus
}

// gpuOf is the name of the device's GPU, or of itself if it is on none.
func gpuOf(d fleet.Device) string {
	if len(d.ConsumesCounters) > 0 {
		return d.ConsumesCounters[0].CounterSet
	}
	return d.Name
}

// block adds the devices by which a claim is in the way on the GPU.
func (g *GPU) block(claim *resourceapi.ResourceClaim, p *fleet.Pool) {
	for _, d := range p.HeldBy(claim) {
		if !slices.ContainsFunc(d.ConsumesCounters, func(c resourceapi.DeviceCounterConsumption) bool { return c.CounterSet == g.Name }) && d.Name != g.Name {
			continue
		}
		_, at, ok := pool.Covers(d.Device)
		b := Blocker{Claim: fleet.Key(claim), Device: d.Name, Profile: kindOf(d), Slice: at.Start, mig: ok && isMIG(d)}
		if !slices.Contains(g.Blockers, b) {
			g.Blockers = append(g.Blockers, b)
		}
	}
}

func isMIG(d fleet.Device) bool { return typeOf(d) == string(gpu.TypeMIG) }

// kindOf is the profile of a MIG device and the type of any other.
func kindOf(d fleet.Device) string {
	for _, name := range []string{"profile", "type"} {
		for _, domain := range []string{"", pool.DefaultDriver + "/"} {
			if a, ok := d.Attributes[resourceapi.QualifiedName(domain+name)]; ok && a.StringValue != nil {
				return *a.StringValue
			}
		}
	}
	return d.Name
}

// compress writes the counters of memory slices as "memory slices 4-7".
func compress(counters []string) []string {
	var rest []string
	only := map[string]resourceapi.Counter{}
	for _, c := range counters {
		_, name, _ := strings.Cut(c, "/")
		if _, last := pool.MemorySlices(map[string]resourceapi.Counter{name: {}}); last >= 0 {
			only[name] = resourceapi.Counter{}
			continue
		}
		rest = append(rest, name)
	}
	first, last := pool.MemorySlices(only)
	switch {
	case last < first:
		return rest
	case len(only) == last-first+1 && first < last:
		return append([]string{fmt.Sprintf("memory slices %d-%d", first, last)}, rest...)
	}
	names := slices.Sorted(maps.Keys(only))
	return append(names, rest...)
}
