package explain

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/pool"
)

// isRefusal tells "does not fit" from what ends the scheduler's attempt.
func isRefusal(err error) bool {
	return errors.Is(err, fleet.ErrNoFit) || errors.Is(err, fleet.ErrSearch)
}

func (f *funnel) cause(kind Kind, subject, text string) Cause {
	return Cause{Kind: kind, Claim: f.Claim, Request: f.Request.Request, Subject: subject, Text: text}
}

// maxGPUs bounds the GPUs in a text; the report has all.
const maxGPUs = 3

// inUse is the cause that others have what the request could take: those in the
// way, and those that were found to be enough to go.
func (f *funnel) inUse(pools []*fleet.Pool, sets [][]*resourceapi.ResourceClaim) Cause {
	c := f.cause(InUse, "", "")
	c.GPUs = withClaims(f.blocked(), pools, sets)
	if slices.ContainsFunc(c.GPUs, func(g GPU) bool { return g.Fragmented }) {
		c.Kind = Fragmented
	}
	c.Text = gpusText(c.GPUs)
	return c
}

func gpusText(gpus []GPU) string {
	var texts []string
	for _, g := range gpus[:min(len(gpus), maxGPUs)] {
		texts = append(texts, g.Text())
	}
	if more := len(gpus) - maxGPUs; more > 0 {
		texts = append(texts, fmt.Sprintf("%s alike", plural(more, "more GPU")))
	}
	return strings.Join(texts, "; ")
}

// noMatch blames the selectors without any one of which a device would be left, or
// else the first after which none is.
func (f *funnel) noMatch(node string) []Cause {
	if len(f.Stages) == 0 || f.Stages[0].Left == 0 {
		return []Cause{f.cause(NoDevices, node, "nobody publishes devices for node "+node)}
	}
	var blamed []int
	for i := range f.selectors {
		if f.without[i] > 0 {
			blamed = append(blamed, i)
		}
	}
	if blamed == nil {
		blamed = []int{slices.IndexFunc(f.Stages[1:], func(s Stage) bool { return s.Left == 0 })}
	}
	var all []Cause
	for _, i := range blamed {
		s, left := f.selectors[i], plural(f.Stages[i].Left, "device")
		if s.class != "" {
			all = append(all, f.cause(NoMatch, s.class, fmt.Sprintf("class %s takes none of %s: %s", s.class, left, short(s.CEL.Expression, 120))))
			continue
		}
		all = append(all, f.cause(NoMatch, s.CEL.Expression, fmt.Sprintf("selector `%s` of request %s takes none of %s", short(s.CEL.Expression, 80), f.r.Name, left)))
	}
	return all
}

// unproven says what is known where no change was found that would be enough.
func (f *funnel) unproven(pools []*fleet.Pool) []Cause {
	if len(f.selected) < f.need() {
		return []Cause{f.cause(Count, fmt.Sprint(f.r.Count), fmt.Sprintf("request %s asks for %d devices, the node has %d that match", f.r.Name, f.r.Count, len(f.selected)))}
	}
	if f.free < f.need() && len(f.blocked()) > 0 {
		return []Cause{f.inUse(pools, nil)}
	}
	return []Cause{f.cause(Other, "", fmt.Sprintf("no %s that match can be allocated at once", plural(f.need(), "device")))}
}

// blameExpression proposes to look first whether a device is of the kind that the
// expression is for.
func (f *funnel) blameExpression() ([]Cause, []Change) {
	x := f.failed
	of := "of request " + f.r.Name
	if x.class != "" {
		of = "of class " + x.class
	}
	expression := ""
	if x.CEL != nil {
		expression = x.CEL.Expression
	}
	cause := f.cause(SelectorError, expression, fmt.Sprintf("selector `%s` %s fails on device %s, and that ends every attempt: %v", short(expression, 80), of, x.device.Name, x.err))
	var changes []Change
	if guard := f.guard(); guard != "" {
		c := Change{Kind: GuardSelector, Class: x.class, Index: x.index, Expression: guard + " && (" + expression + ")",
			Text: fmt.Sprintf("put `%s` before selector `%s` %s", guard, short(expression, 80), of)}
		if x.class == "" {
			c.Claim, c.Request = f.Claim, f.Request.Request
		}
		changes = append(changes, c)
	}
	if x.class == "" && x.CEL != nil {
		changes = append(changes, dropSelector(f.r, x.selector))
	}
	return []Cause{cause}, changes
}

// guard is an expression that is true for the devices that the failing one takes,
// and false for the device on which it fails: a test of the driver or of the type.
func (f *funnel) guard() string {
	var types []string
	for _, d := range f.selected {
		if d.Driver != f.failed.device.Driver {
			return fmt.Sprintf("device.driver == %q", d.Driver)
		}
		if t := typeOf(d.Device); t != "" && !slices.Contains(types, t) {
			types = append(types, t)
		}
	}
	if len(types) != 1 || types[0] == typeOf(f.failed.device) {
		return ""
	}
	return fmt.Sprintf("device.attributes[%q].type == %q", pool.DefaultDriver, types[0])
}

func typeOf(d fleet.Device) string {
	for _, name := range []resourceapi.QualifiedName{"type", pool.DefaultDriver + "/type"} {
		if a, ok := d.Attributes[name]; ok && a.StringValue != nil {
			return *a.StringValue
		}
	}
	return ""
}
