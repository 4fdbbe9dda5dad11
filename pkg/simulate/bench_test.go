package simulate

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// big is a fleet of 100 nodes with 8 H100 each, and 5,000 claims of several shapes
// that come within a day and stay for some hours, more than the fleet holds at its fullest.
func big(tb testing.TB) *Input {
	in := &Input{}
	documents := "apiVersion: config.kerf.dev/v1alpha1\nkind: Fleet\nnodes: [{name: node, count: 100, boards: 8xH100-SXM5-80GB}]\n"
	classes := []string{"mig-1g.10gb", "mig-2g.20gb", "mig-3g.40gb", "mig-4g.40gb", "mig-7g.80gb", ""}
	for i, c := range classes {
		documents += fmt.Sprintf("---\napiVersion: resource.k8s.io/v1\nkind: ResourceClaimTemplate\nmetadata: {name: shape-%d}\n"+
			"spec: {spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: %s}}]}}}\n", i, strings.TrimPrefix(c+".gpu.nvidia.com", "."))
	}
	trace := &strings.Builder{}
	trace.WriteString("at,duration,template\n")
	random := rand.New(rand.NewPCG(1, 1))
	for range 5000 {
		fmt.Fprintf(trace, "%d,%d,shape-%d\n", random.IntN(24*3600), 4*3600+random.IntN(8*3600), random.IntN(len(classes)))
	}
	in.Classes = defaultClasses()
	if err := in.Read(strings.NewReader(documents)); err != nil {
		tb.Fatal(err)
	}
	if err := in.ReadTrace(strings.NewReader(trace.String())); err != nil {
		tb.Fatal(err)
	}
	return in
}

func BenchmarkSimulate(b *testing.B) {
	in := big(b)
	b.ReportAllocs()
	for b.Loop() {
		r, err := Run(b.Context(), in, LeastBlocking, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(r.Summary.AtOnce), "at-once")
		b.ReportMetric(float64(r.Summary.Waited), "waited")
		b.ReportMetric(float64(r.Summary.Never), "never")
		b.ReportMetric(float64(r.Summary.PeakUsed), "peak-slices")
	}
}
