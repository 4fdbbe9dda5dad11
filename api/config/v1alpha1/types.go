// Package v1alpha1 is the configuration of a node's plugin, group config.kerf.dev.
package v1alpha1

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/api/internal/strict"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// APIVersion and Kind of the node configuration.
const (
	APIVersion = "config.kerf.dev/v1alpha1"
	Kind       = "NodeConfiguration"
)

// NodeConfiguration says how the boards of a node are offered. One file can
// serve a whole fleet, because its policies name products.
type NodeConfiguration struct {
	metav1.TypeMeta `json:",inline"`
	// Policies: the first that matches a board's product applies to it. A board
	// that none matches is offered with the defaults: MIG on demand, nothing shared.
	Policies []Policy `json:"policies,omitempty"`
	// Health says what follows from a board's errors.
	Health Health `json:"health,omitempty"`
}

// Health is the policy for Xid errors. Package health knows the defaults.
type Health struct {
	// Xids are the effects of Xid errors, by their number, where they are not to be
	// the default ones. With None an error is of no consequence.
	Xids map[string]gpu.Effect `json:"xids,omitempty"`
	// QuietTime is for how long an error that says nothing lasting about the board
	// must not have come again for its taint to go, 10 minutes by default.
	QuietTime metav1.Duration `json:"quietTime,omitempty"`
}

// Policy is how the boards of some products are offered.
type Policy struct {
	// Products are shell patterns on the product name that the driver reports,
	// such as "NVIDIA H100*". Empty matches every board.
	Products      []string      `json:"products,omitempty"`
	MIG           MIG           `json:"mig,omitempty"`
	TimeSlicing   TimeSlicing   `json:"timeSlicing,omitempty"`
	IdleInstances IdleInstances `json:"idleInstances,omitempty"`
}

// MIG is the policy for partitioning.
type MIG struct {
	Mode MIGMode `json:"mode,omitempty"`
	// MediaExtensions also offers the "+me" placements.
	MediaExtensions bool `json:"mediaExtensions,omitempty"`
}

// MIGMode says who decides whether a board is in MIG mode.
type MIGMode string

// The modes. On boards whose toggle needs a reset (A100), onDemand follows the mode that the board is in.
const (
	// MIGOnDemand offers the whole board and its placements; the mode follows the claim.
	MIGOnDemand MIGMode = "onDemand"
	// MIGKeepOn offers placements only.
	MIGKeepOn MIGMode = "keepOn"
	// MIGOff offers the whole board and replicas only.
	MIGOff MIGMode = "off"
)

// TimeSlicing is the policy for sharing a board in time. It isolates no memory.
type TimeSlicing struct {
	// Replicas is how many claims can share a board: 0 shares nothing, at most gpu.MaxReplicas.
	Replicas int `json:"replicas,omitempty"`
	// Interval is the time slice that the first user of a board sets where its
	// claim asks for none. Empty: replicas have the driver's default, and the slice
	// of a board that is used whole is left as it is.
	Interval gpu.TimeSlice `json:"interval,omitempty"`
}

// IdleInstances is the policy for MIG instances that a claim has given back: the
// next claim of that shape takes one of them in next to no time. A claim that
// needs their memory slices, or the board whole, ends them.
type IdleInstances struct {
	// MaxPerGPU is how many a board keeps, 4 by default. With 0 every instance is destroyed at once.
	MaxPerGPU *int `json:"maxPerGPU,omitempty"`
	// MaxAge is how long one is kept, 10 minutes by default.
	MaxAge metav1.Duration `json:"maxAge,omitempty"`
	// Scope says who may take one: claims of the Namespace that it served last,
	// the default, or all of the Node.
	Scope IdleScope `json:"scope,omitempty"`
}

// IdleScope says whose claims may reuse an idle instance.
type IdleScope string

// The scopes.
const (
	IdleScopeNamespace IdleScope = "Namespace"
	IdleScopeNode      IdleScope = "Node"
)

const (
	defaultIdlePerGPU = 4
	defaultIdleMaxAge = 10 * time.Minute
	defaultQuietTime  = 10 * time.Minute
)

// Parse decodes a file, refuses unknown fields, sets the defaults and validates.
func Parse(data []byte) (*NodeConfiguration, error) {
	c := &NodeConfiguration{}
	if err := strict.Decode(data, Kind, []string{APIVersion}, c); err != nil {
		return nil, fmt.Errorf("node configuration: %w", err)
	}
	for i := range c.Policies {
		setDefaults(&c.Policies[i])
	}
	c.Health = c.Health.withDefaults()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("node configuration: %w", err)
	}
	return c, nil
}

func setDefaults(p *Policy) {
	if p.MIG.Mode == "" {
		p.MIG.Mode = MIGOnDemand
	}
	if p.IdleInstances.MaxPerGPU == nil {
		n := defaultIdlePerGPU
		p.IdleInstances.MaxPerGPU = &n
	}
	if p.IdleInstances.MaxAge.Duration == 0 {
		p.IdleInstances.MaxAge.Duration = defaultIdleMaxAge
	}
	if p.IdleInstances.Scope == "" {
		p.IdleInstances.Scope = IdleScopeNamespace
	}
}

func (h Health) withDefaults() Health {
	if h.QuietTime.Duration == 0 {
		h.QuietTime.Duration = defaultQuietTime
	}
	return h
}

func (h Health) validate() []error {
	var errs []error
	if d := h.QuietTime.Duration; d < 0 {
		errs = append(errs, fmt.Errorf("health.quietTime: %s is below 0", d))
	}
	for number, effect := range h.Xids {
		// As the taint is called, so that no number is there twice.
		if n, err := strconv.ParseUint(number, 10, 32); err != nil || n == 0 || strconv.FormatUint(n, 10) != number {
			errs = append(errs, fmt.Errorf("health.xids: %q is no number of an Xid", number))
		}
		if effects := []gpu.Effect{gpu.EffectNone, gpu.EffectNoSchedule, gpu.EffectNoExecute}; !slices.Contains(effects, effect) {
			errs = append(errs, fmt.Errorf("health.xids.%s: %q is none of %q", number, effect, effects))
		}
	}
	return errs
}

func (c *NodeConfiguration) validate() error {
	errs := c.Health.validate()
	for i, p := range c.Policies {
		for n, pattern := range p.Products {
			if _, err := path.Match(pattern, ""); err != nil {
				errs = append(errs, fmt.Errorf("policies[%d].products[%d]: %q: %w", i, n, pattern, err))
			}
		}
		if modes := []MIGMode{MIGOnDemand, MIGKeepOn, MIGOff}; !slices.Contains(modes, p.MIG.Mode) {
			errs = append(errs, fmt.Errorf("policies[%d].mig.mode: %q is none of %q", i, p.MIG.Mode, modes))
		}
		if n := *p.IdleInstances.MaxPerGPU; n < 0 {
			errs = append(errs, fmt.Errorf("policies[%d].idleInstances.maxPerGPU: %d is below 0", i, n))
		}
		if d := p.IdleInstances.MaxAge.Duration; d < 0 {
			errs = append(errs, fmt.Errorf("policies[%d].idleInstances.maxAge: %s is below 0; maxPerGPU: 0 keeps none", i, d))
		}
		if scopes := []IdleScope{IdleScopeNamespace, IdleScopeNode}; !slices.Contains(scopes, p.IdleInstances.Scope) {
			errs = append(errs, fmt.Errorf("policies[%d].idleInstances.scope: %q is none of %q", i, p.IdleInstances.Scope, scopes))
		}
		if n := p.TimeSlicing.Replicas; n < 0 || n > gpu.MaxReplicas {
			errs = append(errs, fmt.Errorf("policies[%d].timeSlicing.replicas: %d is not in 0..%d: the scheduler's search time grows with every replica on the node", i, n, gpu.MaxReplicas))
		}
		if err := p.TimeSlicing.Interval.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("policies[%d].timeSlicing.interval: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// HealthPolicy returns the policy for errors. A nil configuration has the defaults.
func (c *NodeConfiguration) HealthPolicy() Health {
	if c == nil {
		return Health{}.withDefaults()
	}
	return c.Health.withDefaults()
}

// For returns the policy of a board. A nil configuration has the defaults only.
func (c *NodeConfiguration) For(productName string) Policy {
	if c != nil {
		for _, p := range c.Policies {
			matches := func(pattern string) bool {
				ok, err := path.Match(pattern, productName)
				return ok && err == nil
			}
			if len(p.Products) == 0 || slices.ContainsFunc(p.Products, matches) {
				return p
			}
		}
	}
	var p Policy
	setDefaults(&p)
	return p
}
