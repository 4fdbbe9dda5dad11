package fleet

import "math/bits"

// bitset is a set of small numbers.
type bitset []uint64

func (b bitset) has(i int) bool { return i/64 < len(b) && b[i/64]&(1<<(i%64)) != 0 }

func (b *bitset) set(i int) {
	for len(*b) <= i/64 {
		*b = append(*b, 0)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

func (b bitset) clear(i int) {
	if i/64 < len(b) {
		b[i/64] &^= 1 << (i % 64)
	}
}

// add adds the numbers that are in both.
func (b *bitset) add(x, y bitset) {
	n := min(len(x), len(y))
	for len(*b) < n {
		*b = append(*b, 0)
	}
	for i := range n {
		(*b)[i] |= x[i] & y[i]
	}
}

// common is how many numbers are in both.
func (b bitset) common(other bitset) int64 {
	n := 0
	for i := range min(len(b), len(other)) {
		n += bits.OnesCount64(b[i] & other[i])
	}
	return int64(n)
}

// within reports whether each number is in one of the others.
func (b bitset) within(x, y bitset) bool {
	at := func(s bitset, i int) uint64 {
		if i < len(s) {
			return s[i]
		}
		return 0
	}
	for i := range b {
		if b[i]&^(at(x, i)|at(y, i)) != 0 {
			return false
		}
	}
	return true
}
