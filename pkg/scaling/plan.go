package scaling

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

// Placer knows what is free. Free slices do not mean that a shape fits, so it
// finds places, one replica at a time, and remembers them until the plan is made.
// Workloads are the namespace/name of their hints.
type Placer interface {
	// Place takes a free place for one more replica, and reports whether there was one.
	Place(workload string) (bool, error)
	// MakeRoom takes a place for one more replica that is free once replicas of the donors have gone: of as few as
	// possible, of the first donor that can, and of none more than its number. With elastic, of those alone that are on
	// the nodes of the pool that belong to nobody. No replicas are the answer that there is none.
	MakeRoom(workload string, donors []Donor, elastic bool) ([]Replica, error)
	// NewNodes says where replicas come from that nobody can make room for.
	NewNodes(workload string) NewNodes
}

// Donor is a workload, and how many replicas it can give.
type Donor struct {
	Workload string
	Replicas int
}

// Replica is a pod of a workload.
type Replica struct{ Workload, Name string }

// NewNodes says whether more nodes would help, and what brings them.
type NewNodes struct {
	State NewNodesState
	// Message says who brings them, or why nobody does.
	Message string
}

// NewNodesState says whether more nodes would help.
type NewNodesState string

// The answers.
const (
	// NewNodesAutomatic: an autoscaler brings nodes.
	NewNodesAutomatic NewNodesState = "Automatic"
	// NewNodesByHand: another node would have the shape, but nothing here brings one.
	NewNodesByHand NewNodesState = "ByHand"
	// NewNodesNone: no kind of node has the shape.
	NewNodesNone NewNodesState = "None"
)

// Workload is what a plan needs to know of one.
type Workload struct {
	// Name is that of its hint, namespace/name.
	Name string
	// Pool in which it gives and takes. Without one it does neither.
	Pool     string
	Priority int32
	Hint     Hint
	// Pending replicas have been asked for and have no devices.
	Pending int
	// Spare is how many replicas it does not need, as Policy.Spare says.
	Spare int
	// Leaving are replicas that nobody asks for any more, and that still have their devices.
	Leaving int
}

// Outcome is what becomes of a workload's hint when all want something at once.
type Outcome struct {
	Hint Hint
	// ScaleTo is how many replicas to set at once. See the field of the API.
	ScaleTo     int
	Feasibility v1alpha1.Feasibility
	// Gives are the replicas that are to go, and To the workloads that they make room for.
	Gives []Replica
	To    []string
}

// Plan shares out what is free, and what can be made free, by priority. Replicas
// that have been asked for come before those that will be. A workload takes from
// what is free, then from those of equal or lower priority that do not need what
// they have: first on nodes that belong to nobody, then on any. It is made anew
// every time, from what is there then: nothing is promised and nothing is kept.
func Plan(workloads []Workload, placer Placer) map[string]Outcome {
	ordered := slices.SortedFunc(slices.Values(workloads), func(a, b Workload) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Name, b.Name))
	})
	p := plan{placer: placer, workloads: ordered, gone: map[string][]Replica{}, to: map[string][]string{}}
	places := make([]places, len(ordered))
	// The scheduler gives what is free to those that wait already, whoever they are.
	for i, w := range ordered {
		places[i].takeFree(placer, w.Name, w.pending())
	}
	for i, w := range ordered {
		f := &places[i]
		f.takeFree(placer, w.Name, w.pending()-f.now+w.growth())
		p.makeRoom(f, w, w.pending()+w.growth()-f.now)
	}
	outcomes := make(map[string]Outcome, len(ordered))
	for i, w := range ordered {
		outcomes[w.Name] = p.outcome(w, places[i])
	}
	return outcomes
}

type plan struct {
	placer    Placer
	workloads []Workload
	// gone are the replicas of a workload whose places were given to others, and to to whom.
	gone map[string][]Replica
	to   map[string][]string
}

// places are those that were found for a workload, and how many of its replicas have none.
type places struct {
	now, nodes int
	after      []v1alpha1.Donation
	err        error
}

func (f *places) takeFree(placer Placer, workload string, n int) {
	for ; n > 0 && f.err == nil; n-- {
		ok, err := placer.Place(workload)
		if f.err = err; !ok {
			return // Further ones of the same shape have none either.
		}
		f.now++
	}
}

// makeRoom looks for n places that others can give.
func (p *plan) makeRoom(f *places, w Workload, n int) {
	for _, elastic := range []bool{true, false} {
		for donors := p.donors(w); n > 0 && f.err == nil && len(donors) > 0; donors = p.donors(w) {
			gone, err := p.placer.MakeRoom(w.Name, donors, elastic)
			if f.err = err; len(gone) == 0 {
				break
			}
			n--
			for _, r := range gone {
				f.wait(r.Workload)
				p.gone[r.Workload] = append(p.gone[r.Workload], r)
				if !slices.Contains(p.to[r.Workload], w.Name) {
					p.to[r.Workload] = append(p.to[r.Workload], w.Name)
				}
			}
		}
	}
	f.nodes = n
}

func (f *places) wait(donor string) {
	i := slices.IndexFunc(f.after, func(d v1alpha1.Donation) bool { return d.Hint == donor })
	if i < 0 {
		i = len(f.after)
		f.after = append(f.after, v1alpha1.Donation{Hint: donor})
	}
	f.after[i].Replicas++
}

// donors are who may give to a workload, the lowest priority first.
func (p *plan) donors(w Workload) []Donor {
	var all []Donor
	if w.Pool == "" {
		return nil
	}
	for _, d := range slices.Backward(p.workloads) {
		if d.Name == w.Name || d.Pool != w.Pool || d.Priority > w.Priority {
			continue
		}
		n := d.Leaving - len(p.gone[d.Name])
		if d.pending() == 0 && d.growth() == 0 {
			n += d.Spare
		}
		if n > 0 {
			all = append(all, Donor{d.Name, n})
		}
	}
	return all
}

func (p *plan) outcome(w Workload, f places) Outcome {
	o := Outcome{Hint: w.Hint, ScaleTo: w.Hint.Desired, Gives: p.gone[w.Name], To: p.to[w.Name]}
	n := w.pending() + w.growth()
	switch {
	case f.err != nil:
		o.Feasibility = v1alpha1.Feasibility{State: v1alpha1.FeasibilityUnknown, Message: f.err.Error()}
		return o
	case n == 0:
		o.Feasibility = v1alpha1.Feasibility{State: v1alpha1.FitsNow, Message: "no further replica is needed"}
	default:
		o.Feasibility = v1alpha1.Feasibility{State: v1alpha1.FitsNow, Now: int32(f.now), After: f.after, Nodes: int32(f.nodes)}
		parts := []string{fmt.Sprintf("%d of %d further replicas fit now", f.now, n)}
		waits := n - f.now - f.nodes // A place can need several replicas of others to go.
		if waits > 0 {
			o.Feasibility.State = v1alpha1.FitsAfter
			parts = append(parts, fmt.Sprintf("%d once %s", waits, givers(f.after)))
		}
		automatic := false
		if f.nodes > 0 {
			o.Feasibility.State = v1alpha1.NeedsNodes
			nodes := p.placer.NewNodes(w.Name)
			automatic = nodes.State == NewNodesAutomatic
			if nodes.State == NewNodesNone {
				o.Feasibility.State = v1alpha1.FitsNever
			}
			parts = append(parts, fmt.Sprintf("%d need nodes: %s", f.nodes, nodes.Message))
		}
		o.Feasibility.Message = strings.Join(parts, "; ")
		if w.growth() > 0 {
			o.ScaleTo = w.Hint.Current + atOnce(w.pending(), f.now, waits, f.nodes, automatic)
		}
	}
	// What goes anyway has been given already.
	if given := len(o.Gives) - w.Leaving; given > 0 && w.Hint.Current-given < w.Hint.Desired {
		o.Hint = w.Hint.with(w.Hint.Current-given, v1alpha1.ReasonGivesWay,
			fmt.Sprintf("it does not need %d, and %s needs more (%s)", given, strings.Join(o.To, ", "), w.Hint.Message))
		o.ScaleTo = o.Hint.Desired
	}
	return o
}

// growth is how many replicas more than now there should be.
func (w Workload) growth() int { return max(0, w.Hint.Desired-w.Hint.Current) }

// pending are the replicas that have no devices and should get some.
func (w Workload) pending() int { return max(0, w.Pending-max(0, w.Hint.Current-w.Hint.Desired)) }

// atOnce is how many replicas more to ask for. Those that are pending take the
// first places that come, in the order of now, waiting and nodes.
func atOnce(pending, now, waits, nodes int, automatic bool) int {
	more := max(0, now-pending)
	if automatic {
		more += nodes - min(nodes, max(0, pending-now-waits))
	}
	return more
}

func givers(all []v1alpha1.Donation) string {
	var parts []string
	for _, d := range all {
		parts = append(parts, fmt.Sprintf("%s has given %d", d.Hint, d.Replicas))
	}
	return strings.Join(parts, " and ")
}
