package scaling

import (
	"fmt"
	"math"
	"time"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

// Observation is what is known of a workload at one moment.
type Observation struct {
	At time.Time
	// Current is how many replicas are asked for, Ready how many of them work.
	Current, Ready int
	// Replicas are the measurements of those that work. One without a measurement is not among them.
	Replicas []Measurement
	// Signals are the names of the further signals that are above their thresholds.
	Signals []string
	// Blind says that one of them could not be read, so that it is not known whether the workload can do with less.
	Blind bool
	// ReadError is why the metrics could not be read, nil where they could.
	ReadError error
}

// Measurement is what was measured of one replica.
type Measurement struct {
	At time.Time
	// Utilization in percent of what the replica has.
	Utilization float64
	// Memory is the used share of its memory in percent.
	Memory float64
	// Shared is true where the GPU is shared in time: the utilization is that of all who share it, an upper bound.
	Shared bool
}

// State is what a decision needs to know of earlier ones. The zero value knows
// nothing; it makes a first decision cautious and no different otherwise.
type State struct {
	// LastChange is when the replicas were last seen to change.
	LastChange time.Time
	// highSince and lowSince are the beginnings of what lasts, zero while it does not.
	highSince, lowSince time.Time
	// goal is what growth aims at beyond what its limit allowed, 0 for none.
	goal   int
	failed int
	// wasHigh is true until the first observation after Resume.
	wasHigh bool
	// readyAt is when the replicas that work last changed.
	readyAt time.Time
	// past are the latest observations, the last at the end.
	past []moment
}

// moment is what is remembered of an observation: the replicas, and how many the load needs.
type moment struct {
	at                    time.Time
	current, ready, needs int
}

// Hint is the answer.
type Hint struct {
	At               time.Time
	Current, Desired int
	Direction        v1alpha1.Direction
	Reason           v1alpha1.Reason
	// Message explains the reason with numbers, for people.
	Message  string
	Evidence Evidence
}

// Evidence is what was measured. See the fields of the same names in the API.
type Evidence struct {
	Utilization, Memory float64
	Measured, Ready     int
	Age                 time.Duration
	Shared              bool
}

// Decide says how many replicas there should be, and returns the state for the
// next decision. The observations of a workload are to be given in the order of time.
func (p Policy) Decide(s State, o Observation) (Hint, State) {
	s = s.seen(p, o)
	// Until more is known, what is there counts as needed.
	s.past = append(s.past, moment{o.At, o.Current, o.Ready, o.Current})
	fresh, stale := p.fresh(o)
	e := summarize(o, fresh)
	h := Hint{At: o.At, Current: o.Current, Evidence: e}

	hold := func(reason v1alpha1.Reason, format string, args ...any) (Hint, State) {
		return h.with(o.Current, reason, fmt.Sprintf(format, args...)), s
	}
	if o.ReadError != nil {
		s.failed++
	} else {
		s.failed = 0
	}
	switch {
	case o.Current < p.Min:
		s.forget()
		return h.with(p.Min, v1alpha1.ReasonOutOfBounds, fmt.Sprintf("%d replicas are below the minimum of %d", o.Current, p.Min)), s
	case s.failed >= failedReads:
		s.forget()
		return h.with(max(o.Current, min(p.Fallback, p.Max)), v1alpha1.ReasonFallback,
			fmt.Sprintf("the metrics could not be read %d times in a row: %v", s.failed, o.ReadError)), s
	case o.ReadError != nil:
		s.forget()
		return hold(v1alpha1.ReasonNoData, "the metrics could not be read: %v", o.ReadError)
	case len(fresh) == 0 || float64(len(fresh)) < minCoverage*float64(o.Ready):
		s.forget()
		if stale > 0 {
			return hold(v1alpha1.ReasonStaleData, "%d of %d ready replicas have measurements older than %s", stale, o.Ready, staleIntervals*p.Interval)
		}
		return hold(v1alpha1.ReasonNoData, "%d of %d ready replicas have a measurement", len(fresh), o.Ready)
	case o.Current > p.Max:
		return h.with(p.Max, v1alpha1.ReasonOutOfBounds, fmt.Sprintf("%d replicas are above the maximum of %d", o.Current, p.Max)), s
	}

	own, measured := mean(fresh, func(m Measurement) bool { return !m.Shared })
	high := measured && own > p.UpAbove
	known := e.Measured >= o.Ready && o.Ready >= o.Current && len(o.Signals) == 0 && !o.Blind
	low := known && e.Utilization < p.DownBelow
	if known {
		s.past[len(s.past)-1].needs = p.needs(e.Utilization, o.Ready)
	}
	since(&s.highSince, high || len(o.Signals) > 0, o.At)
	since(&s.lowSince, low, o.At)

	switch {
	case high || len(o.Signals) > 0:
		return p.grow(h, s, o, own, high)
	case low:
		s.goal = 0
		return p.shrink(h, s, o)
	}
	s.goal = 0
	if e.Utilization > p.UpAbove {
		return hold(v1alpha1.ReasonSharedOnly, "%.1f %% is the utilization of GPUs that are shared in time, and not the workload's own", e.Utilization)
	}
	if o.Ready < o.Current {
		return hold(v1alpha1.ReasonReplicasPending, "%d of %d replicas do not work yet", o.Current-o.Ready, o.Current)
	}
	return hold(v1alpha1.ReasonWithinThresholds, "%.1f %% is within %.0f..%.0f %%", e.Utilization, p.DownBelow, p.UpAbove)
}

// grow decides where the utilization, or a signal, is high.
func (p Policy) grow(h Hint, s State, o Observation, own float64, high bool) (Hint, State) {
	reason, what := v1alpha1.ReasonSignal, fmt.Sprintf("%q above the threshold", o.Signals)
	wants := o.Current + 1
	if high {
		reason, what = v1alpha1.ReasonUtilizationHigh, fmt.Sprintf("%.1f %% is above %.0f %%", own, p.UpAbove)
		// Replicas that do not work yet will take their share: what is needed is compared with all that were asked for.
		wants = p.needs(own, o.Ready)
	}
	wants = min(wants, p.Max)
	switch {
	case o.Current >= p.Max:
		return h.with(o.Current, v1alpha1.ReasonAtMaximum, fmt.Sprintf("%s, and there are as many replicas as there may be", what)), s
	case o.At.Sub(s.highSince) < upSustained:
		return h.with(o.Current, v1alpha1.ReasonNotSustained, fmt.Sprintf("%s, for less than %s", what, upSustained)), s
	case o.Ready < o.Current && (!high || wants <= o.Current):
		return h.with(o.Current, v1alpha1.ReasonReplicasPending, fmt.Sprintf("%s, and %d of %d replicas do not work yet", what, o.Current-o.Ready, o.Current)), s
	// A mean of before, times the replicas of now, is a load that never was.
	case high && s.readyAt.After(o.At.Add(-h.Evidence.Age)):
		return h.with(o.Current, v1alpha1.ReasonReplicasPending, fmt.Sprintf("%s, measured before the last replicas worked", what)), s
	// What the limit of growth has cut off was decided before: it does not wait for the cooldown again.
	case p.cooling(s, o.At) && s.goal <= o.Current:
		return h.with(o.Current, v1alpha1.ReasonCooldown, fmt.Sprintf("%s, and the replicas changed less than %s ago", what, p.Cooldown)), s
	}
	base := s.extreme(o.At.Add(-upPeriod), o.Current, func(a, b int) int { return min(a, b) })
	limit := max(2*base, base+upReplicas)
	desired := max(o.Current, min(wants, limit))
	s.goal = max(s.goal, wants)
	if desired == o.Current {
		return h.with(desired, v1alpha1.ReasonRateLimited, fmt.Sprintf("%s; %d are wanted, but no more than %d within %s", what, wants, limit, upPeriod)), s
	}
	return h.with(desired, reason, fmt.Sprintf("%s: %d replicas for %.0f %%", what, wants, p.target())), s
}

// shrink decides where the utilization is low and everything is measured.
func (p Policy) shrink(h Hint, s State, o Observation) (Hint, State) {
	what := fmt.Sprintf("%.1f %% is below %.0f %%", h.Evidence.Utilization, p.DownBelow)
	// The most that was needed meanwhile, so that a short lull takes nothing away.
	needs := 0
	for _, m := range s.past {
		if !m.at.Before(o.At.Add(-downSustained)) {
			needs = max(needs, m.needs)
		}
	}
	base := s.extreme(o.At.Add(-downPeriod), o.Current, func(a, b int) int { return max(a, b) })
	floor := base - max(1, base/downShare)
	switch {
	case o.Current <= p.Min:
		return h.with(o.Current, v1alpha1.ReasonAtMinimum, fmt.Sprintf("%s, and there are as few replicas as there may be", what)), s
	case o.At.Sub(s.lowSince) < downSustained:
		return h.with(o.Current, v1alpha1.ReasonNotSustained, fmt.Sprintf("%s, for less than %s", what, downSustained)), s
	case needs >= o.Current:
		return h.with(o.Current, v1alpha1.ReasonWithinThresholds, fmt.Sprintf("%s, but fewer replicas would be above %.0f %%", what, p.target())), s
	case p.cooling(s, o.At):
		return h.with(o.Current, v1alpha1.ReasonCooldown, fmt.Sprintf("%s, and the replicas changed less than %s ago", what, p.Cooldown)), s
	case floor >= o.Current:
		return h.with(o.Current, v1alpha1.ReasonRateLimited, fmt.Sprintf("%s; no more may go within %s", what, downPeriod)), s
	}
	return h.with(max(needs, floor, p.Min), v1alpha1.ReasonUtilizationLow, fmt.Sprintf("%s for %s: %d replicas for %.0f %%", what, downSustained, max(needs, p.Min), p.target())), s
}

// needs is how many replicas bring the load of those that work to the target.
func (p Policy) needs(utilization float64, ready int) int {
	const rounding = 1e-9 // of the division, so that what fits exactly gets no replica more
	return int(math.Ceil(utilization*float64(ready)/p.target() - rounding))
}

func (p Policy) cooling(s State, now time.Time) bool {
	return !s.LastChange.IsZero() && now.Sub(s.LastChange) < p.Cooldown
}

// fresh are the measurements that may be used, one of each replica at most, and how many are too old for it.
func (p Policy) fresh(o Observation) (fresh []Measurement, stale int) {
	for _, m := range o.Replicas {
		switch {
		case math.IsNaN(m.Utilization):
		case o.At.Sub(m.At) > staleIntervals*p.Interval:
			stale++
		default:
			fresh = append(fresh, m)
		}
	}
	return fresh, stale
}

func (h Hint) with(desired int, reason v1alpha1.Reason, message string) Hint {
	h.Desired, h.Reason, h.Message = desired, reason, message
	switch {
	case desired > h.Current:
		h.Direction = v1alpha1.DirectionUp
	case desired < h.Current:
		h.Direction = v1alpha1.DirectionDown
	default:
		h.Direction = v1alpha1.DirectionHold
	}
	return h
}
