package v1alpha1

import (
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kerf-project/kerf/api/internal/strict"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// FleetKind is the kind of a fleet of nodes that need not exist.
const FleetKind = "Fleet"

// maxFleetNodes bounds what a misplaced zero costs.
const maxFleetNodes = 10_000

// Fleet is a fleet of nodes by their boards, for what-if questions.
type Fleet struct {
	metav1.TypeMeta `json:",inline"`
	Nodes           []FleetNodes `json:"nodes"`
}

// FleetNodes are nodes that are alike.
type FleetNodes struct {
	// Name is that of the node, or with a Count the first part of the names: name-0, name-1, ...
	Name string `json:"name"`
	// Count is how many there are, 1 if it is not set.
	Count *int `json:"count,omitempty"`
	// Boards is such as "8xH100-SXM5-80GB,2xL40S".
	Boards string `json:"boards"`
	// Labels are those of the nodes, for the node selectors of pods.
	Labels map[string]string `json:"labels,omitempty"`
	// Config is how the boards are offered, as in a NodeConfiguration.
	Config *NodeConfiguration `json:"config,omitempty"`
}

// ParseFleet decodes a file, refuses unknown fields, sets the defaults and validates.
func ParseFleet(data []byte) (*Fleet, error) {
	f := &Fleet{}
	if err := strict.Decode(data, FleetKind, []string{APIVersion}, f); err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	var errs []error
	names := map[string]bool{}
	total := 0
	for i, n := range f.Nodes {
		if _, err := gpu.ParseBoards(n.Boards); err != nil {
			errs = append(errs, fmt.Errorf("nodes[%d].boards: %w", i, err))
		}
		if n.Count != nil && *n.Count < 0 {
			errs = append(errs, fmt.Errorf("nodes[%d].count: %d is below 0", i, *n.Count))
		}
		if total += n.Number(); total > maxFleetNodes {
			errs = append(errs, fmt.Errorf("nodes[%d].count: more than %d nodes in all", i, maxFleetNodes))
			break
		}
		for k := range n.Number() {
			name := n.NodeName(k)
			if names[name] {
				errs = append(errs, fmt.Errorf("nodes[%d].name: two nodes would be called %s", i, name))
				break
			}
			names[name] = true
		}
		for _, message := range validation.IsDNS1123Subdomain(n.Name) {
			errs = append(errs, fmt.Errorf("nodes[%d].name: %q: %s", i, n.Name, message))
		}
		if n.Config == nil {
			continue
		}
		for k := range n.Config.Policies {
			setDefaults(&n.Config.Policies[k])
		}
		n.Config.Health = n.Config.Health.withDefaults()
		if err := n.Config.validate(); err != nil {
			errs = append(errs, fmt.Errorf("nodes[%d].config: %w", i, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("fleet: %w", err)
	}
	return f, nil
}

// Number is how many nodes they are.
func (n FleetNodes) Number() int {
	if n.Count == nil {
		return 1
	}
	return *n.Count
}

// NodeName is the name of the i-th of them.
func (n FleetNodes) NodeName(i int) string {
	if n.Count == nil {
		return n.Name
	}
	return fmt.Sprintf("%s-%d", n.Name, i)
}
