package fleet

import (
	"context"
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"strings"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/dynamic-resource-allocation/cel"
)

// kind is what nodes offer, but for names and identities. What claims ask that do
// not read identities fits on all nodes of a kind that have the same devices in
// use, or on none of them.
type kind struct {
	key   string
	nodes int // that are of the kind
	// plain is whether the allocator looks at each part of it for itself.
	plain bool
	parts []part
	// sets are the counters of all pools, as published.
	sets []counters
	// wanted are the parts that a request takes, whoever uses them. It is nil where an
	// expression fails or the class is missing: what then happens is for the allocator to say.
	wanted map[*ask]bitset
	// states are known by the parts that are in use.
	states map[string]*state
}

// part is a device of a pool of the newest generation.
type part struct {
	*model
	taints []resourceapi.DeviceTaint
	// usable is one that the allocator takes on the node.
	usable   bool
	consumes []consumption
}

// model is what an expression can read of a device, without identities.
type model struct{ cel.Device }

type consumption struct {
	set int // of the kind's
	counters
}

// state is a kind whose parts are partly in use.
type state struct {
	// free could be taken one by one, byAdmin by admin access.
	used, free, byAdmin bitset
	// asked are the shapes that the allocator was asked for: nil if they fit.
	asked map[*shape]error
}

// maxStates bounds the states that are known of a kind.
const maxStates = 1 << 14

// memory is what was found out about kinds. It holds until classes change.
type memory struct {
	kinds      map[string]*kind
	attributes *table[resourceapi.QualifiedName, resourceapi.DeviceAttribute]
	capacities *table[resourceapi.QualifiedName, resourceapi.DeviceCapacity]
	counters   *table[string, resourceapi.Counter]
	models     map[modelKey]*modelEntry
	// shared are the attributes of devices that share them, by address.
	shared map[uintptr]look
	asks   map[string]*ask
	shapes map[string]*shape
	terms  map[string]*terms
}

type modelKey struct {
	driver     string
	attributes int
	capacity   int
	multiple   bool
}

type modelEntry struct {
	model
	id uint64
}

// look are attributes taken apart.
type look struct {
	all        attributes // so that its address is no other's
	anonymous  entry[resourceapi.QualifiedName, resourceapi.DeviceAttribute]
	identities []string
}

func newMemory() memory {
	return memory{
		kinds: map[string]*kind{}, attributes: newAttributes(), capacities: newCapacities(), counters: newCounters(),
		models: map[modelKey]*modelEntry{}, shared: map[uintptr]look{},
		asks: map[string]*ask{}, shapes: map[string]*shape{}, terms: map[string]*terms{},
	}
}

// kindOf finds the kind of a node.
func (f *Fleet) kindOf(n *node) (*kind, error) {
	if n.kind != nil {
		return n.kind, nil
	}
	pools, err := f.Pools(n.Node)
	if err != nil {
		return nil, err
	}
	key, plain := f.memory.sign(n.Name, pools)
	k := f.memory.kinds[key]
	if k == nil {
		k = f.memory.describe(pools)
		k.key, k.plain, f.memory.kinds[key] = key, plain, k
	}
	k.nodes++
	n.kind = k
	for _, p := range pools {
		n.offers = append(n.offers, p.from)
	}
	return k, nil
}

// leave takes a node out of its kind.
func (m *memory) leave(n *node) {
	if n.kind == nil {
		return
	}
	if n.kind.nodes--; n.kind.nodes == 0 {
		delete(m.kinds, n.kind.key)
	}
}

// sign writes what makes pools be of a kind, and whether it is a plain one. Others
// are the node's own.
func (m *memory) sign(node string, pools []*Pool) (key string, isPlain bool) {
	var b []byte
	number := func(n int) { b = binary.AppendUvarint(b, uint64(n)) }
	isPlain = true
	var met ordinals
	for _, p := range pools {
		isPlain = isPlain && p.local && p.Usable()
		b = fmt.Appendf(b, "%s\x00%t%t", p.Driver, p.Have == p.Want, p.Invalid == "")
		ordinal := map[string]int{}
		number(len(p.sets))
		for _, s := range p.sets {
			ordinal[s.Name] = len(ordinal)
			number(m.counters.intern(s.Counters).id)
		}
		number(len(p.all))
		for d, visible := range p.parts() {
			isPlain = isPlain && plain(d.Device)
			l := m.look(d.Device, p.from.slim)
			number(int(m.model(d, l).id))
			for _, v := range l.identities {
				number(met.of(v))
			}
			number(len(d.ConsumesCounters))
			for _, c := range d.ConsumesCounters {
				number(ordinal[c.CounterSet])
				number(m.counters.intern(c.Counters).id)
			}
			b = fmt.Appendf(b, "%t%d", visible, len(d.Taints))
			for _, t := range d.Taints {
				b = fmt.Appendf(b, "%q%q%q", t.Key, t.Value, t.Effect)
			}
		}
	}
	if !isPlain {
		b = append(b, node...)
	}
	return string(b), isPlain
}

// plain reports whether nothing of a device depends on the node or on other devices.
func plain(d *resourceapi.Device) bool {
	rest := *d
	rest.Name, rest.Attributes, rest.Capacity, rest.ConsumesCounters, rest.Taints, rest.AllowMultipleAllocations = "", nil, nil, nil, nil, nil
	return reflect.ValueOf(rest).IsZero() && !slices.ContainsFunc(d.ConsumesCounters, func(c resourceapi.DeviceCounterConsumption) bool {
		c.CounterSet, c.Counters = "", nil
		return !reflect.ValueOf(c).IsZero()
	})
}

func (m *memory) look(d *resourceapi.Device, shared bool) look {
	address := uintptr(0)
	if shared && d.Attributes != nil {
		address = reflect.ValueOf(d.Attributes).Pointer()
		if l, ok := m.shared[address]; ok {
			return l
		}
	}
	l := look{d.Attributes, m.attributes.intern(anonymous(d.Attributes)), values(d.Attributes)}
	if address != 0 {
		if len(m.shared) > maxMaps {
			clear(m.shared)
		}
		m.shared[address] = l
	}
	return l
}

func (m *memory) model(d Device, l look) *modelEntry {
	capacity := m.capacities.intern(d.Capacity)
	key := modelKey{d.Driver, l.anonymous.id, capacity.id, isTrue(d.AllowMultipleAllocations)}
	e := m.models[key]
	if e == nil {
		e = &modelEntry{id: uint64(len(m.models))}
		e.Device = cel.Device{Driver: key.driver, AllowMultipleAllocations: d.AllowMultipleAllocations, Attributes: l.anonymous.m, Capacity: capacity.m}
		m.models[key] = e
	}
	return e
}

// describe makes a kind of the pools of a node.
func (m *memory) describe(pools []*Pool) *kind {
	k := &kind{wanted: map[*ask]bitset{}, states: map[string]*state{}}
	for _, p := range pools {
		ordinal := map[string]int{}
		for _, s := range p.sets {
			ordinal[s.Name] = len(k.sets)
			k.sets = append(k.sets, m.counters.intern(s.Counters).m)
		}
		for d, visible := range p.parts() {
			e := part{model: &m.model(d, m.look(d.Device, p.from.slim)).model, taints: d.Taints, usable: visible && p.Usable()}
			if p.Invalid == "" {
				for _, c := range d.ConsumesCounters {
					e.consumes = append(e.consumes, consumption{ordinal[c.CounterSet], m.counters.intern(c.Counters).m})
				}
			}
			k.parts = append(k.parts, e)
		}
	}
	return k
}

// stateOf finds the state of a node if the claims given were gone. One with shared
// devices is not shared with other nodes: what is left of them is not known here.
func (f *Fleet) stateOf(n *node, without []*resourceapi.ResourceClaim) (*state, error) {
	if n.state != nil && len(without) == 0 {
		return n.state, nil
	}
	k, err := f.kindOf(n)
	if err != nil {
		return nil, err
	}
	used, shared := n.used(without)
	s := k.stateWith(used, shared)
	if len(without) == 0 {
		n.state = s
	}
	return s, nil
}

func (k *kind) stateWith(used bitset, shared bool) *state {
	var key strings.Builder
	for _, word := range used {
		_ = binary.Write(&key, binary.NativeEndian, word)
	}
	if s, ok := k.states[key.String()]; ok && !shared {
		return s
	}
	s := k.count(used)
	if !shared {
		if len(k.states) > maxStates {
			clear(k.states)
		}
		k.states[key.String()] = s
	}
	return s
}

// count finds what is free. It is what Pool.Taken says of the devices.
func (k *kind) count(used bitset) *state {
	left := make([]map[string]resource.Quantity, len(k.sets))
	for i, set := range k.sets {
		left[i] = make(map[string]resource.Quantity, len(set))
		for name, c := range set {
			left[i][name] = c.Value.DeepCopy()
		}
	}
	for i, p := range k.parts {
		if !used.has(i) {
			continue
		}
		for _, c := range p.consumes {
			for name, n := range c.counters {
				q := left[c.set][name]
				q.Sub(n.Value)
				left[c.set][name] = q
			}
		}
	}
	short := func(c consumption) bool {
		for name, n := range c.counters {
			if q := left[c.set][name]; q.Cmp(n.Value) < 0 {
				return true
			}
		}
		return false
	}
	s := &state{used: used, asked: map[*shape]error{}}
	for i, p := range k.parts {
		inUse, many := used.has(i), isTrue(p.AllowMultipleAllocations)
		if !p.usable || (!inUse || !many) && slices.ContainsFunc(p.consumes, short) {
			continue
		}
		s.byAdmin.set(i)
		if !inUse || many {
			s.free.set(i)
		}
	}
	return s
}

// wantedBy finds the parts of a kind that a request takes.
func (f *Fleet) wantedBy(ctx context.Context, k *kind, a *ask) (bitset, error) {
	if wanted, ok := k.wanted[a]; ok {
		return wanted, nil
	}
	wanted := bitset{}
	for i, p := range k.parts {
		if !p.usable {
			continue
		}
		v, ok := a.models[p.model]
		if !ok {
			matches, err := f.selects(ctx, a.class, a.selectors, p.Device)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			v = verdict{matches, err != nil}
			a.models[p.model] = v
		}
		if v.fails {
			wanted = nil
			break
		}
		if v.matches && len(notTolerated(p.taints, a.tolerations)) == 0 {
			wanted.set(i)
		}
	}
	k.wanted[a] = wanted
	return wanted, nil
}

// needed finds the parts of a state that decide whether claims fit: those in use, and
// those that a request takes and that are free for it. It reports false if that is
// not known, and none are needed if a request wants more than there are.
func (f *Fleet) needed(ctx context.Context, k *kind, s *state, sh *shape) (needed bitset, hope, known bool, err error) {
	needed, hope = slices.Clone(s.used), true
	for _, alternatives := range sh.requests {
		any := false
		for _, a := range alternatives {
			wanted, err := f.wantedBy(ctx, k, a.ask)
			if wanted == nil || err != nil {
				return nil, false, false, err
			}
			free := s.free
			if a.admin {
				free = s.byAdmin
			}
			if a.all {
				needed.add(wanted, wanted)
			} else {
				needed.add(wanted, free)
			}
			any = any || a.all || wanted.common(free) >= a.count
		}
		hope = hope && any
	}
	return needed, hope, true, nil
}
