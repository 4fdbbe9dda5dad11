package scaling

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

// room is a fleet of places that are all alike: each takes one replica, whatever its shape.
type room struct {
	free int
	// elastic are the replicas of a workload that are on nodes that belong to nobody, others all of it.
	elastic, others map[string]int
	nodes           NewNodes
	err             error
}

func (r *room) Place(string) (bool, error) {
	if r.free == 0 || r.err != nil {
		return false, r.err
	}
	r.free--
	return true, nil
}

func (r *room) MakeRoom(_ string, donors []Donor, elastic bool) ([]Replica, error) {
	from := r.others
	if elastic {
		from = r.elastic
	}
	for _, d := range donors {
		if from[d.Workload] > 0 {
			from[d.Workload]--
			return []Replica{{d.Workload, "pod"}}, nil
		}
	}
	return nil, nil
}

func (r *room) NewNodes(string) NewNodes { return r.nodes }

func wants(name string, priority int32, current, desired int) Workload {
	return Workload{Name: name, Pool: "pool", Priority: priority, Hint: Hint{Message: "it is so"}.with2(current, desired)}
}

func (h Hint) with2(current, desired int) Hint {
	h.Current = current
	return h.with(desired, v1alpha1.ReasonUtilizationHigh, h.Message)
}

func TestPlan(t *testing.T) {
	automatic := NewNodes{NewNodesAutomatic, "somebody brings them"}
	donor := func(name string, priority int32, current, spare int) Workload {
		w := wants(name, priority, current, current)
		w.Spare = spare
		return w
	}
	type is struct {
		scaleTo, now, after, nodes int
		state                      v1alpha1.FeasibilityState
	}
	pending := wants("a", 1, 4, 7)
	pending.Pending = 2
	leaving := donor("b", 0, 1, 0)
	leaving.Leaving = 1
	apart := donor("b", 0, 4, 3)
	apart.Pool = "another"
	for name, c := range map[string]struct {
		room      room
		workloads []Workload
		want      map[string]is
	}{
		"nothing is asked for": {room{}, []Workload{donor("a", 0, 3, 2)}, map[string]is{"a": {3, 0, 0, 0, v1alpha1.FitsNow}}},
		"all is free":          {room{free: 5}, []Workload{wants("a", 0, 2, 5)}, map[string]is{"a": {5, 3, 0, 0, v1alpha1.FitsNow}}},
		"the higher priority takes first": {room{free: 3}, []Workload{wants("a", 0, 1, 3), wants("b", 5, 1, 3)},
			map[string]is{"b": {3, 2, 0, 0, v1alpha1.FitsNow}, "a": {2, 1, 0, 1, v1alpha1.NeedsNodes}}},
		// What waits for the donor is not asked for yet: it would bring a node that nobody needs.
		"a surge": {room{others: map[string]int{"b": 4}, nodes: automatic}, []Workload{wants("a", 1, 4, 7), donor("b", 0, 2, 1)},
			map[string]is{"a": {6, 0, 1, 2, v1alpha1.NeedsNodes}, "b": {1, 0, 0, 0, v1alpha1.FitsNow}}},
		"nobody brings nodes": {room{free: 1, nodes: NewNodes{State: NewNodesByHand}}, []Workload{wants("a", 1, 4, 7)},
			map[string]is{"a": {5, 1, 0, 2, v1alpha1.NeedsNodes}}},
		"no node has the shape": {room{nodes: NewNodes{State: NewNodesNone}}, []Workload{wants("a", 1, 4, 5)},
			map[string]is{"a": {4, 0, 0, 1, v1alpha1.FitsNever}}},
		"pending replicas take the first places": {room{free: 1, others: map[string]int{"b": 1}, nodes: automatic}, []Workload{pending, donor("b", 0, 4, 1)},
			map[string]is{"a": {7, 1, 1, 3, v1alpha1.NeedsNodes}, "b": {3, 0, 0, 0, v1alpha1.FitsNow}}},
		"an equal gives what it does not need": {room{elastic: map[string]int{"b": 1}}, []Workload{wants("a", 1, 1, 2), donor("b", 1, 3, 2)},
			map[string]is{"a": {1, 0, 1, 0, v1alpha1.FitsAfter}, "b": {2, 0, 0, 0, v1alpha1.FitsNow}}},
		"a higher one does not": {room{elastic: map[string]int{"b": 1}}, []Workload{wants("a", 1, 1, 2), donor("b", 2, 3, 2)},
			map[string]is{"a": {1, 0, 0, 1, v1alpha1.NeedsNodes}, "b": {3, 0, 0, 0, v1alpha1.FitsNow}}},
		"nor one of another pool": {room{elastic: map[string]int{"b": 1}}, []Workload{wants("a", 1, 1, 2), apart},
			map[string]is{"a": {1, 0, 0, 1, v1alpha1.NeedsNodes}, "b": {4, 0, 0, 0, v1alpha1.FitsNow}}},
		"what leaves already is not taken again": {room{others: map[string]int{"b": 2}}, []Workload{wants("a", 1, 1, 3), leaving},
			map[string]is{"a": {1, 0, 1, 1, v1alpha1.NeedsNodes}, "b": {1, 0, 0, 0, v1alpha1.FitsNow}}},
		"what cannot be told holds nothing back": {room{err: errors.New("a selector fails")}, []Workload{wants("a", 1, 1, 3)},
			map[string]is{"a": {3, 0, 0, 0, v1alpha1.FeasibilityUnknown}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := map[string]is{}
			for name, o := range Plan(c.workloads, &c.room) {
				after := 0
				for _, d := range o.Feasibility.After {
					after += int(d.Replicas)
				}
				got[name] = is{o.ScaleTo, int(o.Feasibility.Now), after, int(o.Feasibility.Nodes), o.Feasibility.State}
			}
			require.Equal(t, c.want, got)
		})
	}
}

// Both sides of a gift say so.
func TestPlanSaysWhoGives(t *testing.T) {
	b := wants("b", 0, 2, 2)
	b.Spare = 1
	got := Plan([]Workload{wants("a", 1, 4, 5), b}, &room{others: map[string]int{"b": 2}})
	require.Equal(t, []v1alpha1.Donation{{Hint: "b", Replicas: 1}}, got["a"].Feasibility.After)
	require.Equal(t, "0 of 1 further replicas fit now; 1 once b has given 1", got["a"].Feasibility.Message)
	require.Equal(t, []Replica{{"b", "pod"}}, got["b"].Gives)
	require.Equal(t, v1alpha1.ReasonGivesWay, got["b"].Hint.Reason)
	require.Equal(t, v1alpha1.DirectionDown, got["b"].Hint.Direction)
	require.Equal(t, "it does not need 1, and a needs more (it is so)", got["b"].Hint.Message)
}

// Whatever is wanted: every place is counted once, nobody gives more than it can,
// and more priority never means fewer places.
func TestPlanProperties(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		fleet := func(seed uint64) *room {
			r := rand.New(rand.NewPCG(3, seed))
			f := &room{free: r.IntN(6), elastic: map[string]int{}, others: map[string]int{}, nodes: NewNodes{State: NewNodesAutomatic}}
			for _, name := range []string{"a", "b", "c", "d"} {
				f.elastic[name], f.others[name] = r.IntN(3), r.IntN(4)
			}
			return f
		}
		seed := random.Uint64()
		var all []Workload
		for _, name := range []string{"a", "b", "c", "d"} {
			current := 1 + random.IntN(6)
			w := wants(name, int32(random.IntN(3)), current, max(1, current+random.IntN(8)-3))
			w.Spare, w.Pending = random.IntN(current), random.IntN(2)*random.IntN(current)
			all = append(all, w)
		}
		start := fleet(seed)
		free := start.free
		outcomes := Plan(all, start)
		given := 0
		for _, w := range all {
			o := outcomes[w.Name]
			sum := 0
			for _, d := range o.Feasibility.After {
				require.NotEqual(t, w.Name, d.Hint)
				sum += int(d.Replicas)
			}
			given += sum
			free -= int(o.Feasibility.Now)
			n := w.pending() + w.growth()
			if n > 0 {
				require.Equal(t, n, int(o.Feasibility.Now)+sum+int(o.Feasibility.Nodes), "%+v", w)
			}
			require.LessOrEqual(t, len(o.Gives), w.Spare)
			require.LessOrEqual(t, o.ScaleTo, max(w.Hint.Desired, w.Hint.Current))
			require.GreaterOrEqual(t, o.Hint.Desired, min(w.Hint.Desired, w.Hint.Current-w.Spare))
			if len(o.Gives) > 0 {
				require.Zero(t, n, "who needs more does not give")
			}
		}
		require.GreaterOrEqual(t, free, 0)
		gives := 0
		for _, o := range outcomes {
			gives += len(o.Gives)
		}
		require.Equal(t, given, gives)

		first := all[0]
		first.Priority = 10
		first.Pending = 0
		higher := Plan(append([]Workload{first}, all[1:]...), fleet(seed))[first.Name]
		all[0].Pending = 0
		same := Plan(all, fleet(seed))[first.Name]
		require.LessOrEqual(t, higher.Feasibility.Nodes, same.Feasibility.Nodes)
		require.False(t, slices.ContainsFunc(higher.Gives, func(Replica) bool { return strings.Contains(higher.Hint.Message, first.Name) }))
	}
}

// A workload gives what it has not needed for a minute, and nothing that is not known.
func TestSpare(t *testing.T) {
	p := Policy{UpAbove: 70, DownBelow: 30, Min: 1, Max: 10, Interval: DefaultInterval}
	for name, c := range map[string]struct {
		change func(i int, o *Observation)
		want   int
	}{
		"steady":           {func(int, *Observation) {}, 2},
		"a peak meanwhile": {func(i int, o *Observation) { o.Replicas[0].Utilization += float64(50 * (1 - min(1, (i-10)*(i-10)))) }, 1},
		"a gap meanwhile":  {func(i int, o *Observation) { o.Replicas = o.Replicas[min(1, max(0, 11-i)):] }, 0},
		"unreadable":       {func(i int, o *Observation) { o.Blind = i == 9 }, 0},
		"a signal":         {func(i int, o *Observation) { o.Signals = [][]string{nil, {"queue"}}[i/12] }, 0},
		"too new":          {func(i int, o *Observation) { o.At = o.At.Add(-14 * time.Duration(i) * time.Second) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var (
				s State
				h Hint
			)
			for i := range 13 {
				o := Observation{At: t0.Add(time.Duration(i) * 15 * time.Second), Current: 4, Ready: 4}
				for range 4 {
					o.Replicas = append(o.Replicas, Measurement{At: o.At, Utilization: 25})
				}
				c.change(i, &o)
				h, s = p.Decide(s, o)
			}
			require.Equal(t, c.want, p.Spare(s, h), "%+v", h)
		})
	}
}

// Who takes over goes on growing at once, and does not shrink before it has seen enough.
func TestResume(t *testing.T) {
	p := Policy{UpAbove: 70, DownBelow: 30, Min: 1, Max: 10, Interval: DefaultInterval, Cooldown: time.Minute}
	for name, c := range map[string]struct {
		direction   v1alpha1.Direction
		expired     bool
		utilization float64
		want        int
	}{
		"growing":          {v1alpha1.DirectionUp, false, 85, 7},
		"growing, expired": {v1alpha1.DirectionUp, true, 85, 4},
		"no longer high":   {v1alpha1.DirectionUp, false, 50, 4},
		"holding":          {v1alpha1.DirectionHold, false, 85, 4},
		"shrinking":        {v1alpha1.DirectionDown, false, 10, 4},
	} {
		t.Run(name, func(t *testing.T) {
			status := v1alpha1.GPUScalingHintStatus{Direction: c.direction, ValidUntil: &metav1.Time{Time: t0.Add(time.Minute)}}
			if c.expired {
				status.ValidUntil.Time = t0.Add(-time.Second)
			}
			o := Observation{At: t0, Current: 4, Ready: 4}
			for range 4 {
				o.Replicas = append(o.Replicas, Measurement{At: o.At, Utilization: c.utilization})
			}
			h, _ := p.Decide(Resume(&status, t0), o)
			require.Equal(t, c.want, h.Desired, "%+v", h)
		})
	}
	t.Run("cooldown", func(t *testing.T) {
		status := v1alpha1.GPUScalingHintStatus{LastScaleTime: &metav1.Time{Time: t0.Add(-time.Second)}}
		require.Equal(t, t0.Add(-time.Second), Resume(&status, t0).LastChange)
	})
}
