package plugin

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	gpuv1alpha1 "github.com/kerf-project/kerf/api/gpu/v1alpha1"
	nvidiav1beta1 "github.com/kerf-project/kerf/api/nvidia/v1beta1"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// parametersNotEnforced is the condition of a device whose parameters have fields
// that are accepted and have no effect.
const parametersNotEnforced = "ParametersNotEnforced"

// parameters are one opaque configuration, of whatever kind it was written as.
type parameters struct {
	kind, source string
	// requests are those that it names; none means all.
	requests []string
	// mig is what it expects of MIG devices, nil where it says nothing of them.
	mig *gpuv1alpha1.MIG
	// shares is true where it says how a device is shared: which slice, and what of it has no effect.
	shares     bool
	slice      gpu.TimeSlice
	unenforced []string
}

// parse reads one configuration.
func parse(config resourceapi.DeviceAllocationConfiguration) (parameters, error) {
	p := parameters{source: "claim", requests: config.Requests}
	if config.Source == resourceapi.AllocationConfigSourceClass {
		p.source = "device class"
	}
	raw := config.Opaque.Parameters.Raw
	var meta metav1.TypeMeta
	// What is no object has no type, and is refused below.
	if json.Unmarshal(raw, &meta) == nil && meta.APIVersion == nvidiav1beta1.APIVersion {
		c, err := nvidiav1beta1.Parse(raw)
		if err != nil {
			return p, fmt.Errorf("opaque parameters of the %s: %w", p.source, err)
		}
		p.kind, p.shares, p.slice = c.Kind, c.Sharing != nil, c.Interval()
		return p, nil
	}
	c, err := gpuv1alpha1.Parse(raw)
	if err != nil {
		return p, fmt.Errorf("opaque parameters of the %s: %w", p.source, err)
	}
	slicing := c.Spec.TimeSlicing
	p.kind, p.mig, p.shares, p.slice, p.unenforced = c.Kind, c.Spec.MIG, slicing != nil, slicing.Interval(), slicing.Unenforced()
	return p, nil
}

// covers returns the name by which the parameters cover a result's request.
func (p parameters) covers(request string) (string, bool) {
	main := mainRequest(request)
	if len(p.requests) == 0 {
		return main, true
	}
	for _, name := range p.requests {
		if name == request || name == main {
			return name, true
		}
	}
	return "", false
}

// misfit returns why a device can't be shared as the parameters say, or nil.
func (p parameters) misfit(d journal.ClaimDevice) error {
	mig := d.Device.Type == gpu.TypeMIG
	switch {
	case !p.shares || mig == (p.kind == nvidiav1beta1.MigDeviceConfig):
		return nil
	case mig:
		return fmt.Errorf("%s: device %s is a MIG instance, whose time slice cannot be set: leave time-slicing out, or claim a whole GPU or a time-slice replica", p.kind, d.Name)
	default:
		return fmt.Errorf("%s: device %s is no MIG instance: use %s", p.kind, d.Name, nvidiav1beta1.GpuConfig)
	}
}

// layers reads this driver's parameters of a claim, those of its device classes
// before its own: of what several say about a device the last counts.
func layers(configs []resourceapi.DeviceAllocationConfiguration, driver string) ([]parameters, error) {
	var classes, own []parameters
	for _, config := range configs {
		if config.Opaque == nil || config.Opaque.Driver != driver {
			continue
		}
		p, err := parse(config)
		if err != nil {
			return nil, err
		}
		if config.Source == resourceapi.AllocationConfigSourceClass {
			classes = append(classes, p)
		} else {
			own = append(own, p)
		}
	}
	return append(classes, own...), nil
}

// expectation is what the parameters with an index expect of a request's devices.
type expectation struct {
	mig     *gpuv1alpha1.MIG
	index   int
	request string
}

// apply holds the opaque parameters against the devices of the requests that they
// are for, and notes in the devices what is asked of them.
func apply(configs []resourceapi.DeviceAllocationConfiguration, driver string, devices []journal.ClaimDevice) error {
	all, err := layers(configs, driver)
	if err != nil {
		return err
	}
	expected := make([]expectation, len(devices))
	for n, p := range all {
		var misfit error
		fits := false
		for i := range devices {
			d := &devices[i]
			// A configuration can name requests of other drivers, or subrequests that were not chosen.
			name, ok := p.covers(d.Request)
			if !ok {
				continue
			}
			if p.mig != nil {
				expected[i] = expectation{p.mig, n, name}
			}
			if err := p.misfit(*d); err != nil {
				misfit = fmt.Errorf("request %s: opaque parameters of the %s: %w", name, p.source, err)
				continue
			}
			fits = true
			if p.shares {
				share(d, p)
			}
		}
		// What is said of all requests need not fit each of them.
		if misfit != nil && (len(p.requests) > 0 || !fits) {
			return misfit
		}
	}
	for i, e := range expected {
		if e.mig == nil || slices.Contains(expected[:i], e) {
			continue
		}
		var profiles []string
		for n, d := range devices {
			if expected[n] == e {
				profiles = append(profiles, d.Device.Profile)
			}
		}
		if err := e.mig.Check(profiles); err != nil {
			return fmt.Errorf("request %s: opaque parameters of the %s: %w", e.request, all[e.index].source, err)
		}
	}
	return nil
}

// share notes in a device how it is to be shared.
func share(d *journal.ClaimDevice, p parameters) {
	d.TimeSlice.Wanted, d.Conditions = p.slice, nil
	if len(p.unenforced) > 0 {
		d.Conditions = []journal.Condition{{Type: parametersNotEnforced, Message: strings.Join(p.unenforced, "; ")}}
	}
}
