package scaling

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

var t0 = time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)

const tick = 15 * time.Second

func policy(class v1alpha1.Class) Policy {
	return PolicyOf(&v1alpha1.GPUScalingHintSpec{Class: class, MinReplicas: 1, MaxReplicas: 32, FallbackReplicas: 3}, DefaultInterval)
}

// at is an observation of replicas that all work and have the same utilization.
func at(i, replicas int, utilization float64) Observation {
	o := Observation{At: t0.Add(time.Duration(i) * tick), Current: replicas, Ready: replicas}
	for range replicas {
		o.Replicas = append(o.Replicas, Measurement{At: o.At, Utilization: utilization})
	}
	return o
}

// decide gives the observations in turn and returns the last hint.
func decide(p Policy, all ...Observation) Hint {
	var (
		s State
		h Hint
	)
	for _, o := range all {
		h, s = p.Decide(s, o)
	}
	return h
}

// steady is n ticks of the same.
func steady(n, replicas int, utilization float64) []Observation {
	var all []Observation
	for i := range n {
		all = append(all, at(i, replicas, utilization))
	}
	return all
}

func TestClasses(t *testing.T) {
	for class, want := range map[v1alpha1.Class]Policy{
		v1alpha1.ClassRealtime:       {UpAbove: 70, DownBelow: 30, Cooldown: time.Minute},
		v1alpha1.ClassBatch:          {UpAbove: 85, DownBelow: 40, Cooldown: 5 * time.Minute},
		v1alpha1.ClassConversational: {UpAbove: 60, DownBelow: 25, Cooldown: 30 * time.Second},
		v1alpha1.ClassConservative:   {UpAbove: 80, DownBelow: 20, Cooldown: time.Minute},
	} {
		want.Min, want.Max, want.Fallback, want.Interval = 1, 32, 3, DefaultInterval
		require.Equal(t, want, policy(class), class)
	}
	cooldown := int32(0)
	own := PolicyOf(&v1alpha1.GPUScalingHintSpec{Thresholds: &v1alpha1.Thresholds{ScaleUpAbove: 50, ScaleDownBelow: 40, CooldownSeconds: &cooldown}}, time.Minute)
	require.Equal(t, Policy{UpAbove: 50, DownBelow: 40, Interval: time.Minute}, own)
}

func TestDecide(t *testing.T) {
	partly := func(o Observation, measured, ready int) Observation {
		o.Replicas, o.Ready = o.Replicas[:measured], ready
		return o
	}
	stale := func(o Observation, age time.Duration) Observation {
		for i := range o.Replicas {
			o.Replicas[i].At = o.At.Add(-age)
		}
		return o
	}
	shared := func(o Observation) Observation {
		for i := range o.Replicas {
			o.Replicas[i].Shared = true
		}
		return o
	}
	signal := func(o Observation) Observation { o.Signals = []string{"queue"}; return o }
	failed := func(o Observation) Observation {
		o.Replicas, o.ReadError = nil, errors.New("connection refused")
		return o
	}
	each := func(all []Observation, f func(Observation) Observation) []Observation {
		for i := range all {
			all[i] = f(all[i])
		}
		return all
	}
	p := policy(v1alpha1.ClassRealtime)
	for name, c := range map[string]struct {
		given  []Observation
		want   int
		reason v1alpha1.Reason
	}{
		"within":                       {steady(2, 4, 50), 4, v1alpha1.ReasonWithinThresholds},
		"high once":                    {steady(1, 4, 85), 4, v1alpha1.ReasonNotSustained},
		"high twice":                   {steady(2, 4, 85), 7, v1alpha1.ReasonUtilizationHigh},
		"high, low, high":              {[]Observation{at(0, 4, 85), at(1, 4, 50), at(2, 4, 85)}, 4, v1alpha1.ReasonNotSustained},
		"high, after a gap":            {[]Observation{at(0, 4, 85), at(20, 4, 85)}, 4, v1alpha1.ReasonNotSustained},
		"one, at its limit":            {[]Observation{at(0, 1, 100), at(1, 1, 100)}, 2, v1alpha1.ReasonUtilizationHigh},
		"low for less than 300 s":      {steady(20, 8, 10), 8, v1alpha1.ReasonNotSustained},
		"low for 300 s":                {steady(21, 8, 10), 6, v1alpha1.ReasonUtilizationLow},
		"low, of two":                  {steady(21, 2, 20), 1, v1alpha1.ReasonUtilizationLow},
		"low, but one could not do it": {steady(21, 2, 29), 2, v1alpha1.ReasonWithinThresholds},
		"low, at the minimum":          {steady(21, 1, 0), 1, v1alpha1.ReasonAtMinimum},
		"high, at the maximum":         {steady(2, 32, 99), 32, v1alpha1.ReasonAtMaximum},
		"below the minimum":            {[]Observation{at(0, 0, 0)}, 1, v1alpha1.ReasonOutOfBounds},
		"above the maximum":            {steady(1, 40, 50), 32, v1alpha1.ReasonOutOfBounds},
		"above it, without data":       {[]Observation{partly(at(0, 40, 0), 0, 40)}, 40, v1alpha1.ReasonNoData},
		"half is measured":             {[]Observation{partly(at(0, 4, 85), 2, 4), partly(at(1, 4, 85), 2, 4)}, 7, v1alpha1.ReasonUtilizationHigh},
		"less than half is":            {[]Observation{partly(at(0, 5, 85), 2, 5), partly(at(1, 5, 85), 2, 5)}, 5, v1alpha1.ReasonNoData},
		"low, one is not measured":     {each(steady(21, 8, 10), func(o Observation) Observation { return partly(o, 7, 8) }), 8, v1alpha1.ReasonWithinThresholds},
		"three intervals old":          {each(steady(2, 4, 85), func(o Observation) Observation { return stale(o, 90*time.Second) }), 7, v1alpha1.ReasonUtilizationHigh},
		"older":                        {each(steady(2, 4, 85), func(o Observation) Observation { return stale(o, 91*time.Second) }), 4, v1alpha1.ReasonStaleData},
		"not a number":                 {steady(21, 4, math.NaN()), 4, v1alpha1.ReasonNoData},
		"one failed read":              {[]Observation{failed(at(0, 2, 0))}, 2, v1alpha1.ReasonNoData},
		"three":                        {each(steady(3, 2, 0), failed), 3, v1alpha1.ReasonFallback},
		"three, above the fallback":    {each(steady(3, 5, 0), failed), 5, v1alpha1.ReasonFallback},
		"two, one good, one":           {[]Observation{failed(at(0, 2, 0)), failed(at(1, 2, 0)), at(2, 2, 50), failed(at(3, 2, 0))}, 2, v1alpha1.ReasonNoData},
		"shared and high":              {each(steady(9, 4, 95), shared), 4, v1alpha1.ReasonSharedOnly},
		"shared and high, a signal":    {each(each(steady(2, 4, 95), shared), signal), 5, v1alpha1.ReasonSignal},
		"shared and low":               {each(steady(21, 8, 10), shared), 6, v1alpha1.ReasonUtilizationLow},
		"a signal alone":               {each(steady(2, 4, 50), signal), 5, v1alpha1.ReasonSignal},
		"a signal keeps what is idle":  {each(steady(1, 8, 10), signal), 8, v1alpha1.ReasonNotSustained},
		"pending replicas suffice":     {each(steady(2, 7, 85), func(o Observation) Observation { return partly(o, 4, 4) }), 7, v1alpha1.ReasonReplicasPending},
		"pending replicas do not":      {each(steady(2, 5, 85), func(o Observation) Observation { return partly(o, 4, 4) }), 7, v1alpha1.ReasonUtilizationHigh},
		"cooldown":                     {[]Observation{at(0, 4, 85), at(1, 7, 85), at(2, 7, 85)}, 7, v1alpha1.ReasonCooldown},
	} {
		t.Run(name, func(t *testing.T) {
			h := decide(p, c.given...)
			require.Equal(t, c.reason, h.Reason, h.Message)
			require.Equal(t, c.want, h.Desired, h.Message)
			require.NotEmpty(t, h.Message)
		})
	}
}

// The naive product of an old mean and the present replicas sees four times the load here.
func TestMeasuredBeforeReplicasWorked(t *testing.T) {
	p := policy(v1alpha1.ClassRealtime)
	var all []Observation
	for i := range 8 {
		o := at(i, 4, 100)
		if i < 7 {
			o.Ready, o.Replicas = 1, o.Replicas[:1]
		} else { // All work now, but the measurements are of before.
			for r := range o.Replicas {
				o.Replicas[r].At = o.At.Add(-30 * time.Second)
			}
		}
		all = append(all, o)
	}
	require.Greater(t, p.needs(100, 4), 4)
	h := decide(p, all...)
	require.Equal(t, v1alpha1.ReasonReplicasPending, h.Reason, h.Message)
	require.Equal(t, 4, h.Desired)
}

// What the limit of growth cut off goes on every 15 s, without waiting for the cooldown.
func TestGrowthInSteps(t *testing.T) {
	p := Policy{UpAbove: 10, DownBelow: 1, Cooldown: time.Hour, Min: 1, Max: 100, Interval: DefaultInterval}
	var s State
	replicas, got := 1, []int{}
	for i := range 6 {
		var h Hint
		h, s = p.Decide(s, at(i, replicas, 300/float64(replicas)))
		replicas = h.Desired
		got = append(got, replicas)
	}
	require.Equal(t, []int{1, 5, 10, 20, 40, 40}, got)
}

// One in four goes each minute, or one.
func TestShrinkingInSteps(t *testing.T) {
	p := Policy{UpAbove: 70, DownBelow: 30, Min: 1, Max: 100, Interval: DefaultInterval}
	var s State
	replicas, got := 16, []int{}
	for i := range 70 {
		var h Hint
		h, s = p.Decide(s, at(i, replicas, 0))
		if h.Desired != replicas {
			got = append(got, h.Desired)
		}
		replicas = h.Desired
	}
	require.Equal(t, []int{12, 9, 7, 6, 5, 4, 3, 2, 1}, got)
}
