// Package upstream holds what kerf publishes and answers against Kubernetes' own code.
package upstream

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/kubernetes/pkg/apis/resource"
	resourcev1 "k8s.io/kubernetes/pkg/apis/resource/v1"
	"k8s.io/kubernetes/pkg/apis/resource/validation"
	"k8s.io/kubernetes/pkg/registry/resource/resourceslice"

	"github.com/kerf-project/kerf/pkg/pool/pooltest"
)

func internal(t *testing.T, o resourceapi.ResourceSlice) *resource.ResourceSlice {
	t.Helper()
	converted := &resource.ResourceSlice{}
	require.NoError(t, resourcev1.Convert_v1_ResourceSlice_To_resource_ResourceSlice(o.DeepCopy(), converted, nil))
	return converted
}

// The API server takes every slice of every board in every mode, and with the
// default feature gates drops nothing of it.
func TestPublishedSlices(t *testing.T) {
	for _, c := range pooltest.Cases() {
		objects, err := c.Slices()
		require.NoError(t, err, c.Name)
		for _, o := range objects {
			sent := internal(t, o)
			require.NoError(t, validation.ValidateResourceSlice(sent).ToAggregate(), "%s: %s", c.Name, o.Name)
			stored := sent.DeepCopy()
			resourceslice.Strategy.PrepareForCreate(context.Background(), stored)
			require.Equal(t, sent.Spec, stored.Spec, "%s: %s: fields were dropped", c.Name, o.Name)
		}
	}
}

// The strategy above does drop what an alpha gate guards.
func TestAlphaFieldsAreDropped(t *testing.T) {
	attribute := resourceapi.FullyQualifiedName("gpu.nvidia.com/type")
	sent := internal(t, resourceapi.ResourceSlice{Spec: resourceapi.ResourceSliceSpec{PartitionTypeAttribute: &attribute}})
	require.NotNil(t, sent.Spec.PartitionTypeAttribute)
	resourceslice.Strategy.PrepareForCreate(context.Background(), sent)
	require.Nil(t, sent.Spec.PartitionTypeAttribute)
}

// The validation above does find what the limits and formats are about.
func TestSpoiltSlicesAreFound(t *testing.T) {
	var objects []resourceapi.ResourceSlice
	for _, c := range pooltest.Cases() {
		if c.Name == "h100-sxm5-80gb/conditions/8" {
			var err error
			objects, err = c.Slices()
			require.NoError(t, err)
		}
	}
	require.NotEmpty(t, objects)
	leadingZero := "580.95.05"
	long := strings.Repeat("x", 65)
	for name, spoil := range map[string]func(counters, devices *resourceapi.ResourceSliceSpec){
		"leading zero in a version": func(_, d *resourceapi.ResourceSliceSpec) {
			d.Devices[0].Attributes["driverVersion"] = resourceapi.DeviceAttribute{VersionValue: &leadingZero}
		},
		"long attribute": func(_, d *resourceapi.ResourceSliceSpec) {
			d.Devices[0].Attributes["productName"] = resourceapi.DeviceAttribute{StringValue: &long}
		},
		"counters beside devices": func(c, d *resourceapi.ResourceSliceSpec) { d.SharedCounters = c.SharedCounters },
		"nine counter sets": func(c, _ *resourceapi.ResourceSliceSpec) {
			c.SharedCounters = append(c.SharedCounters, resourceapi.CounterSet{Name: "ninth", Counters: c.SharedCounters[0].Counters})
		},
		"65 devices": func(_, d *resourceapi.ResourceSliceSpec) {
			for len(d.Devices) < 65 {
				next := d.Devices[1]
				next.Name += strings.Repeat("x", len(d.Devices)-40)
				d.Devices = append(d.Devices, next)
			}
		},
		"a name twice": func(_, d *resourceapi.ResourceSliceSpec) { d.Devices[1].Name = d.Devices[0].Name },
		"taint without effect": func(_, d *resourceapi.ResourceSliceSpec) {
			d.Devices[0].Taints = []resourceapi.DeviceTaint{{Key: "gpu.kerf.dev/x"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			counters, devices := objects[0].DeepCopy(), objects[1].DeepCopy()
			spoil(&counters.Spec, &devices.Spec)
			found := append(validation.ValidateResourceSlice(internal(t, *counters)), validation.ValidateResourceSlice(internal(t, *devices))...)
			require.NotEmpty(t, found)
		})
	}
}
