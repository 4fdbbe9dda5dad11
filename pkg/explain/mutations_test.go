package explain

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

type (
	named = func(Cause) bool
	undo  = func(*cluster, *Report) bool
)

// cure undoes with a cure of that kind alone.
func cure(kind ChangeKind) undo {
	return func(c *cluster, r *Report) bool {
		i := slices.IndexFunc(r.Cures, func(x Cure) bool {
			return !slices.ContainsFunc(x.Changes, func(c Change) bool { return c.Kind != kind })
		})
		if i >= 0 {
			*c = *cured(c, r.Cures[i])
		}
		return i >= 0
	}
}

// restore undoes what nobody can undo from the side of the claims.
func restore(before cluster) undo {
	return func(c *cluster, _ *Report) bool {
		*c = before
		return true
	}
}

func is(want Kind, subject string) named {
	return func(c Cause) bool { return c.Kind == want && c.Subject == subject }
}

// heldBy is a cause that names the claim.
func heldBy(claim string, kinds ...Kind) named {
	return func(c Cause) bool {
		return slices.Contains(kinds, c.Kind) && slices.ContainsFunc(c.GPUs, func(g GPU) bool {
			return slices.ContainsFunc(g.Blockers, func(b Blocker) bool { return b.Claim == claim })
		})
	}
}

func without(claim string) undo {
	return func(c *cluster, _ *Report) bool {
		c.Claims = slices.DeleteFunc(slices.Clone(c.Claims), func(o *resourceapi.ResourceClaim) bool { return fleet.Key(o) == claim })
		return true
	}
}

// onPools changes copies of the slices of the nodes where the claims fit.
func (c *cluster) onPools(f func(*resourceapi.ResourceSlice)) {
	c.Slices = slices.Clone(c.Slices)
	for i, s := range c.Slices {
		if slices.Contains(c.fit, s.Spec.Pool.Name) {
			c.Slices[i] = s.DeepCopy()
			f(c.Slices[i])
		}
	}
}

var mutations = []mutation{
	{"a taint", func(_ *testing.T, c *cluster) (named, undo, bool) {
		t := resourceapi.DeviceTaint{Key: "gpu.kerf.dev/Xid48", Effect: resourceapi.DeviceTaintEffectNoSchedule}
		if c.IntN(2) == 0 {
			t = resourceapi.DeviceTaint{Key: "example.com/drain", Value: "yes", Effect: resourceapi.DeviceTaintEffectNoExecute}
		}
		for _, n := range c.fit {
			c.TaintRules = append(c.TaintRules, &resourceapi.DeviceTaintRule{Spec: resourceapi.DeviceTaintRuleSpec{DeviceSelector: &resourceapi.DeviceTaintSelector{Pool: &n}, Taint: t}})
		}
		return is(Tainted, taintText(t)), cure(Tolerate), true
	}},
	{"a claim that holds", func(t *testing.T, c *cluster) (named, undo, bool) {
		f := c.fleet()
		for i := range 80 {
			fit := c.fits(t)
			filler := c.claim(fmt.Sprintf("filler-%d", i))
			if !c.take(t, f, filler) {
				continue
			}
			if len(c.fits(t)) == 0 {
				c.fit = fit
				return heldBy(fleet.Key(filler), InUse, Fragmented), without(fleet.Key(filler)), true
			}
		}
		return nil, nil, false
	}},
	{"fragmentation", fragment},
	{"a selector", func(_ *testing.T, c *cluster) (named, undo, bool) {
		r, ok := c.exact()
		if !ok {
			return nil, nil, false
		}
		expression := c.pick(`device.attributes["gpu.nvidia.com"].productName == "NVIDIA B300"`,
			`device.capacity["gpu.nvidia.com"].memory.compareTo(quantity("500Gi")) >= 0`, `device.driver == "nic.example.com"`)
		r.Exactly.Selectors = slices.Insert(r.Exactly.Selectors, c.IntN(len(r.Exactly.Selectors)+1), cel(expression))
		return is(NoMatch, expression), cure(DropSelector), true
	}},
	{"a selector that fails", func(t *testing.T, c *cluster) (named, undo, bool) {
		expression := `device.attributes["gpu.nvidia.com"].profile == "1g.10gb"`
		claim := c.claim("wanted")
		claim.Spec.Devices = resourceapi.DeviceClaim{Requests: []resourceapi.DeviceRequest{{Name: "first", Exactly: c.exactly(anyClass)}}}
		request := claim.Spec.Devices.Requests[0].Exactly
		request.Selectors = []resourceapi.DeviceSelector{cel(`device.attributes["gpu.nvidia.com"].type == "mig" && ` + expression)}
		c.pod.Claims = []*resourceapi.ResourceClaim{claim}
		if c.fit = c.fits(t); len(c.fit) == 0 {
			return nil, nil, false
		}
		request.Selectors = []resourceapi.DeviceSelector{cel(expression)}
		// On a node where it meets a device that is of the kind first, it does not fail.
		f := c.fleet()
		c.fit = slices.DeleteFunc(c.fit, func(name string) bool {
			n, _ := f.Node(name)
			_, err := f.Allocate(t.Context(), n, claim)
			return err == nil
		})
		return is(SelectorError, expression), cure(GuardSelector), len(c.fit) > 0
	}},
	{"a constraint", func(_ *testing.T, c *cluster) (named, undo, bool) {
		devices := &c.pod.Claims[0].Spec.Devices
		same, distinct := resourceapi.FullyQualifiedName("gpu.nvidia.com/nvlinkDomain"), resourceapi.FullyQualifiedName("gpu.nvidia.com/driverVersion")
		x := resourceapi.DeviceConstraint{MatchAttribute: &same}
		subject := same
		if c.IntN(2) == 0 && (len(devices.Requests) > 1 || devices.Requests[0].Exactly != nil && devices.Requests[0].Exactly.Count > 1) {
			x, subject = resourceapi.DeviceConstraint{DistinctAttribute: &distinct}, distinct
		}
		devices.Constraints = append(devices.Constraints, x)
		return is(Constraint, string(subject)), cure(DropConstraint), true
	}},
	{"a count", func(_ *testing.T, c *cluster) (named, undo, bool) {
		r, ok := c.exact()
		if !ok {
			return nil, nil, false
		}
		r.Exactly.Count = int64(3 + c.IntN(29))
		return is(Count, fmt.Sprint(r.Exactly.Count)), cure(LowerCount), true
	}},
	{"a missing class", func(_ *testing.T, c *cluster) (named, undo, bool) {
		before := *c
		class := fleet.Requests(c.pod.Claims)[0].Class
		c.Classes = slices.DeleteFunc(slices.Clone(c.Classes), func(o *resourceapi.DeviceClass) bool { return o.Name == class })
		return is(ClassMissing, class), restore(before), true
	}},
	{"an incomplete pool", func(_ *testing.T, c *cluster) (named, undo, bool) {
		before := *c
		if c.IntN(2) == 0 {
			c.onPools(func(s *resourceapi.ResourceSlice) { s.Spec.Pool.ResourceSliceCount++ })
		} else {
			counters := c.IntN(2) == 0
			gone := map[string]bool{}
			c.Slices = slices.DeleteFunc(slices.Clone(c.Slices), func(s *resourceapi.ResourceSlice) bool {
				node := s.Spec.Pool.Name
				drop := slices.Contains(c.fit, node) && !gone[node] && counters == (len(s.Spec.SharedCounters) > 0)
				gone[node] = gone[node] || drop
				return drop
			})
		}
		return func(x Cause) bool {
			return x.Kind == PoolIncomplete && strings.HasPrefix(x.Subject, pool.DefaultDriver+"/node-")
		}, restore(before), true
	}},
	{"an invalid pool", func(_ *testing.T, c *cluster) (named, undo, bool) {
		before := *c
		c.onPools(func(s *resourceapi.ResourceSlice) {
			if n := len(s.Spec.Devices); n > 0 {
				s.Spec.Devices = append(s.Spec.Devices, s.Spec.Devices[c.IntN(n)])
			}
		})
		return func(x Cause) bool {
			return x.Kind == PoolInvalid && strings.HasPrefix(x.Subject, pool.DefaultDriver+"/node-")
		}, restore(before), true
	}},
	{"a wrong driver", func(_ *testing.T, c *cluster) (named, undo, bool) {
		before := *c
		class := fleet.Requests(c.pod.Claims)[0].Class
		c.Classes = slices.Clone(c.Classes)
		for i, o := range c.Classes {
			if o.Name == class {
				c.Classes[i] = o.DeepCopy()
				c.Classes[i].Spec.Selectors = append([]resourceapi.DeviceSelector{cel(`device.driver == "gpu.example.com"`)}, o.Spec.Selectors...)
			}
		}
		return is(NoMatch, class), restore(before), true
	}},
	{"no devices", func(_ *testing.T, c *cluster) (named, undo, bool) {
		before := *c
		c.Slices = slices.DeleteFunc(slices.Clone(c.Slices), func(s *resourceapi.ResourceSlice) bool { return slices.Contains(c.fit, s.Spec.Pool.Name) })
		return func(x Cause) bool { return x.Kind == NoDevices && slices.Contains(c.fit, x.Subject) }, restore(before), true
	}},
	{"a node selector", func(_ *testing.T, c *cluster) (named, undo, bool) {
		before := *c
		c.pod.Spec = &corev1.PodSpec{NodeSelector: map[string]string{"zone": "b"}}
		if c.IntN(2) == 0 {
			c.pod.Spec = &corev1.PodSpec{NodeName: "elsewhere"}
		}
		return is(NodeExcluded, ""), restore(before), true
	}},
	{"the scarcest last", func(t *testing.T, c *cluster) (named, undo, bool) {
		// Of two GPUs only the first is free as a whole, and the small ones take it.
		*c = cluster{Rand: c.Rand, Snapshot: fleet.Snapshot{Classes: c.Classes}, search: 2000}
		boards, _ := gpu.ParseBoards("2xH100-SXM5-80GB")
		c.Slices, _ = fleet.Publish("node-0", pool.DefaultDriver, boards, nil)
		last := c.Slices[1].Spec.Devices
		c.Claims = []*resourceapi.ResourceClaim{held("other", "node-0", last[len(last)/2+1].Name)}
		claim := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: "wanted", Namespace: "team"}}
		requests := []resourceapi.DeviceRequest{{Name: "scarce", Exactly: c.exactly(c.pick("gpu.nvidia.com", profileClass("7g.80gb")))}}
		for i := range 5 + c.IntN(2) {
			requests = append(requests, resourceapi.DeviceRequest{Name: fmt.Sprintf("small-%d", i), Exactly: c.exactly(profileClass("1g.10gb"))})
		}
		claim.Spec.Devices.Requests = slices.Clone(requests)
		c.pod.Claims = []*resourceapi.ResourceClaim{claim}
		if c.fit = c.fits(t); len(c.fit) == 0 {
			return nil, nil, false
		}
		claim.Spec.Devices.Requests = append(requests[1:], requests[0])
		return is(SearchTooLong, ""), cure(Reorder), true
	}},
}

// fragment puts small claims onto a GPU until the wanted device has as many free
// slices as it needs, but none of its places: the last of them is to be named.
func fragment(t *testing.T, c *cluster) (named, undo, bool) {
	*c = cluster{Rand: c.Rand, Snapshot: fleet.Snapshot{Classes: c.Classes}}
	boards, _ := gpu.ParseBoards("H100-SXM5-80GB")
	c.Slices, _ = fleet.Publish("node-0", pool.DefaultDriver, boards, nil)
	class := profileClass(c.pick("2g.20gb", "3g.40gb", "4g.40gb"))
	c.pod.Claims = []*resourceapi.ResourceClaim{{
		ObjectMeta: metav1.ObjectMeta{Name: "wanted", Namespace: "team"},
		Spec:       resourceapi.ResourceClaimSpec{Devices: resourceapi.DeviceClaim{Requests: []resourceapi.DeviceRequest{{Name: "first", Exactly: c.exactly(class)}}}},
	}}
	c.fit = []string{"node-0"}
	for i, at := range c.Perm(7) {
		holder := held(fmt.Sprintf("small-%d", i), "node-0", fmt.Sprintf("%s-mig-1g10gb-%d", c.Slices[1].Spec.Devices[0].Name, at))
		c.Claims = append(c.Claims, holder)
		if len(c.fits(t)) == 0 {
			left, needed := c.freeSlices(t, c.Slices[1].Spec.Devices[0].Name, class)
			return heldBy(fleet.Key(holder), Fragmented), without(fleet.Key(holder)), left >= needed
		}
	}
	return nil, nil, false
}

// held is a claim that has a device.
func held(name, node, device string) *resourceapi.ResourceClaim {
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "team"}}
	c.Status.Allocation = &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{
		{Request: "r", Driver: pool.DefaultDriver, Pool: node, Device: device},
	}}}
	return c
}

// freeSlices are the free memory slices of a GPU, and how many a device of the class covers.
func (c *cluster) freeSlices(t *testing.T, name, class string) (left, needed int) {
	f := c.fleet()
	n, _ := f.Node(c.fit[0])
	pools, _ := f.Pools(n)
	taken := [8]bool{}
	for _, d := range pools[0].Devices {
		on, at, _ := pool.Covers(d.Device)
		if on != name {
			continue
		}
		if ok, _ := f.Selects(t.Context(), fleet.Request{Class: class}, d); ok {
			needed = at.Size
		}
		if len(pools[0].Holders(d)) > 0 {
			for i := range at.Size {
				taken[at.Start+i] = true
			}
		}
	}
	for _, used := range taken {
		if !used {
			left++
		}
	}
	return left, needed
}
