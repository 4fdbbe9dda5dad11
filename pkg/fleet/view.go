package fleet

import (
	"context"
	"fmt"
	"iter"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	"k8s.io/dynamic-resource-allocation/structured"
)

// Pool is a pool as the scheduler sees it from one node, as long as nothing is
// taken or released. It is not safe for concurrent use.
type Pool struct {
	Driver, Name string
	Generation   int64
	// Have and Want are how many slices of the newest generation there are and how
	// many there should be. As long as they differ, nothing is allocated from the pool.
	Have, Want int
	// Invalid says why nothing is ever allocated from the pool, empty if it is sound.
	Invalid string
	// Devices are those for the node, in the order in which the allocator takes them.
	Devices []Device

	// from is what it is a view of. Of it, local means that all of it is for the node alone.
	from  *poolState
	local bool
	// all are the devices for whatever node; they consume the same counters.
	all      []Device
	sets     []resourceapi.CounterSet
	counters map[counter]resource.Quantity
	// now is what is left of the counters, once somebody has asked.
	now map[counter]resource.Quantity
}

type counter struct{ set, name string }

// Usable reports whether the allocator takes devices of the pool.
func (p *Pool) Usable() bool { return p.Have == p.Want && p.Invalid == "" }

// Device is a published device.
type Device struct {
	*resourceapi.Device
	// Driver and Pool are those of its slice.
	Driver, Pool string
}

// ID is what the allocator calls the device.
func (d Device) ID() structured.DeviceID { return structured.MakeDeviceID(d.Driver, d.Pool, d.Name) }

// Pools are the pools that have slices for the node.
func (f *Fleet) Pools(node *corev1.Node) ([]*Pool, error) {
	n := f.byName[node.Name]
	if n == nil {
		return nil, nil
	}
	var all []*Pool
	for _, from := range n.pools {
		p := &Pool{Driver: from.id.driver, Name: from.id.name, Generation: from.generation, from: from, local: true, counters: map[counter]resource.Quantity{}}
		var mine []*resourceapi.ResourceSlice
		for s := range from.newest() {
			p.Have, p.Want = p.Have+1, int(s.Spec.Pool.ResourceSliceCount)
			p.local = p.local && value(s.Spec.NodeName) == node.Name
			matches, err := forNode(node, s)
			if err != nil {
				return nil, err
			}
			if matches {
				mine = append(mine, s)
			}
		}
		if len(mine) == 0 {
			continue
		}
		for s := range from.newest() {
			if err := p.add(node, s, slices.Contains(mine, s)); err != nil {
				return nil, err
			}
		}
		p.validate()
		all = append(all, p)
	}
	return all, nil
}

// newest are the slices of the newest generation, by name.
func (p *poolState) newest() iter.Seq[*resourceapi.ResourceSlice] {
	return func(yield func(*resourceapi.ResourceSlice) bool) {
		for _, s := range p.slices {
			if s.Spec.Pool.Generation == p.generation && !yield(s) {
				return
			}
		}
	}
}

// parts are all devices of the pool, and whether they are for the node.
func (p *Pool) parts() iter.Seq2[Device, bool] {
	return func(yield func(Device, bool) bool) {
		mine := p.Devices
		for _, d := range p.all {
			visible := len(mine) > 0 && mine[0].Device == d.Device
			if visible {
				mine = mine[1:]
			}
			if !yield(d, visible) {
				return
			}
		}
	}
}

func forNode(node *corev1.Node, s *resourceapi.ResourceSlice) (bool, error) {
	if isTrue(s.Spec.PerDeviceNodeSelection) {
		for i := range s.Spec.Devices {
			if matches, err := deviceForNode(node, s, &s.Spec.Devices[i]); matches || err != nil {
				return matches, err
			}
		}
		return false, nil
	}
	matches, err := structured.NodeMatches(features, node, value(s.Spec.NodeName), isTrue(s.Spec.AllNodes), s.Spec.NodeSelector)
	if err != nil {
		return false, fmt.Errorf("slice %s: %w", s.Name, err)
	}
	return matches, nil
}

func deviceForNode(node *corev1.Node, s *resourceapi.ResourceSlice, d *resourceapi.Device) (bool, error) {
	if !isTrue(s.Spec.PerDeviceNodeSelection) {
		return true, nil
	}
	matches, err := structured.NodeMatches(features, node, value(d.NodeName), isTrue(d.AllNodes), d.NodeSelector)
	if err != nil {
		return false, fmt.Errorf("device %s of slice %s: %w", d.Name, s.Name, err)
	}
	return matches, nil
}

func (p *Pool) add(node *corev1.Node, s *resourceapi.ResourceSlice, mine bool) error {
	p.sets = append(p.sets, s.Spec.SharedCounters...)
	for _, set := range s.Spec.SharedCounters {
		for name, c := range set.Counters {
			p.counters[counter{set.Name, name}] = c.Value
		}
	}
	for i := range s.Spec.Devices {
		d := Device{&s.Spec.Devices[i], p.Driver, p.Name}
		p.all = append(p.all, d)
		if !mine {
			continue
		}
		matches, err := deviceForNode(node, s, d.Device)
		if err != nil {
			return err
		}
		if matches {
			p.Devices = append(p.Devices, d)
		}
	}
	return nil
}

// validate finds what makes the allocator leave the pool alone.
func (p *Pool) validate() {
	seen := sets.New[string]()
	for _, d := range p.all {
		if seen.Has(d.Name) {
			p.Invalid = "two devices are called " + d.Name
		}
		seen.Insert(d.Name)
		for _, consumed := range d.ConsumesCounters {
			for name := range consumed.Counters {
				if _, ok := p.counters[counter{consumed.CounterSet, name}]; !ok {
					p.Invalid = fmt.Sprintf("device %s consumes the counter %s of %s, which does not exist", d.Name, name, consumed.CounterSet)
				}
			}
		}
	}
}

// Holders are the claims that have the device in use.
func (p *Pool) Holders(d Device) []*resourceapi.ResourceClaim { return p.from.holders[d.Name] }

// HeldBy lists the devices that the claim has in use.
func (p *Pool) HeldBy(claim *resourceapi.ResourceClaim) []Device {
	return slices.DeleteFunc(slices.Clone(p.all), func(d Device) bool { return !slices.Contains(p.from.holders[d.Name], claim) })
}

// All are the counters of a set as published.
func (p *Pool) All(counterSet string) map[string]resourceapi.Counter {
	all := map[string]resourceapi.Counter{}
	for c, q := range p.counters {
		if c.set == counterSet {
			all[c.name] = resourceapi.Counter{Value: q}
		}
	}
	return all
}

// Left is what is left of the counters of a set, also below zero.
func (p *Pool) Left(counterSet string) map[string]resourceapi.Counter {
	left := map[string]resourceapi.Counter{}
	for c, q := range p.left(nil) {
		if c.set == counterSet {
			left[c.name] = resourceapi.Counter{Value: q}
		}
	}
	return left
}

// left are the counters when the claims given are gone. Nobody changes them.
func (p *Pool) left(without []*resourceapi.ResourceClaim) map[counter]resource.Quantity {
	if len(without) > 0 {
		return p.count(without)
	}
	if p.now == nil {
		p.now = p.count(nil)
	}
	return p.now
}

func (p *Pool) count(without []*resourceapi.ResourceClaim) map[counter]resource.Quantity {
	left := make(map[counter]resource.Quantity, len(p.counters))
	for c, q := range p.counters {
		left[c] = q.DeepCopy()
	}
	for _, d := range p.all {
		if !slices.ContainsFunc(p.from.holders[d.Name], func(h *resourceapi.ResourceClaim) bool { return !slices.Contains(without, h) }) {
			continue
		}
		for _, consumed := range d.ConsumesCounters {
			for name, n := range consumed.Counters {
				q := left[counter{consumed.CounterSet, name}]
				q.Sub(n.Value)
				left[counter{consumed.CounterSet, name}] = q
			}
		}
	}
	return left
}

// Short are the counters of a device that are not enough for it, by name, with
// their set; empty if it could be taken.
func (p *Pool) Short(d Device) []string {
	var short []string
	for _, c := range p.short(d, p.left(nil)) {
		short = append(short, c.set+"/"+c.name)
	}
	slices.Sort(short)
	return short
}

func (p *Pool) short(d Device, left map[counter]resource.Quantity) []counter {
	var short []counter
	for _, consumed := range d.ConsumesCounters {
		for name, n := range consumed.Counters {
			c := counter{consumed.CounterSet, name}
			if q := left[c]; q.Cmp(n.Value) < 0 {
				short = append(short, c)
			}
		}
	}
	return short
}

// Taken reports whether the device cannot be allocated because it, or what it
// consumes, is in use. With admin access a device in use is no obstacle, but its counters are.
func (p *Pool) Taken(d Device, admin bool) bool {
	if inUse := len(p.from.holders[d.Name]) > 0; inUse && isTrue(d.AllowMultipleAllocations) {
		return false // Its counters are paid for.
	} else if inUse && !admin {
		return true
	}
	return len(p.short(d, p.left(nil))) > 0
}

// Blockers are the claims that would have to go before the device could be
// allocated, none too many, and empty if it is not taken.
func (p *Pool) Blockers(d Device, admin bool) []*resourceapi.ResourceClaim {
	var direct, others []*resourceapi.ResourceClaim
	shared := isTrue(d.AllowMultipleAllocations)
	if !admin && !shared {
		direct = p.from.holders[d.Name]
	}
	if shared && len(p.from.holders[d.Name]) > 0 {
		return nil // Its counters are paid for.
	}
	short := p.short(d, p.left(direct))
	if len(short) == 0 {
		return direct
	}
	for _, other := range p.all {
		for _, consumed := range other.ConsumesCounters {
			for name := range consumed.Counters {
				if !slices.Contains(short, counter{consumed.CounterSet, name}) {
					continue
				}
				for _, h := range p.from.holders[other.Name] {
					if !slices.Contains(direct, h) && !slices.Contains(others, h) {
						others = append(others, h)
					}
				}
			}
		}
	}
	// What is not needed stays, the later ones first.
	for _, c := range slices.Clone(others) {
		fewer := slices.DeleteFunc(slices.Clone(others), func(o *resourceapi.ResourceClaim) bool { return o == c })
		if len(p.short(d, p.left(slices.Concat(direct, fewer)))) == 0 {
			others = fewer
		}
	}
	return slices.Concat(direct, others)
}

// Matches evaluates a selector on a device. An error is one that would end the allocation.
func (f *Fleet) Matches(ctx context.Context, s resourceapi.DeviceSelector, d Device) (bool, error) {
	return f.matches(ctx, s, d.cel())
}

func (d Device) cel() cel.Device {
	return cel.Device{
		Driver: d.Driver, AllowMultipleAllocations: d.AllowMultipleAllocations, Attributes: d.Attributes, Capacity: d.Capacity,
	}
}

func (f *Fleet) matches(ctx context.Context, s resourceapi.DeviceSelector, d cel.Device) (bool, error) {
	if s.CEL == nil {
		return false, fmt.Errorf("a selector without a CEL expression is of a kind that is not known")
	}
	expression := f.cache.GetOrCompile(s.CEL.Expression)
	if expression.Error != nil {
		return false, fmt.Errorf("it does not compile: %w", expression.Error)
	}
	matches, _, err := expression.DeviceMatches(ctx, d)
	return matches, cel.EnhanceRuntimeError(err)
}

// Class returns the device class of that name.
func (f *Fleet) Class(name string) (*resourceapi.DeviceClass, bool) {
	c, ok := f.classes[name]
	return c, ok
}

// NotTolerated are the taints that keep a request with these tolerations from the device.
func NotTolerated(d Device, tolerations []resourceapi.DeviceToleration) []resourceapi.DeviceTaint {
	return notTolerated(d.Taints, tolerations)
}

func notTolerated(taints []resourceapi.DeviceTaint, tolerations []resourceapi.DeviceToleration) []resourceapi.DeviceTaint {
	var all []resourceapi.DeviceTaint
	for _, t := range taints {
		if t.Effect != resourceapi.DeviceTaintEffectNoSchedule && t.Effect != resourceapi.DeviceTaintEffectNoExecute {
			continue
		}
		if !slices.ContainsFunc(tolerations, func(o resourceapi.DeviceToleration) bool { return resourceclaim.ToleratesTaint(o, t) }) {
			all = append(all, t)
		}
	}
	return all
}

func isTrue(b *bool) bool { return b != nil && *b }

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
