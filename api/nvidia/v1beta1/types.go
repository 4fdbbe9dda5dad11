// Package v1beta1 is what kerf understands of the opaque parameters of NVIDIA's
// own DRA driver, group resource.nvidia.com, so that claims which were written
// for that driver run unchanged. What is not offered here is refused by name.
package v1beta1

import (
	"errors"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/api/internal/strict"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// APIVersion of the parameters.
const APIVersion = "resource.nvidia.com/v1beta1"

// The kinds, which have the same fields.
const (
	// GpuConfig is for whole GPUs and replicas.
	GpuConfig = "GpuConfig"
	// MigDeviceConfig is for MIG instances.
	MigDeviceConfig = "MigDeviceConfig"
)

// DeviceConfig is a GpuConfig or a MigDeviceConfig.
type DeviceConfig struct {
	metav1.TypeMeta `json:",inline"`
	Sharing         *Sharing `json:"sharing,omitempty"`
}

// Sharing says how several containers share the device.
type Sharing struct {
	// Strategy is TimeSlicing, the only one that kerf has. It is needed with a TimeSlicingConfig.
	Strategy          Strategy           `json:"strategy,omitempty"`
	TimeSlicingConfig *TimeSlicingConfig `json:"timeSlicingConfig,omitempty"`
	// MPSConfig is known so that its refusal can be explained.
	MPSConfig map[string]any `json:"mpsConfig,omitempty"`
}

// Strategy is a way to share a device.
type Strategy string

// The strategies.
const (
	StrategyTimeSlicing Strategy = "TimeSlicing"
	StrategyMPS         Strategy = "MPS"
)

// TimeSlicingConfig is how the device is shared in time.
type TimeSlicingConfig struct {
	Interval gpu.TimeSlice `json:"interval,omitempty"`
}

// Parse decodes opaque parameters and refuses unknown fields by name.
func Parse(data []byte) (*DeviceConfig, error) {
	meta, err := strict.Kind(data)
	if err != nil {
		return nil, err
	}
	if kinds := []string{GpuConfig, MigDeviceConfig}; !slices.Contains(kinds, meta.Kind) {
		return nil, fmt.Errorf("kind: %q is none of %q, which are those of %s that kerf understands", meta.Kind, kinds, APIVersion)
	}
	c := &DeviceConfig{}
	if err := strict.Decode(data, meta.Kind, []string{APIVersion}, c); err != nil {
		return nil, err
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *DeviceConfig) validate() error {
	s := c.Sharing
	switch {
	case s == nil:
		return nil
	case s.Strategy == StrategyMPS || s.MPSConfig != nil:
		return fmt.Errorf("sharing: kerf does not offer %s: use the strategy %s, or MIG devices, which isolate memory as well", StrategyMPS, StrategyTimeSlicing)
	case s.Strategy != "" && s.Strategy != StrategyTimeSlicing:
		return fmt.Errorf("sharing.strategy: %q is none of %q", s.Strategy, []Strategy{StrategyTimeSlicing})
	case s.TimeSlicingConfig == nil:
		return nil
	case s.Strategy == "":
		return fmt.Errorf("sharing.strategy: it has to be %s where there is a timeSlicingConfig", StrategyTimeSlicing)
	}
	interval := s.TimeSlicingConfig.Interval
	if err := interval.Validate(); err != nil {
		return fmt.Errorf("sharing.timeSlicingConfig.interval: %w", err)
	}
	// Containers that share a MIG instance take turns by the default, and no other can be set.
	if c.Kind == MigDeviceConfig && interval != "" && interval != gpu.TimeSliceDefault {
		return fmt.Errorf("sharing.timeSlicingConfig.interval: %w", errNoSliceOnMIG)
	}
	return nil
}

var errNoSliceOnMIG = errors.New("the time slice of a MIG device cannot be set: leave the interval out, or claim a whole GPU or a time-slice replica")

// Interval is the time slice that is asked for, empty for none.
func (c *DeviceConfig) Interval() gpu.TimeSlice {
	if c.Sharing == nil || c.Sharing.TimeSlicingConfig == nil {
		return ""
	}
	return c.Sharing.TimeSlicingConfig.Interval
}
