package scaling

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

var allClasses = []v1alpha1.Class{v1alpha1.ClassRealtime, v1alpha1.ClassBatch, v1alpha1.ClassConversational, v1alpha1.ClassConservative}

// constant is two hours of a load, in percent of one replica, with noise of a share of it.
func constant(r *rand.Rand, start int, load, noise float64) []Sample {
	var all []Sample
	for i := range 480 {
		u := load / float64(start) * (1 + noise*(2*r.Float64()-1))
		all = append(all, Sample{At: t0.Add(time.Duration(i) * tick), Replicas: start, Utilization: u})
	}
	return all
}

// reversals counts how often the direction turns.
func reversals(steps []Step) int {
	n, last := 0, v1alpha1.DirectionHold
	for _, s := range steps {
		if s.Hint.Direction == v1alpha1.DirectionHold {
			continue
		}
		if last != v1alpha1.DirectionHold && last != s.Hint.Direction {
			n++
		}
		last = s.Hint.Direction
	}
	return n
}

// On a constant load the replicas go one way and stay, whatever the noise up to
// a tenth, the delay of the measurements and the time that replicas take to start.
func TestNoOscillationOnConstantLoad(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		class := allClasses[r.IntN(len(allClasses))]
		start, load, noise := 1+r.IntN(16), 1200*r.Float64(), 0.1*r.Float64()
		m := Model{StartUp: time.Duration(r.IntN(240)) * time.Second, Delay: time.Duration(r.IntN(60)) * time.Second}
		steps := m.Replay(policy(class), constant(r, start, load, noise))
		require.Zero(t, reversals(steps), "%s: %d replicas, load %.0f, noise %.2f, %+v", class, start, load, noise, m)
		for _, s := range steps[len(steps)*3/4:] {
			require.Equal(t, s.Hint.Current, s.Hint.Desired, "%s: %d replicas, load %.0f, noise %.2f, %+v: not settled: %s", class, start, load, noise, m, s.Hint.Message)
		}
	}
}

// The model above does see oscillation: one target and no memory, as an HPA
// without stabilization has it, turns again and again.
func TestNaiveOscillates(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	turns, replicas, last := 0, 5, 0
	for range 480 {
		u := 310 / float64(replicas) * (1 + 0.1*(2*r.Float64()-1))
		next := int(math.Ceil(u * float64(replicas) / 62))
		if d := next - replicas; d != 0 {
			if d*last < 0 {
				turns++
			}
			last = d
		}
		replicas = next
	}
	require.Greater(t, turns, 20)
}

// More load never ends in fewer replicas.
func TestSettledReplicasAreMonotoneInLoad(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 25 {
		class, start := allClasses[r.IntN(len(allClasses))], 1+r.IntN(16)
		m := Model{StartUp: time.Duration(r.IntN(240)) * time.Second, Delay: time.Duration(r.IntN(60)) * time.Second}
		before := 0
		for load := 0.0; load <= 1200; load += 75 {
			steps := m.Replay(policy(class), constant(r, start, load, 0))
			settled := steps[len(steps)-1].Hint.Desired
			require.GreaterOrEqual(t, settled, before, "%s: %d replicas, load %.0f, %+v", class, start, load, m)
			before = settled
		}
	}
}

// random is an observation of any kind, i ticks after the start.
func random(r *rand.Rand, i, current int) Observation {
	o := at(i, current, 0)
	o.Ready = r.IntN(current + 1)
	o.Replicas = o.Replicas[:r.IntN(o.Ready+1)]
	if r.IntN(2) == 0 {
		o = at(i, current, 0) // complete
	}
	for j := range o.Replicas {
		o.Replicas[j].Utilization = 100 * r.Float64()
		if r.IntN(10) == 0 {
			o.Replicas[j].Utilization = math.NaN()
		}
		o.Replicas[j].At = o.At.Add(-time.Duration(r.IntN(110)) * time.Second)
		o.Replicas[j].Shared = r.IntN(8) == 0
	}
	if r.IntN(10) == 0 {
		o.Replicas, o.ReadError = nil, errNoData
	}
	return o
}

// Whatever was seen before: the more utilization a moment has, the more is desired.
// The bounds hold, and where a measurement is missing nothing gets smaller.
func TestEveryDecision(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	compared, incomplete, down := 0, 0, 0
	for range 300 {
		p := policy(allClasses[r.IntN(len(allClasses))])
		p.Min, p.Max = 1+r.IntN(4), 8+r.IntN(16)
		var s State
		current := p.Min + r.IntN(p.Max-p.Min+1)
		calm := r.IntN(2) == 0 // else it never lasts
		for i := range 60 {
			o := random(r, i, current)
			if calm {
				o = at(i, current, p.DownBelow*r.Float64())
			}
			h, next := p.Decide(s, o)
			require.GreaterOrEqual(t, h.Desired, p.Min)
			require.LessOrEqual(t, h.Desired, p.Max)
			if h.Evidence.Measured < o.Current || o.ReadError != nil {
				incomplete++
				require.GreaterOrEqual(t, h.Desired, h.Current, h.Message)
			}
			if h.Direction == v1alpha1.DirectionDown {
				down++
			}
			more := o
			more.Replicas = append([]Measurement{}, o.Replicas...)
			for j := range more.Replicas {
				more.Replicas[j].Utilization += (100 - more.Replicas[j].Utilization) * r.Float64()
			}
			above, _ := p.Decide(s, more)
			require.GreaterOrEqual(t, above.Desired, h.Desired, "%s, and with more load: %s", h.Message, above.Message)
			compared++
			s, current = next, h.Desired
		}
	}
	require.Equal(t, 300*60, compared)
	require.Greater(t, incomplete, 1000)
	require.Greater(t, down, 100)
}
