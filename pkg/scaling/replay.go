package scaling

import (
	"errors"
	"math"
	"time"
)

// Sample is a moment of a recorded series.
type Sample struct {
	At time.Time
	// Utilization is the mean over the replicas in percent, NaN where there was no data.
	Utilization float64
	// Replicas that did the work.
	Replicas int
}

// Model is what lies between a hint and what is measured of it.
type Model struct {
	// StartUp is how long a new replica takes until it works.
	StartUp time.Duration
	// Delay is the age of a measurement when it is read.
	Delay time.Duration
}

// Step is a moment of a replay.
type Step struct {
	// Utilization that the replicas of the replay have: at most 100, NaN where the series has no data.
	Utilization float64
	Ready       int
	Hint        Hint
}

// errNoData is what the replay says of a gap in the series.
var errNoData = errors.New("the series has no data")

// Replay decides at each sample of a series, as if each hint were followed at
// once. The load of a sample is its utilization times its replicas; it spreads
// evenly over the replicas of the replay that work. What went beyond 100 % in
// the recording is not in it, so the replay knows no more of it either.
func (m Model) Replay(p Policy, samples []Sample) []Step {
	var (
		s       State
		steps   []Step
		current int
		starts  []time.Time // when each replica works, those that work longest first
	)
	for i, sample := range samples {
		if i == 0 {
			current = sample.Replicas
			starts = make([]time.Time, current)
		}
		ready := 0
		for _, at := range starts {
			if !at.After(sample.At) {
				ready++
			}
		}
		steps = append(steps, Step{Ready: ready, Utilization: math.Min(100, sample.Utilization*float64(sample.Replicas)/float64(max(1, ready)))})
		o := Observation{At: sample.At, Current: current, Ready: ready}
		seen := i
		for seen > 0 && sample.At.Sub(samples[seen].At) < m.Delay {
			seen--
		}
		if u := steps[seen].Utilization; math.IsNaN(u) {
			o.ReadError = errNoData
		} else {
			// A replica that did not work then has no measurement yet.
			for range min(ready, steps[seen].Ready) {
				o.Replicas = append(o.Replicas, Measurement{At: samples[seen].At, Utilization: u})
			}
		}
		steps[i].Hint, s = p.Decide(s, o)
		for current = steps[i].Hint.Desired; len(starts) < current; {
			starts = append(starts, sample.At.Add(m.StartUp))
		}
		starts = starts[:current]
	}
	return steps
}
