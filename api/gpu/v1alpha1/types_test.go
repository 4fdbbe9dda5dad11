package v1alpha1_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/api/gpu/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// parameters are GpuClaimParameters with that content, in JSON.
func parameters(spec string) string {
	return `{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","spec":` + spec + `}`
}

var documents = map[string]struct{ in, message string }{
	"ours":                {parameters(`{"mig":{"profile":"1g.10gb","count":1}}`), ""},
	"as an object":        {`{"apiVersion":"gpu.nvidia.com/v1alpha1","kind":"GpuClaimParameters","metadata":{"name":"x","namespace":"y"},"spec":{}}`, ""},
	"no spec":             {`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters"}`, ""},
	"null spec":           {parameters(`null`), ""},
	"null metadata":       {`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","metadata":null}`, ""},
	"null sections":       {parameters(`{"mig":null,"timeSlicing":null}`), ""},
	"empty sections":      {parameters(`{"mig":{},"timeSlicing":{}}`), ""},
	"nulls":               {parameters(`{"mig":{"profile":null,"count":null},"timeSlicing":{"schedulingPolicy":null,"contextSwitchInterval":null,"replicas":null}}`), ""},
	"time slicing":        {parameters(`{"timeSlicing":{"replicas":4,"schedulingPolicy":"default","contextSwitchInterval":100}}`), ""},
	"null":                {`null`, "not an object"},
	"nothing":             {``, "not an object"},
	"unknown field":       {parameters(`{"mig":{"profil":"1g.10gb"}}`), `unknown field "spec.mig.profil"`},
	"unknown field in it": {parameters(`{"timeSlicing":{"interval":"Short"}}`), `unknown field "spec.timeSlicing.interval"`},
	"wrong case":          {parameters(`{"MIG":{}}`), `unknown field "spec.MIG"`},
	"negative count":      {parameters(`{"mig":{"count":-1}}`), "spec.mig.count"},
	"unknown policy":      {parameters(`{"timeSlicing":{"schedulingPolicy":"fair"}}`), `spec.timeSlicing.schedulingPolicy: "fair" is none of`},
	"negative interval":   {parameters(`{"timeSlicing":{"contextSwitchInterval":-1}}`), "spec.timeSlicing.contextSwitchInterval: -1"},
	"too many replicas":   {parameters(`{"timeSlicing":{"replicas":9}}`), "spec.timeSlicing.replicas: 9 is not in 0..8"},
	"a text as a number":  {parameters(`{"timeSlicing":{"contextSwitchInterval":"100ms"}}`), "contextSwitchInterval"},
	"another version":     {`{"apiVersion":"gpu.kerf.dev/v2","kind":"GpuClaimParameters"}`, "expected GpuClaimParameters of gpu.kerf.dev/v1alpha1"},
}

func TestParse(t *testing.T) {
	for name, c := range documents {
		t.Run(name, func(t *testing.T) {
			p, err := v1alpha1.Parse([]byte(c.in))
			if c.message == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.message)
			require.Nil(t, p)
		})
	}
}

func TestPoliciesAreTimeSlices(t *testing.T) {
	var none *v1alpha1.TimeSlicing
	require.Empty(t, none.Interval())
	require.Empty(t, none.Unenforced())
	for policy, want := range map[string]gpu.TimeSlice{"": "", "conservative": gpu.TimeSliceLong, "default": gpu.TimeSliceDefault, "aggressive": gpu.TimeSliceShort} {
		p, err := v1alpha1.Parse([]byte(parameters(`{"timeSlicing":{"schedulingPolicy":"` + policy + `"}}`)))
		require.NoError(t, err)
		require.Equal(t, want, p.Spec.TimeSlicing.Interval(), policy)
		require.Empty(t, p.Spec.TimeSlicing.Unenforced())
	}
	p, err := v1alpha1.Parse([]byte(documents["time slicing"].in))
	require.NoError(t, err)
	unenforced := p.Spec.TimeSlicing.Unenforced()
	require.Len(t, unenforced, 2)
	require.Contains(t, unenforced[0], "spec.timeSlicing.contextSwitchInterval: the driver cannot be told to switch every 100 ms")
	require.Contains(t, unenforced[1], "spec.timeSlicing.replicas")
}

func TestCheckPointsAtTheRequest(t *testing.T) {
	p := &v1alpha1.MIG{Profile: "1g.10gb", Count: 2}
	require.NoError(t, p.Check([]string{"1g.10gb", "1g.10gb"}))
	require.ErrorContains(t, p.Check([]string{"1g.10gb"}), "exactly.count")
	require.ErrorContains(t, p.Check([]string{"1g.10gb", "2g.20gb"}), `selector on the attribute "profile"`)
	require.ErrorContains(t, p.Check([]string{"1g.10gb", ""}), "is no MIG instance")
	require.NoError(t, (&v1alpha1.MIG{}).Check([]string{""}))
	require.NoError(t, (*v1alpha1.MIG)(nil).Check([]string{""}))
}

func FuzzParse(f *testing.F) {
	for _, c := range documents {
		f.Add([]byte(c.in))
	}
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := v1alpha1.Parse(data)
		if err == nil {
			// Whatever parses can be checked against any allocation.
			_ = p.Spec.MIG.Check([]string{"", "1g.10gb"})
			require.NoError(t, p.Spec.TimeSlicing.Interval().Validate())
			_ = p.Spec.TimeSlicing.Unenforced()
			require.Equal(t, "GpuClaimParameters", p.Kind)
		}
	})
}
