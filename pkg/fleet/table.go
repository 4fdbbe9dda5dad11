package fleet

import (
	"encoding/binary"
	"hash/maphash"
	"maps"
	"reflect"
	"slices"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
)

// maxMaps bounds a table. One that is full starts anew: maps that are in use stay
// as they are, and are no longer shared with those that come.
const maxMaps = 1 << 16

// table keeps one map of each content.
type table[K ~string, V any] struct {
	seed  maphash.Seed
	write func(*maphash.Hash, V)
	equal func(a, b V) bool
	known map[uint64][]entry[K, V]
	// at are the same, by address: most maps that are asked for have been interned before.
	at map[uintptr]entry[K, V]
	// size is how many are known, next the number of the next one.
	size, next int
}

type entry[K ~string, V any] struct {
	m map[K]V
	// id is never given again.
	id int
}

func newTable[K ~string, V any](write func(*maphash.Hash, V), equal func(a, b V) bool) *table[K, V] {
	return &table[K, V]{seed: maphash.MakeSeed(), write: write, equal: equal, known: map[uint64][]entry[K, V]{}, at: map[uintptr]entry[K, V]{}}
}

// intern returns the map of that content that came first.
func (t *table[K, V]) intern(m map[K]V) entry[K, V] {
	address := reflect.ValueOf(m).Pointer()
	if e, ok := t.at[address]; ok {
		return e
	}
	var h maphash.Hash
	h.SetSeed(t.seed)
	sum := uint64(0) // whatever the order
	for k, v := range m {
		h.Reset()
		_, _ = h.WriteString(string(k))
		t.write(&h, v)
		sum += h.Sum64()
	}
	for _, e := range t.known[sum] {
		if (e.m == nil) == (m == nil) && maps.EqualFunc(e.m, m, t.equal) {
			return e
		}
	}
	if t.size++; t.size > maxMaps {
		clear(t.known)
		clear(t.at)
		t.size = 1
	}
	e := entry[K, V]{m, t.next}
	t.next++
	t.known[sum], t.at[address] = append(t.known[sum], e), e
	return e
}

type (
	attributes = map[resourceapi.QualifiedName]resourceapi.DeviceAttribute
	counters   = map[string]resourceapi.Counter
)

func newAttributes() *table[resourceapi.QualifiedName, resourceapi.DeviceAttribute] {
	return newTable[resourceapi.QualifiedName](writeAttribute, equalAttributes)
}

func newCapacities() *table[resourceapi.QualifiedName, resourceapi.DeviceCapacity] {
	return newTable[resourceapi.QualifiedName](
		func(h *maphash.Hash, c resourceapi.DeviceCapacity) { writeQuantity(h, c.Value) },
		func(a, b resourceapi.DeviceCapacity) bool {
			return equalQuantities(a.Value, b.Value) &&
				(a.RequestPolicy == b.RequestPolicy || equality.Semantic.DeepEqual(a.RequestPolicy, b.RequestPolicy))
		})
}

func newCounters() *table[string, resourceapi.Counter] {
	return newTable[string](
		func(h *maphash.Hash, c resourceapi.Counter) { writeQuantity(h, c.Value) },
		func(a, b resourceapi.Counter) bool { return equalQuantities(a.Value, b.Value) })
}

// writeAttribute need not write everything: equalAttributes has the last word.
func writeAttribute(h *maphash.Hash, a resourceapi.DeviceAttribute) {
	switch {
	case a.StringValue != nil:
		_, _ = h.WriteString(*a.StringValue)
	case a.VersionValue != nil:
		_, _ = h.WriteString(*a.VersionValue)
	case a.IntValue != nil:
		writeInt(h, *a.IntValue)
	}
}

func writeQuantity(h *maphash.Hash, q resource.Quantity) { writeInt(h, q.Value()) }

func writeInt(h *maphash.Hash, n int64) {
	var b [8]byte
	_, _ = h.Write(binary.NativeEndian.AppendUint64(b[:0], uint64(n)))
}

func equalAttributes(a, b resourceapi.DeviceAttribute) bool {
	return equalPointers(a.StringValue, b.StringValue) && equalPointers(a.VersionValue, b.VersionValue) &&
		equalPointers(a.IntValue, b.IntValue) && equalPointers(a.BoolValue, b.BoolValue) &&
		slices.Equal(a.StringValues, b.StringValues) && slices.Equal(a.VersionValues, b.VersionValues) &&
		slices.Equal(a.IntValues, b.IntValues) && slices.Equal(a.BoolValues, b.BoolValues)
}

func equalQuantities(a, b resource.Quantity) bool { return a.Format == b.Format && a.Cmp(b) == 0 }

func equalPointers[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }
