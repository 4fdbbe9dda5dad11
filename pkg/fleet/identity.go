package fleet

import (
	"hash/maphash"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	resourceapi "k8s.io/api/resource/v1"
)

// identities are the attributes whose value names a single device, or the board of
// a few: nothing but the difference between two of them says anything.
var identities = []string{"parentUUID", "pciBusID", "uuid"}

func isIdentity(name resourceapi.QualifiedName) bool {
	return slices.Contains(identities, string(name[strings.LastIndexByte(string(name), '/')+1:]))
}

// readsIdentity reports whether the value of an expression may depend on such an
// attribute. It sees their names, ways to walk over all attributes, and names that
// are put together; in doubt it says yes.
func readsIdentity(expression string) bool {
	return identityName.MatchString(expression) || roundabout.MatchString(literal.ReplaceAllString(expression, `""`))
}

var (
	identityName = regexp.MustCompile(strings.Join(identities, "|") + `|\\[uUxX0-7]`)
	literal      = regexp.MustCompile(`"(\\.|[^"\\])*"|'(\\.|[^'\\])*'`)
	roundabout   = regexp.MustCompile(`\+|\b(all|exists|exists_one|existsOne|filter|format|join|map|replace|sortBy|transform\w*)\s*\(`)
)

// values are the identities of a device, in the order of the attributes' names.
func values(a attributes) []string {
	var names []resourceapi.QualifiedName
	for name, v := range a {
		if isIdentity(name) && v.StringValue != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = *a[name].StringValue
	}
	return all
}

// ordinals number the identities that were met, in their order. It keeps a hash of
// each, because there are some for each GPU of a cluster.
type ordinals []uint64

var identitySeed = maphash.MakeSeed()

func (o *ordinals) of(value string) int {
	h := maphash.String(identitySeed, value)
	i := slices.Index(*o, h)
	if i < 0 {
		i = len(*o)
		*o = append(*o, h)
	}
	return i
}

// alias writes the identities of a device as numbers, which are equal where they
// are. It returns the same map if there are none.
func (o *ordinals) alias(a attributes) attributes {
	if !slices.ContainsFunc(slices.Collect(maps.Keys(a)), isIdentity) {
		return a
	}
	for _, v := range values(a) {
		o.of(v) // In an order that does not change.
	}
	aliased := make(attributes, len(a))
	for name, v := range a {
		if isIdentity(name) && v.StringValue != nil {
			n := strconv.Itoa(o.of(*v.StringValue))
			v.StringValue = &n
		}
		aliased[name] = v
	}
	return aliased
}

// anonymous are the attributes with empty identities.
func anonymous(a attributes) attributes {
	if !slices.ContainsFunc(slices.Collect(maps.Keys(a)), isIdentity) {
		return a
	}
	rest := maps.Clone(a)
	for name, v := range rest {
		if isIdentity(name) && v.StringValue != nil {
			v.StringValue = new(string)
			rest[name] = v
		}
	}
	return rest
}
