package scaling

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

func TestRightSize(t *testing.T) {
	shapes := []Shape{{"7g.80gb", 7, 81920}, {"1g.10gb", 1, 9984}, {"1g.20gb", 1, 20096}, {"2g.20gb", 2, 20096}, {"3g.40gb", 3, 40448}}
	for name, c := range map[string]struct {
		present int
		usage   Usage
		memory  v1alpha1.MemoryModel
		want    string
	}{
		"fits":                       {3, Usage{70, 15000}, v1alpha1.MemoryElastic, ""},
		"idle":                       {3, Usage{10, 5000}, v1alpha1.MemoryElastic, "1g.10gb"},
		"idle, memory just fits":     {3, Usage{10, 9076}, v1alpha1.MemoryElastic, "1g.10gb"},
		"idle, memory just does not": {3, Usage{10, 9077}, v1alpha1.MemoryElastic, "1g.20gb"},
		"compute of two at 80 %":     {4, Usage{53.3, 5000}, v1alpha1.MemoryElastic, "2g.20gb"},
		"of more":                    {4, Usage{53.4, 5000}, v1alpha1.MemoryElastic, ""},
		"memory pressure":            {3, Usage{10, 19000}, v1alpha1.MemoryElastic, "3g.40gb"},
		"reserved, idle":             {3, Usage{10, 19000}, v1alpha1.MemoryReserved, "1g.20gb"},
		"reserved, busy":             {3, Usage{95, 19000}, v1alpha1.MemoryReserved, "3g.40gb"},
		"nothing measured":           {3, Usage{math.NaN(), 5000}, v1alpha1.MemoryElastic, ""},
		"memory unknown":             {3, Usage{10, math.NaN()}, v1alpha1.MemoryElastic, ""},
		"memory of no interest":      {3, Usage{95, math.NaN()}, v1alpha1.MemoryReserved, "3g.40gb"},
		"more than the largest can":  {0, Usage{99, 81000}, v1alpha1.MemoryElastic, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := RightSize(shapes[c.present], shapes, c.usage, c.memory)
			require.Equal(t, c.want != "", ok)
			if ok {
				require.Equal(t, c.want, got.Name)
			}
		})
	}
}
