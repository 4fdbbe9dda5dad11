package scaling

import (
	"fmt"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

// Placer knows what is free. Free slices do not mean that a shape fits, so it
// is asked about replicas of a workload, whose shape it knows. Workloads are
// the namespace/name of their hints.
type Placer interface {
	// Fit returns how many of n more replicas can be placed when so many replicas of each of the gone have gone.
	Fit(workload string, n int, gone map[string]int) int
	// NewNodes says where replicas go that do not fit.
	NewNodes(workload string) NewNodes
}

// NewNodes says whether more nodes would help.
type NewNodes string

// The answers.
const (
	// NewNodesAutomatic: an autoscaler brings nodes that have the shape.
	NewNodesAutomatic NewNodes = "Automatic"
	// NewNodesByHand: a new node would have the shape, but nothing brings one.
	NewNodesByHand NewNodes = "ByHand"
	// NewNodesNone: no kind of node has the shape.
	NewNodesNone NewNodes = "None"
)

// Donor is a workload that may give replicas away, in favour of one of higher priority.
type Donor struct {
	Workload string
	// Spare is how many it has above what it needs and above its minimum.
	Spare int
}

// Feasible says whether what a hint desires can be had. Donors are asked in the
// order given, and each for as few replicas as make all of the hint's fit.
func Feasible(workload string, h Hint, donors []Donor, placer Placer) v1alpha1.Feasibility {
	n := h.Desired - h.Current
	if n <= 0 {
		return v1alpha1.Feasibility{State: v1alpha1.FitsNow, Message: "no further replica is needed"}
	}
	now := placer.Fit(workload, n, nil)
	if now >= n {
		return v1alpha1.Feasibility{State: v1alpha1.FitsNow, Message: fmt.Sprintf("all of %d more fit", n)}
	}
	for _, d := range donors {
		for give := 1; give <= d.Spare; give++ {
			if placer.Fit(workload, n, map[string]int{d.Workload: give}) >= n {
				return v1alpha1.Feasibility{State: v1alpha1.FitsAfter, After: d.Workload,
					Message: fmt.Sprintf("%d of %d more fit, all once %s has given %d", now, n, d.Workload, give)}
			}
		}
	}
	f := v1alpha1.Feasibility{State: v1alpha1.NeedsNodes, Message: fmt.Sprintf("%d of %d more fit; ", now, n)}
	switch placer.NewNodes(workload) {
	case NewNodesAutomatic:
		f.Message += "an autoscaler can bring nodes for the others"
	case NewNodesByHand:
		f.Message += "the others need nodes, and no autoscaler here brings them"
	default:
		f.State = v1alpha1.FitsNever
		f.Message += "no node has the shape for the others"
	}
	return f
}
