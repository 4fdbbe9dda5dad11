package v1alpha1_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
)

const head = "apiVersion: config.kerf.dev/v1alpha1\nkind: NodeConfiguration\n"

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct{ in, message string }{
		"empty":             {"", "not an object"},
		"null":              {"null", "not an object"},
		"a list":            {"[]", "not an object"},
		"no kind":           {"apiVersion: config.kerf.dev/v1alpha1", "apiVersion and kind are required"},
		"another kind":      {"apiVersion: v1\nkind: Pod", "got Pod of v1"},
		"unknown field":     {head + "policies: [{mig: {modus: off}}]", `unknown field "policies[0].mig.modus"`},
		"duplicate field":   {head + "policies: []\npolicies: []", "already set"},
		"unknown mode":      {head + "policies: [{mig: {mode: maybe}}]", `policies[0].mig.mode: "maybe"`},
		"too many replicas": {head + "policies: [{timeSlicing: {replicas: 9}}]", "policies[0].timeSlicing.replicas: 9"},
		"negative replicas": {head + "policies: [{timeSlicing: {replicas: -1}}]", "policies[0].timeSlicing.replicas: -1"},
		"unknown interval":  {head + "policies: [{timeSlicing: {interval: short}}]", `policies[0].timeSlicing.interval: "short" is none of`},
		"no number":         {head + "health: {xids: {all: None}}", `health.xids: "all" is no number of an Xid`},
		"a number twice":    {head + "health: {xids: {'79': None, '079': None}}", `health.xids: "079" is no number`},
		"Xid 0":             {head + "health: {xids: {'0': None}}", `health.xids: "0" is no number`},
		"unknown effect":    {head + "health: {xids: {'79': ignore}}", `health.xids.79: "ignore" is none of`},
		"negative time":     {head + "health: {quietTime: -1s}", "health.quietTime: -1s is below 0"},
		"bad pattern":       {head + "policies: [{products: ['[']}]", "policies[0].products[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := v1alpha1.Parse([]byte(c.in))
			require.ErrorContains(t, err, c.message)
		})
	}
}

func TestFirstMatchingPolicyApplies(t *testing.T) {
	c, err := v1alpha1.Parse([]byte(head + `policies:
- products: ["NVIDIA H100*"]
  timeSlicing: {replicas: 4, interval: Long}
- products: ["NVIDIA A100*", "NVIDIA H*"]
  mig: {mode: keepOn, mediaExtensions: true}
`))
	require.NoError(t, err)

	require.Equal(t, 4, c.For("NVIDIA H100 80GB HBM3").TimeSlicing.Replicas)
	require.Equal(t, gpu.TimeSliceLong, c.For("NVIDIA H100 80GB HBM3").TimeSlicing.Interval)
	require.Empty(t, c.For("NVIDIA L40S").TimeSlicing.Interval)
	require.Equal(t, v1alpha1.MIGOnDemand, c.For("NVIDIA H100 80GB HBM3").MIG.Mode)
	require.Equal(t, v1alpha1.MIGKeepOn, c.For("NVIDIA H200").MIG.Mode)
	require.True(t, c.For("NVIDIA H200").MIG.MediaExtensions)
	require.Equal(t, v1alpha1.MIGOnDemand, c.For("NVIDIA L40S").MIG.Mode)

	var none *v1alpha1.NodeConfiguration
	require.Equal(t, v1alpha1.MIGOnDemand, none.For("NVIDIA L40S").MIG.Mode)
}

func TestHealth(t *testing.T) {
	c, err := v1alpha1.Parse([]byte(head + "health: {xids: {'79': NoSchedule, 94: None}, quietTime: 1h}"))
	require.NoError(t, err)
	require.Equal(t, map[string]gpu.Effect{"79": gpu.EffectNoSchedule, "94": gpu.EffectNone}, c.HealthPolicy().Xids)
	require.Equal(t, time.Hour, c.HealthPolicy().QuietTime.Duration)

	c, err = v1alpha1.Parse([]byte(head))
	require.NoError(t, err)
	require.Equal(t, 10*time.Minute, c.HealthPolicy().QuietTime.Duration)
	var none *v1alpha1.NodeConfiguration
	require.Equal(t, c.HealthPolicy(), none.HealthPolicy())
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(head))
	f.Add([]byte(head + "policies: [{products: [\"NVIDIA H100*\"], mig: {mode: keepOn}, timeSlicing: {replicas: 8, interval: Medium}}]"))
	f.Add([]byte(head + "health: {xids: {'79': NoSchedule}, quietTime: 5m}"))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := v1alpha1.Parse(data)
		if err != nil {
			return
		}
		for _, p := range append(c.Policies, c.For("NVIDIA H200")) {
			require.Contains(t, []v1alpha1.MIGMode{v1alpha1.MIGOnDemand, v1alpha1.MIGKeepOn, v1alpha1.MIGOff}, p.MIG.Mode)
			require.GreaterOrEqual(t, p.TimeSlicing.Replicas, 0)
			require.LessOrEqual(t, p.TimeSlicing.Replicas, gpu.MaxReplicas)
			require.NoError(t, p.TimeSlicing.Interval.Validate())
		}
		// What was understood is what would be understood again.
		written, err := json.Marshal(c)
		require.NoError(t, err)
		again, err := v1alpha1.Parse(written)
		require.NoError(t, err)
		require.Equal(t, c.For("NVIDIA H200"), again.For("NVIDIA H200"))
		require.Equal(t, c.HealthPolicy(), again.HealthPolicy())
	})
}
