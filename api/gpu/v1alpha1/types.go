// Package v1alpha1 is what a claim can say in its opaque parameters, group gpu.kerf.dev.
package v1alpha1

import (
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/api/internal/strict"
)

// Kind of the parameters.
const Kind = "GpuClaimParameters"

// apiVersions that are accepted: ours first, then the one that older manifests were written for.
var apiVersions = []string{"gpu.kerf.dev/v1alpha1", "gpu.nvidia.com/v1alpha1"}

// GpuClaimParameters are the parameters of a claim. They check an allocation;
// what is allocated is chosen by device classes and selectors.
type GpuClaimParameters struct {
	metav1.TypeMeta `json:",inline"`
	// Metadata is accepted, because manifests that were once objects have it, and not used.
	Metadata *metav1.ObjectMeta     `json:"metadata,omitempty"`
	Spec     GpuClaimParametersSpec `json:"spec,omitempty"`
}

// GpuClaimParametersSpec is the content of the parameters.
type GpuClaimParametersSpec struct {
	MIG *MIG `json:"mig,omitempty"`
}

// MIG states which instances the claim expects.
type MIG struct {
	// Profile is the name of the expected profile, such as "1g.10gb". Empty expects nothing.
	Profile string `json:"profile,omitempty"`
	// Count is the expected number of devices of the request. 0 expects nothing.
	Count int `json:"count,omitempty"`
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
	return p, nil
}

// Check compares the expectation with what a request was given: the profiles
// of its devices, "" for a device that is no MIG instance.
func (p *GpuClaimParameters) Check(profiles []string) error {
	if p.Spec.MIG == nil {
		return nil
	}
	want := p.Spec.MIG
	var errs []error
	for _, got := range profiles {
		switch {
		case want.Profile == "" || got == want.Profile:
		case got == "":
			errs = append(errs, fmt.Errorf("spec.mig.profile: wants %s, but the allocated device is no MIG instance: name a device class of MIG devices in the request", want.Profile))
		default:
			errs = append(errs, fmt.Errorf("spec.mig.profile: wants %s, but %s is allocated: select the profile in the request, by its device class or with a selector on the attribute \"profile\"", want.Profile, got))
		}
	}
	if want.Count != 0 && want.Count != len(profiles) {
		errs = append(errs, fmt.Errorf("spec.mig.count: wants %d devices, but %d are allocated: set the request's exactly.count", want.Count, len(profiles)))
	}
	return errors.Join(errs...)
}
