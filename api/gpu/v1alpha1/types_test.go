package v1alpha1_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/api/gpu/v1alpha1"
)

func TestParse(t *testing.T) {
	for name, c := range map[string]struct{ in, message string }{
		"ours":            {`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","spec":{"mig":{"profile":"1g.10gb","count":1}}}`, ""},
		"as an object":    {`{"apiVersion":"gpu.nvidia.com/v1alpha1","kind":"GpuClaimParameters","metadata":{"name":"x","namespace":"y"},"spec":{}}`, ""},
		"no spec":         {`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters"}`, ""},
		"null mig":        {`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","spec":{"mig":null}}`, ""},
		"null":            {`null`, "not an object"},
		"unknown field":   {`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","spec":{"mig":{"profil":"1g.10gb"}}}`, `unknown field "spec.mig.profil"`},
		"wrong case":      {`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","spec":{"MIG":{}}}`, `unknown field "spec.MIG"`},
		"negative count":  {`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","spec":{"mig":{"count":-1}}}`, "spec.mig.count"},
		"another version": {`{"apiVersion":"gpu.kerf.dev/v2","kind":"GpuClaimParameters"}`, "expected GpuClaimParameters of gpu.kerf.dev/v1alpha1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v1alpha1.Parse([]byte(c.in))
			if c.message == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.message)
		})
	}
}

func TestCheckPointsAtTheRequest(t *testing.T) {
	p := &v1alpha1.GpuClaimParameters{Spec: v1alpha1.GpuClaimParametersSpec{MIG: &v1alpha1.MIG{Profile: "1g.10gb", Count: 2}}}
	require.NoError(t, p.Check([]string{"1g.10gb", "1g.10gb"}))
	require.ErrorContains(t, p.Check([]string{"1g.10gb"}), "exactly.count")
	require.ErrorContains(t, p.Check([]string{"1g.10gb", "2g.20gb"}), `selector on the attribute "profile"`)
	require.ErrorContains(t, p.Check([]string{"1g.10gb", ""}), "is no MIG instance")
	require.NoError(t, (&v1alpha1.GpuClaimParameters{}).Check([]string{""}))
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuClaimParameters","spec":{"mig":{"profile":"1g.10gb","count":1}}}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := v1alpha1.Parse(data)
		if err == nil {
			// Whatever parses can be checked against any allocation.
			_ = p.Check([]string{"", "1g.10gb"})
			require.Equal(t, "GpuClaimParameters", p.Kind)
		}
	})
}
