package v1beta1_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/api/nvidia/v1beta1"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// config is a GpuConfig with those fields, in JSON.
func config(kind, fields string) string {
	return `{"apiVersion":"resource.nvidia.com/v1beta1","kind":"` + kind + `"` + fields + `}`
}

var accepted = map[string]struct {
	in       string
	interval gpu.TimeSlice
}{
	"no fields":                {config("GpuConfig", ``), ""},
	"null sharing":             {config("GpuConfig", `,"sharing":null`), ""},
	"empty sharing":            {config("GpuConfig", `,"sharing":{}`), ""},
	"nulls in sharing":         {config("GpuConfig", `,"sharing":{"strategy":null,"timeSlicingConfig":null,"mpsConfig":null}`), ""},
	"strategy alone":           {config("GpuConfig", `,"sharing":{"strategy":"TimeSlicing"}`), ""},
	"null configuration":       {config("GpuConfig", `,"sharing":{"strategy":"TimeSlicing","timeSlicingConfig":null}`), ""},
	"empty configuration":      {config("GpuConfig", `,"sharing":{"strategy":"TimeSlicing","timeSlicingConfig":{}}`), ""},
	"null interval":            {config("GpuConfig", `,"sharing":{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":null}}`), ""},
	"Default":                  {config("GpuConfig", `,"sharing":{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"Default"}}`), gpu.TimeSliceDefault},
	"Short":                    {config("GpuConfig", `,"sharing":{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"Short"}}`), gpu.TimeSliceShort},
	"Medium":                   {config("GpuConfig", `,"sharing":{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"Medium"}}`), gpu.TimeSliceMedium},
	"Long":                     {config("GpuConfig", `,"sharing":{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"Long"}}`), gpu.TimeSliceLong},
	"MIG without fields":       {config("MigDeviceConfig", ``), ""},
	"MIG shared":               {config("MigDeviceConfig", `,"sharing":{"strategy":"TimeSlicing"}`), ""},
	"MIG with the default one": {config("MigDeviceConfig", `,"sharing":{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"Default"}}`), gpu.TimeSliceDefault},
}

var refused = map[string]struct{ in, message string }{
	"null":                  {`null`, "not an object"},
	"a list":                {`[]`, "not an object"},
	"no kind":               {`{"apiVersion":"resource.nvidia.com/v1beta1"}`, "apiVersion and kind are required"},
	"another kind":          {config("VfioDeviceConfig", ``), `kind: "VfioDeviceConfig" is none of`},
	"another version":       {`{"apiVersion":"resource.nvidia.com/v2","kind":"GpuConfig"}`, "expected GpuConfig of resource.nvidia.com/v1beta1"},
	"unknown field":         {config("GpuConfig", `,"shareing":{}`), `unknown field "shareing"`},
	"unknown field below":   {config("GpuConfig", `,"sharing":{"strategy":"TimeSlicing","timeSlicingConfig":{"Interval":"Short"}}`), `unknown field "sharing.timeSlicingConfig.Interval"`},
	"MPS":                   {config("GpuConfig", `,"sharing":{"strategy":"MPS","mpsConfig":{"defaultActiveThreadPercentage":50}}`), "kerf does not offer MPS"},
	"MPS on MIG":            {config("MigDeviceConfig", `,"sharing":{"strategy":"MPS"}`), "kerf does not offer MPS"},
	"unknown strategy":      {config("GpuConfig", `,"sharing":{"strategy":"Turns"}`), `sharing.strategy: "Turns"`},
	"no strategy":           {config("GpuConfig", `,"sharing":{"timeSlicingConfig":{"interval":"Short"}}`), "sharing.strategy: it has to be TimeSlicing"},
	"unknown interval":      {config("GpuConfig", `,"sharing":{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"short"}}`), `sharing.timeSlicingConfig.interval: "short"`},
	"an interval of MIG":    {config("MigDeviceConfig", `,"sharing":{"strategy":"TimeSlicing","timeSlicingConfig":{"interval":"Short"}}`), "the time slice of a MIG device cannot be set"},
	"a number as an object": {config("GpuConfig", `,"sharing":3`), "sharing"},
}

func TestParse(t *testing.T) {
	for name, c := range accepted {
		got, err := v1beta1.Parse([]byte(c.in))
		require.NoError(t, err, name)
		require.Equal(t, c.interval, got.Interval(), name)
	}
	for name, c := range refused {
		_, err := v1beta1.Parse([]byte(c.in))
		require.ErrorContains(t, err, c.message, name)
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range accepted {
		f.Add([]byte(c.in))
	}
	for _, c := range refused {
		f.Add([]byte(c.in))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := v1beta1.Parse(data)
		if err != nil {
			require.Nil(t, c)
			return
		}
		require.Contains(t, []string{v1beta1.GpuConfig, v1beta1.MigDeviceConfig}, c.Kind)
		require.NoError(t, c.Interval().Validate())
	})
}
