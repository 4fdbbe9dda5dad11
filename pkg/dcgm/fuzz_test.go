package dcgm

import (
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever an exporter answers, a row is one of a GPU, with a value in its bounds or none.
func FuzzParse(f *testing.F) {
	f.Add([]byte("DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",UUID=\"GPU-a\",hostname=\"n\"} 85\n"))
	f.Add([]byte("DCGM_FI_PROF_GR_ENGINE_ACTIVE{UUID=\"GPU-a\",GPU_I_ID=\"3\",GPU_I_PROFILE=\"1g.10gb\"} 0.5 1700000000000\n"))
	f.Add([]byte("# TYPE DCGM_FI_DEV_FB_USED gauge\nDCGM_FI_DEV_FB_USED{UUID=\"GPU-a\"} 9223372036854775794\n"))
	f.Add([]byte("kerf_instance_engine_active_ratio{UUID=\"GPU-a\",GPU_I_ID=\"7\"} NaN\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		rows, err := Parse(text, now)
		if err != nil {
			return
		}
		for _, r := range rows {
			require.True(t, strings.HasPrefix(r.GPU, "GPU-"))
			require.GreaterOrEqual(t, r.Instance, NoInstance)
			if !math.IsNaN(r.Value) {
				require.GreaterOrEqual(t, r.Value, 0.0)
				if r.Metric == Utilization {
					require.LessOrEqual(t, r.Value, 100.0)
				}
			}
		}
	})
}
