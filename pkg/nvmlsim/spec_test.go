package nvmlsim

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	s, err := Parse("2xH100-SXM5-80GB, l40s ,state=/run/sim,seed=node-a,mig=on")
	require.NoError(t, err)
	require.Equal(t, []string{"H100-SXM5-80GB", "H100-SXM5-80GB", "L40S"}, names(s.Boards))
	require.Equal(t, "/run/sim", s.StateDir)
	require.Equal(t, "node-a", s.Seed)
	require.True(t, s.MIG)
	require.Equal(t, "2xH100-SXM5-80GB,1xL40S,state=/run/sim,seed=node-a,mig=on", s.String())

	const all = "1xA10G,state=/run/sim,faults=/run/faults.yaml,latency=typical,lock=global"
	s, err = Parse(all)
	require.NoError(t, err)
	require.Equal(t, "/run/faults.yaml", s.Faults)
	require.Equal(t, LatencyTypical, s.Latency)
	require.Equal(t, LockGlobal, s.Lock)
	require.Equal(t, all, s.String())

	for text, want := range map[string]string{
		"":                            "unknown board",
		"state=/x":                    "no boards",
		"A10G":                        "state=DIR is required",
		"B300,state=/x":               "known are A100-SXM4-40GB",
		"0xA10G,state=/x":             "1 to 16 boards",
		"-1xA10G,state=/x":            "1 to 16 boards",
		"9xA10G,8xL40S,state=/x":      "1 to 16 boards",
		"A10G,state=":                 "no value",
		"A10G,state=/x,state=/y":      "twice",
		"A10G,state=/x,mig=yes":       "neither on nor off",
		"A10G,state=/x,lock=none":     "lock=none is none of [perGPU global]",
		"A10G,state=/x,latency=1s":    "latency=1s is none of [none typical]",
		"A10G,state=/x,faults=":       "no value",
		"A10G,state=/x,speed=1":       "speed= is unknown",
		"A10G,state=/x,":              "unknown board",
		"A10G x 2,state=/x":           "unknown board",
		"99999999999999999999xA10G,s": "unknown board",
	} {
		_, err := Parse(text)
		require.ErrorContains(t, err, want, text)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"8xH100-SXM5-80GB,2xL40S,state=/run/sim,seed=s,mig=on", "A10G,state=.", "x,x=x", "L40S,state=/s,faults=f,latency=none,lock=perGPU", "1x1xA10G,state=/"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil || strings.Contains(s.StateDir+s.Faults, ",") {
			return
		}
		require.NotEmpty(t, s.Boards)
		require.LessOrEqual(t, len(s.Boards), MaxGPUs)
		back, err := Parse(s.String())
		require.NoError(t, err)
		// Spaces around a part are not kept.
		require.Equal(t, strings.TrimSpace(s.Seed), strings.TrimSpace(back.Seed))
		require.Equal(t, names(s.Boards), names(back.Boards))
		require.Equal(t, [2]any{s.Latency, s.Lock}, [2]any{back.Latency, back.Lock})
	})
}
