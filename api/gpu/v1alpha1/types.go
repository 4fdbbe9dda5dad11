// Package v1alpha1 is what a claim can say in its opaque parameters, group gpu.kerf.dev.
package v1alpha1

import (
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/api/internal/strict"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// Kind of the parameters.
const Kind = "GpuClaimParameters"

// apiVersions that are accepted: ours first, then the one that older manifests were written for.
var apiVersions = []string{"gpu.kerf.dev/v1alpha1", "gpu.nvidia.com/v1alpha1"}

// GpuClaimParameters are the parameters of a claim. They check an allocation and
// set the time slice; what is allocated is chosen by device classes and selectors.
type GpuClaimParameters struct {
	metav1.TypeMeta `json:",inline"`
	// Metadata is accepted, because manifests that were once objects have it, and not used.
	Metadata *metav1.ObjectMeta     `json:"metadata,omitempty"`
	Spec     GpuClaimParametersSpec `json:"spec,omitempty"`
}

// GpuClaimParametersSpec is the content of the parameters.
type GpuClaimParametersSpec struct {
	MIG         *MIG         `json:"mig,omitempty"`
	TimeSlicing *TimeSlicing `json:"timeSlicing,omitempty"`
}

// MIG states which instances the claim expects.
type MIG struct {
	// Profile is the name of the expected profile, such as "1g.10gb". Empty expects nothing.
	Profile string `json:"profile,omitempty"`
	// Count is the expected number of devices of the request. 0 expects nothing.
	Count int `json:"count,omitempty"`
}

// TimeSlicing says how the claim wants to share a GPU that it has whole or a replica of.
type TimeSlicing struct {
	// SchedulingPolicy chooses the time slice. Empty leaves it to the node's configuration.
	SchedulingPolicy SchedulingPolicy `json:"schedulingPolicy,omitempty"`
	// ContextSwitchInterval is in milliseconds. It is accepted and has no effect.
	ContextSwitchInterval int `json:"contextSwitchInterval,omitempty"`
	// Replicas is accepted, from 0 to gpu.MaxReplicas, and has no effect: how many
	// claims share a board is the node's configuration.
	Replicas int `json:"replicas,omitempty"`
}

// SchedulingPolicy is how long a process may keep the GPU from others.
type SchedulingPolicy string

// The policies, with the time slice of each.
const (
	PolicyConservative SchedulingPolicy = "conservative" // Long
	PolicyDefault      SchedulingPolicy = "default"      // Default
	PolicyAggressive   SchedulingPolicy = "aggressive"   // Short
)

// Interval is the time slice that is asked for, empty for none. The receiver may be nil.
func (t *TimeSlicing) Interval() gpu.TimeSlice {
	if t == nil {
		return ""
	}
	switch t.SchedulingPolicy {
	case PolicyConservative:
		return gpu.TimeSliceLong
	case PolicyDefault:
		return gpu.TimeSliceDefault
	case PolicyAggressive:
		return gpu.TimeSliceShort
	}
	return ""
}

// Unenforced says which fields are given and have no effect, and why. The receiver may be nil.
func (t *TimeSlicing) Unenforced() []string {
	var all []string
	if t != nil && t.ContextSwitchInterval > 0 {
		all = append(all, fmt.Sprintf("spec.timeSlicing.contextSwitchInterval: the driver cannot be told to switch every %d ms: it has the time slices %q, which schedulingPolicy chooses from", t.ContextSwitchInterval, gpu.TimeSlices()))
	}
	if t != nil && t.Replicas > 0 {
		all = append(all, "spec.timeSlicing.replicas: how many claims share a GPU is no claim's to choose: it is timeSlicing.replicas of the node configuration")
	}
	return all
}

func (t *TimeSlicing) validate() error {
	if t == nil {
		return nil
	}
	var errs []error
	if t.SchedulingPolicy != "" && t.Interval() == "" {
		errs = append(errs, fmt.Errorf("spec.timeSlicing.schedulingPolicy: %q is none of %q", t.SchedulingPolicy, []SchedulingPolicy{PolicyConservative, PolicyDefault, PolicyAggressive}))
	}
	if t.ContextSwitchInterval < 0 {
		errs = append(errs, fmt.Errorf("spec.timeSlicing.contextSwitchInterval: %d is negative", t.ContextSwitchInterval))
	}
	if t.Replicas < 0 || t.Replicas > gpu.MaxReplicas {
		errs = append(errs, fmt.Errorf("spec.timeSlicing.replicas: %d is not in 0..%d: the scheduler's search time grows with every replica on the node", t.Replicas, gpu.MaxReplicas))
	}
	return errors.Join(errs...)
}

// Parse decodes opaque parameters and refuses unknown fields by name.
func Parse(data []byte) (*GpuClaimParameters, error) {
	p := &GpuClaimParameters{}
	if err := strict.Decode(data, Kind, apiVersions, p); err != nil {
		return nil, err
	}
	if p.Spec.MIG != nil && p.Spec.MIG.Count < 0 {
		return nil, fmt.Errorf("spec.mig.count: %d is negative", p.Spec.MIG.Count)
	}
	if err := p.Spec.TimeSlicing.validate(); err != nil {
		return nil, err
	}
	return p, nil
}

// Check compares the expectation with what a request was given: the profiles
// of its devices, "" for a device that is no MIG instance. The receiver may be nil.
func (m *MIG) Check(profiles []string) error {
	if m == nil {
		return nil
	}
	var errs []error
	for _, got := range profiles {
		switch {
		case m.Profile == "" || got == m.Profile:
		case got == "":
			errs = append(errs, fmt.Errorf("spec.mig.profile: wants %s, but the allocated device is no MIG instance: name a device class of MIG devices in the request", m.Profile))
		default:
			errs = append(errs, fmt.Errorf("spec.mig.profile: wants %s, but %s is allocated: select the profile in the request, by its device class or with a selector on the attribute \"profile\"", m.Profile, got))
		}
	}
	if m.Count != 0 && m.Count != len(profiles) {
		errs = append(errs, fmt.Errorf("spec.mig.count: wants %d devices, but %d are allocated: set the request's exactly.count", m.Count, len(profiles)))
	}
	return errors.Join(errs...)
}
