package scaling

import (
	"slices"
	"time"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

// seen is the state with a change of the replicas noted, and without what is too
// old to matter. After a gap in the observations nothing lasts any more.
func (s State) seen(p Policy, o Observation) State {
	s.past = slices.DeleteFunc(slices.Clone(s.past), func(m moment) bool { return m.at.Before(o.At.Add(-downSustained - downPeriod)) })
	if len(s.past) == 0 {
		s.forget()
		if s.wasHigh {
			s.highSince = o.At.Add(-upSustained)
		}
		return s
	}
	s.wasHigh = false
	last := s.past[len(s.past)-1]
	if last.current != o.Current {
		s.LastChange = o.At
	}
	if last.ready != o.Ready {
		s.readyAt = o.At
	}
	if o.At.Sub(last.at) > staleIntervals*p.Interval {
		s.forget()
	}
	return s
}

// Spare is how many replicas a workload can give to another one: those beyond what
// it needed at any moment of the last minute, and beyond its minimum. A moment at
// which not everything was measured needed all that was there.
func (p Policy) Spare(s State, h Hint) int {
	if len(s.past) == 0 || h.At.Sub(s.past[0].at) < spareSustained || p.cooling(s, h.At) {
		return 0
	}
	needs := p.Min
	for _, m := range s.past {
		if !m.at.Before(h.At.Add(-spareSustained)) {
			needs = max(needs, m.needs)
		}
	}
	return max(0, h.Current-needs)
}

// Resume is the state of whoever decided before, as far as it can be told from what
// was said last: when the replicas changed, and that growth was due. What was low
// has to be seen for its whole time again.
func Resume(status *v1alpha1.GPUScalingHintStatus, now time.Time) State {
	var s State
	if status.LastScaleTime != nil {
		s.LastChange = status.LastScaleTime.Time
	}
	if status.ValidUntil == nil || now.After(status.ValidUntil.Time) {
		return s
	}
	s.wasHigh = status.Direction == v1alpha1.DirectionUp
	return s
}

// forget makes what has lasted begin anew: it is not known to go on.
func (s *State) forget() { s.highSince, s.lowSince, s.goal = time.Time{}, time.Time{}, 0 }

// extreme is the smallest or largest number of replicas after a moment.
func (s State) extreme(after time.Time, current int, of func(a, b int) int) int {
	for _, m := range s.past {
		if m.at.After(after) {
			current = of(current, m.current)
		}
	}
	return current
}

// since keeps the beginning of what lasts.
func since(begin *time.Time, lasts bool, now time.Time) {
	switch {
	case !lasts:
		*begin = time.Time{}
	case begin.IsZero():
		*begin = now
	}
}

// summarize is the evidence in fresh measurements.
func summarize(o Observation, fresh []Measurement) Evidence {
	e := Evidence{Measured: len(fresh), Ready: o.Ready}
	e.Utilization, _ = mean(fresh, func(Measurement) bool { return true })
	for _, m := range fresh {
		e.Memory = max(e.Memory, m.Memory)
		e.Age = max(e.Age, o.At.Sub(m.At))
		e.Shared = e.Shared || m.Shared
	}
	return e
}

// mean is the mean utilization of those that are chosen, and whether there are any.
func mean(all []Measurement, chosen func(Measurement) bool) (float64, bool) {
	sum, n := 0.0, 0
	for _, m := range all {
		if chosen(m) {
			sum += m.Utilization
			n++
		}
	}
	if n == 0 {
		return 0, false
	}
	return sum / float64(n), true
}
