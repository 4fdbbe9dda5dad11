package plugin_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

// ours, gpuConfig and migConfig are parameters with that content.
func ours(spec string) string {
	return `{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","spec":` + spec + `}`
}

func gpuConfig(interval string) string { return nvidiaConfig("GpuConfig", interval) }

func migConfig(interval string) string { return nvidiaConfig("MigDeviceConfig", interval) }

func nvidiaConfig(kind, interval string) string {
	return fmt.Sprintf(`{"apiVersion":"resource.nvidia.com/v1beta1","kind":%q,"sharing":{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":%s}}}`, kind, interval)
}

// from is a configuration for the requests named, or for all.
func from(source resourceapi.AllocationConfigSource, raw string, requests ...string) resourceapi.DeviceAllocationConfiguration {
	return resourceapi.DeviceAllocationConfiguration{Source: source, Requests: requests, DeviceConfiguration: resourceapi.DeviceConfiguration{
		Opaque: &resourceapi.OpaqueDeviceConfiguration{Driver: pool.DefaultDriver, Parameters: runtime.RawExtension{Raw: []byte(raw)}},
	}}
}

// wishes prepares a claim whose requests "gpu" and "alone/first" have a whole GPU
// each, "share" a replica and "mig" an instance, as far as they are named, and
// returns what the engine is asked to set.
func wishes(t *testing.T, devices []string, configs ...resourceapi.DeviceAllocationConfiguration) (map[string]gpu.TimeSlice, *fakeEngine, error) {
	t.Helper()
	known := catalogue{
		"gpu": {Type: gpu.TypeGPU, GPU: "GPU-1"}, "alone/first": {Type: gpu.TypeGPU, GPU: "GPU-2"}, "share": {Type: gpu.TypeTimeSlice, GPU: "GPU-3"},
		"mig": {Type: gpu.TypeMIG, GPU: "GPU-4", Profile: "1g.10gb"}, "large": {Type: gpu.TypeMIG, GPU: "GPU-5", Profile: "3g.40gb"},
	}
	e := &fakeEngine{}
	d := plugin.NewDriver(e, pool.Node{Name: "node", Driver: pool.DefaultDriver}, known, unobserved, unwritten, record.NewFakeRecorder(10), nil)
	c := claim(func(a *resourceapi.DeviceAllocationResult) {
		a.Results, a.Config = nil, configs
		for _, name := range devices {
			a.Results = append(a.Results, resourceapi.DeviceRequestAllocationResult{Request: name, Driver: pool.DefaultDriver, Pool: "node", Device: name})
		}
	})
	results, err := d.PrepareResourceClaims(t.Context(), []*resourceapi.ResourceClaim{c})
	require.NoError(t, err)
	if err := results["uid"].Err; err != nil {
		require.Empty(t, e.wanted)
		return nil, e, err
	}
	wanted := map[string]gpu.TimeSlice{}
	for _, d := range e.wanted[0].Devices {
		if d.TimeSlice.Wanted != "" {
			wanted[d.Name] = d.TimeSlice.Wanted
		}
	}
	return wanted, e, nil
}

func TestTimeSlicesOfParameters(t *testing.T) {
	const class, own = resourceapi.AllocationConfigSourceClass, resourceapi.AllocationConfigSourceClaim
	type wants = map[string]gpu.TimeSlice
	for name, c := range map[string]struct {
		devices []string
		configs []resourceapi.DeviceAllocationConfiguration
		want    wants
	}{
		"none":                           {[]string{"gpu"}, nil, wants{}},
		"GpuConfig on a whole GPU":       {[]string{"gpu"}, []resourceapi.DeviceAllocationConfiguration{from(own, gpuConfig(`"Short"`), "gpu")}, wants{"gpu": gpu.TimeSliceShort}},
		"GpuConfig on a replica":         {[]string{"share"}, []resourceapi.DeviceAllocationConfiguration{from(own, gpuConfig(`"Long"`))}, wants{"share": gpu.TimeSliceLong}},
		"ours on a replica":              {[]string{"share"}, []resourceapi.DeviceAllocationConfiguration{from(own, ours(`{"timeSlicing":{"schedulingPolicy":"conservative"}}`))}, wants{"share": gpu.TimeSliceLong}},
		"one request of two":             {[]string{"gpu", "share"}, []resourceapi.DeviceAllocationConfiguration{from(own, gpuConfig(`"Medium"`), "share")}, wants{"share": gpu.TimeSliceMedium}},
		"a request with alternatives":    {[]string{"alone/first"}, []resourceapi.DeviceAllocationConfiguration{from(own, gpuConfig(`"Medium"`), "alone")}, wants{"alone/first": gpu.TimeSliceMedium}},
		"an alternative":                 {[]string{"alone/first"}, []resourceapi.DeviceAllocationConfiguration{from(own, gpuConfig(`"Medium"`), "alone/first")}, wants{"alone/first": gpu.TimeSliceMedium}},
		"another alternative":            {[]string{"alone/first"}, []resourceapi.DeviceAllocationConfiguration{from(own, gpuConfig(`"Medium"`), "alone/second")}, wants{}},
		"the claim's over the class's":   {[]string{"gpu"}, []resourceapi.DeviceAllocationConfiguration{from(own, gpuConfig(`"Short"`)), from(class, gpuConfig(`"Long"`), "gpu")}, wants{"gpu": gpu.TimeSliceShort}},
		"the class's where the claim's":  {[]string{"gpu"}, []resourceapi.DeviceAllocationConfiguration{from(class, gpuConfig(`"Long"`), "gpu"), from(own, ours(`{"mig":null}`))}, wants{"gpu": gpu.TimeSliceLong}},
		"the claim's, of another kind":   {[]string{"share"}, []resourceapi.DeviceAllocationConfiguration{from(class, gpuConfig(`"Long"`), "share"), from(own, ours(`{"timeSlicing":{"schedulingPolicy":"aggressive"}}`))}, wants{"share": gpu.TimeSliceShort}},
		"for all that can have it":       {[]string{"gpu", "mig"}, []resourceapi.DeviceAllocationConfiguration{from(own, gpuConfig(`"Short"`))}, wants{"gpu": gpu.TimeSliceShort}},
		"both kinds for all":             {[]string{"gpu", "mig"}, []resourceapi.DeviceAllocationConfiguration{from(own, gpuConfig(`"Short"`)), from(own, migConfig(`"Default"`))}, wants{"gpu": gpu.TimeSliceShort, "mig": gpu.TimeSliceDefault}},
		"MigDeviceConfig":                {[]string{"mig"}, []resourceapi.DeviceAllocationConfiguration{from(own, migConfig(`null`), "mig")}, wants{}},
		"empty, on another type":         {[]string{"mig"}, []resourceapi.DeviceAllocationConfiguration{from(own, `{"apiVersion":"resource.nvidia.com/v1beta1","kind":"GpuConfig","sharing":null}`, "mig")}, wants{}},
		"a request of another driver":    {[]string{"gpu"}, []resourceapi.DeviceAllocationConfiguration{from(own, migConfig(`null`), "nic")}, wants{}},
		"the expectation of the claim":   {[]string{"mig"}, []resourceapi.DeviceAllocationConfiguration{from(class, ours(`{"mig":{"profile":"7g.80gb"}}`), "mig"), from(own, ours(`{"mig":{"profile":"1g.10gb"}}`))}, wants{}},
		"one expectation a request":      {[]string{"mig", "large"}, []resourceapi.DeviceAllocationConfiguration{from(own, ours(`{"mig":{"profile":"1g.10gb","count":1}}`), "mig"), from(own, ours(`{"mig":{"profile":"3g.40gb"}}`), "large")}, wants{}},
		"a section of the class's stays": {[]string{"gpu"}, []resourceapi.DeviceAllocationConfiguration{from(class, ours(`{"timeSlicing":{"schedulingPolicy":"default"}}`), "gpu"), from(own, ours(`{"mig":{}}`), "gpu")}, wants{"gpu": gpu.TimeSliceDefault}},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := wishes(t, c.devices, c.configs...)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}

	for name, c := range map[string]struct {
		devices []string
		config  resourceapi.DeviceAllocationConfiguration
		message string
	}{
		"GpuConfig on MIG":            {[]string{"mig"}, from(own, gpuConfig(`"Short"`)), "request mig: opaque parameters of the claim: GpuConfig: device mig is a MIG instance, whose time slice cannot be set"},
		"GpuConfig on MIG, by name":   {[]string{"gpu", "mig"}, from(own, gpuConfig(`"Short"`), "gpu", "mig"), "device mig is a MIG instance"},
		"the class's on MIG":          {[]string{"mig"}, from(class, gpuConfig(`"Short"`), "mig"), "opaque parameters of the device class"},
		"ours on MIG":                 {[]string{"mig"}, from(own, ours(`{"timeSlicing":{"schedulingPolicy":"default"}}`)), "GpuClaimParameters: device mig is a MIG instance"},
		"MigDeviceConfig on a GPU":    {[]string{"gpu"}, from(own, migConfig(`null`)), "MigDeviceConfig: device gpu is no MIG instance: use GpuConfig"},
		"an interval on MIG":          {[]string{"mig"}, from(own, migConfig(`"Short"`)), "the time slice of a MIG device cannot be set"},
		"MPS":                         {[]string{"gpu"}, from(own, `{"apiVersion":"resource.nvidia.com/v1beta1","kind":"GpuConfig","sharing":{"strategy":"MPS"}}`), "kerf does not offer MPS"},
		"an unknown kind":             {[]string{"gpu"}, from(own, `{"apiVersion":"resource.nvidia.com/v1beta1","kind":"ImexConfig"}`), `"ImexConfig"`},
		"an expectation of all":       {[]string{"mig", "large"}, from(own, ours(`{"mig":{"profile":"1g.10gb"}}`)), "wants 1g.10gb, but 3g.40gb is allocated"},
		"an expectation of a request": {[]string{"mig"}, from(own, ours(`{"mig":{"count":2}}`), "mig"), "request mig: opaque parameters of the claim: spec.mig.count"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := wishes(t, c.devices, c.config)
			require.ErrorContains(t, err, c.message)
		})
	}
}

// What is accepted and has no effect is told: as a condition of the device, and as an event of the claim.
func TestFieldsWithoutEffectAreTold(t *testing.T) {
	parameters := ours(`{"timeSlicing":{"schedulingPolicy":"default","contextSwitchInterval":100}}`)
	_, e, err := wishes(t, []string{"share"}, from(resourceapi.AllocationConfigSourceClaim, parameters))
	require.NoError(t, err)
	conditions := e.wanted[0].Devices[0].Conditions
	require.Len(t, conditions, 1)
	require.Equal(t, "ParametersNotEnforced", conditions[0].Type)
	require.Contains(t, conditions[0].Message, "contextSwitchInterval")

	events := record.NewFakeRecorder(10)
	known := catalogue{"share": {Type: gpu.TypeTimeSlice, GPU: "GPU-3"}}
	d := plugin.NewDriver(e, pool.Node{Name: "node", Driver: pool.DefaultDriver}, known, unobserved, unwritten, events, nil)
	_, err = d.PrepareResourceClaims(t.Context(), []*resourceapi.ResourceClaim{claim(func(a *resourceapi.DeviceAllocationResult) {
		a.Results[0].Device = "share"
		a.Config = []resourceapi.DeviceAllocationConfiguration{from(resourceapi.AllocationConfigSourceClaim, parameters)}
	})})
	require.NoError(t, err)
	require.Contains(t, <-events.Events, "Warning ParametersNotEnforced device share: spec.timeSlicing.contextSwitchInterval")
}

// Whatever is in the parameters, the driver answers.
func FuzzParameters(f *testing.F) {
	for _, seed := range []string{``, `null`, `[]`, `{}`, `3`, ours(`null`), ours(`{"mig":null,"timeSlicing":null}`), ours(`{"mig":{},"timeSlicing":{}}`), gpuConfig(`null`), gpuConfig(`"Short"`), migConfig(`null`), `{"apiVersion":"resource.nvidia.com/v1beta1"}`} {
		f.Add([]byte(seed), "gpu")
		f.Add([]byte(seed), "")
	}
	f.Fuzz(func(t *testing.T, raw []byte, request string) {
		var requests []string
		if request != "" {
			requests = []string{request}
		}
		wanted, _, err := wishes(t, []string{"gpu", "mig"}, from(resourceapi.AllocationConfigSourceClaim, string(raw), requests...))
		if err == nil {
			require.NoError(t, wanted["gpu"].Validate())
		}
	})
}
