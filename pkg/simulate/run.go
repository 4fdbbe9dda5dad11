package simulate

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/explain"
	"github.com/kerf-project/kerf/pkg/fleet"
)

// Result is what came of the workloads on the fleet, with one order of publication.
type Result struct {
	Order  Order `json:"order"`
	Nodes  int   `json:"nodes"`
	GPUs   int   `json:"gpus"`
	Slices int   `json:"slices"`
	// Jobs are pods, or claims of a trace, in the order in which they came.
	Jobs []Job `json:"jobs"`
	// Refusals are the workloads of which something did not fit when it came.
	Refusals []Refusal `json:"refusals,omitempty"`
	// Timeline has a point for each moment at which something changed.
	Timeline []Point `json:"timeline"`
	Summary  Summary `json:"summary"`
	// Ignored names the objects of the manifests that are no workload.
	Ignored []string `json:"ignored,omitempty"`
}

// Job is one pod or claim.
type Job struct {
	Name     string  `json:"name"`
	Workload string  `json:"workload"`
	At       Seconds `json:"at"`
	// Placed is when it was, if it was.
	Placed *Seconds `json:"placed,omitempty"`
	// Ended is when it left, if it did.
	Ended   *Seconds `json:"ended,omitempty"`
	Node    string   `json:"node,omitempty"`
	Devices []string `json:"devices,omitempty"`
}

// Refusal is why the first of a workload that did not fit did not.
type Refusal struct {
	Workload string  `json:"workload"`
	At       Seconds `json:"at"`
	Job      string  `json:"job"`
	// Why has a line for each reason, with the number of nodes.
	Why []string `json:"why"`
}

// Point is how things stand from a moment on.
type Point struct {
	At       Seconds `json:"at"`
	Used     int     `json:"used"`
	Stranded int     `json:"stranded"`
	Waiting  int     `json:"waiting"`
}

// Seconds since the start.
type Seconds float64

func (s Seconds) String() string { return time.Duration(float64(s) * float64(time.Second)).String() }

// Summary adds up. Means are over time, of memory slices.
type Summary struct {
	Jobs int `json:"jobs"`
	// AtOnce were placed when they came, Waited later, Never not at all.
	AtOnce       int     `json:"atOnce"`
	Waited       int     `json:"waited"`
	Never        int     `json:"never"`
	LongestWait  Seconds `json:"longestWait"`
	MeanUsed     float64 `json:"meanUsed"`
	MeanStranded float64 `json:"meanStranded"`
	PeakUsed     int     `json:"peakUsed"`
	PeakStranded int     `json:"peakStranded"`
}

// Run plays the input once. Progress, if it is not nil, is told how many jobs have come.
//
// Jobs come in the order of their times, and at one time in that of the input. A
// job that does not fit waits; when others leave, the waiting ones are tried again
// in the order in which they came. Nodes are tried in their order.
func Run(ctx context.Context, in *Input, order Order, progress func(done, total int)) (*Result, error) {
	jobs, err := in.jobs()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(jobs, func(a, b job) int { return cmp.Compare(a.at, b.at) })
	s := &simulation{in: in, result: &Result{Order: order, Ignored: in.Ignored}, claims: map[string]*resourceapi.ResourceClaim{}, refused: map[string]bool{}}
	snapshot := in.Snapshot
	snapshot.Slices = order.sorted(in.Slices)
	s.fleet, s.usage = fleet.New(snapshot), newUsage(snapshot.Slices)
	for _, c := range in.Claims {
		s.claims[fleet.Key(c)] = c
		s.usage.change(c, 1)
	}
	s.result.Nodes, s.result.GPUs, s.result.Slices = len(s.fleet.Nodes()), len(s.usage.gpus), s.usage.total
	for i, j := range jobs {
		if err := s.until(ctx, j.at); err != nil {
			return nil, err
		}
		s.result.Jobs = append(s.result.Jobs, Job{Name: j.name, Workload: j.workload, At: seconds(j.at)})
		placed, err := s.try(ctx, i, j)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", j.workload, j.name, err)
		}
		if !placed {
			s.waiting = append(s.waiting, waiting{i, j})
		}
		s.point(j.at)
		if progress != nil {
			progress(i+1, len(jobs))
		}
	}
	if err := s.until(ctx, forever); err != nil {
		return nil, err
	}
	s.result.summarize(s.now)
	return s.result, nil
}

type simulation struct {
	in      *Input
	fleet   *fleet.Fleet
	usage   *usage
	result  *Result
	now     time.Duration
	running departures
	waiting []waiting
	// claims are those that have a name of their own, with their allocation.
	claims map[string]*resourceapi.ResourceClaim
	// refused are the workloads that have not fitted since the last departure: what
	// has come since does not make them fit.
	refused map[string]bool
}

type waiting struct {
	index int
	job
}

// until plays what happens up to a time; forever is all.
func (s *simulation) until(ctx context.Context, at time.Duration) error {
	for len(s.running) > 0 && (at == forever || s.running[0].at <= at) {
		s.now = s.running[0].at
		for len(s.running) > 0 && s.running[0].at == s.now {
			d := heap.Pop(&s.running).(departure)
			for _, c := range d.claims {
				s.fleet.Release(c)
				s.usage.change(c, -1)
			}
			ended := seconds(s.now)
			s.result.Jobs[d.index].Ended = &ended
		}
		clear(s.refused)
		var still []waiting
		for _, w := range s.waiting {
			placed, err := s.try(ctx, w.index, w.job)
			if err != nil {
				return fmt.Errorf("%s %s: %w", w.workload, w.name, err)
			}
			if !placed {
				still = append(still, w)
			}
		}
		s.waiting = still
		s.point(s.now)
	}
	s.now = max(s.now, at)
	return nil
}

// try places a job now, or says that it does not fit.
func (s *simulation) try(ctx context.Context, index int, j job) (bool, error) {
	if s.refused[j.workload] {
		return false, nil
	}
	pod, err := s.in.PodOf(j.pod)
	if err != nil {
		return false, err
	}
	for i, c := range pod.Claims {
		if known := s.claims[fleet.Key(c)]; known != nil {
			pod.Claims[i] = known
		}
	}
	if err := s.usage.want(ctx, s.fleet, j.workload, pod.Claims); err != nil {
		return false, err
	}
	node, placed, err := s.fleet.Place(ctx, pod)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err != nil {
		s.refused[j.workload] = true
		return false, s.refuse(ctx, j, pod, err)
	}
	now := seconds(s.now)
	r := &s.result.Jobs[index]
	r.Placed, r.Node = &now, node
	for _, c := range placed {
		s.usage.change(c, 1)
		if s.claims[fleet.Key(c)] != nil {
			s.claims[fleet.Key(c)] = c
		}
		for _, d := range c.Status.Allocation.Devices.Results {
			r.Devices = append(r.Devices, d.Device)
		}
	}
	if j.duration != forever {
		heap.Push(&s.running, departure{s.now + j.duration, index, placed})
	}
	return true, nil
}

// refuse notes why the first of a workload does not fit.
func (s *simulation) refuse(ctx context.Context, j job, pod fleet.Pod, refusal error) error {
	if slices.ContainsFunc(s.result.Refusals, func(r Refusal) bool { return r.Workload == j.workload }) {
		return nil
	}
	r := Refusal{Workload: j.workload, At: seconds(s.now), Job: j.name}
	if !errors.Is(refusal, fleet.ErrNoFit) {
		r.Why = []string{refusal.Error()}
		s.result.Refusals = append(s.result.Refusals, r)
		return nil
	}
	nodes := map[string]int{}
	var order []string
	for _, n := range s.fleet.Nodes() {
		lines := []string{pod.Excluded(n)}
		if lines[0] == "" {
			requests, err := explain.Survey(ctx, s.fleet, n, pod.Pending())
			if err != nil {
				return err
			}
			lines = nil
			for _, request := range requests {
				lines = append(lines, request.Text())
			}
		}
		for _, line := range lines {
			if nodes[line] == 0 {
				order = append(order, line)
			}
			nodes[line]++
		}
	}
	for _, line := range order {
		noun := "nodes"
		if nodes[line] == 1 {
			noun = "node"
		}
		r.Why = append(r.Why, fmt.Sprintf("on %d %s: %s", nodes[line], noun, line))
	}
	if errors.Is(refusal, fleet.ErrSearch) {
		r.Why = append(r.Why, fleet.ErrSearch.Error()+": ask for the scarcest first")
	}
	s.result.Refusals = append(s.result.Refusals, r)
	return nil
}

func (s *simulation) point(at time.Duration) {
	p := Point{seconds(at), s.usage.used, s.usage.stranded, len(s.waiting)}
	if t := s.result.Timeline; len(t) > 0 && t[len(t)-1].At == p.At {
		t[len(t)-1] = p
		return
	}
	s.result.Timeline = append(s.result.Timeline, p)
}

func (r *Result) summarize(end time.Duration) {
	s := &r.Summary
	s.Jobs = len(r.Jobs)
	for _, j := range r.Jobs {
		switch {
		case j.Placed == nil:
			s.Never++
		case *j.Placed == j.At:
			s.AtOnce++
		default:
			s.Waited++
			s.LongestWait = max(s.LongestWait, *j.Placed-j.At)
		}
	}
	var used, stranded, total float64
	for i, p := range r.Timeline {
		until := seconds(end)
		if i+1 < len(r.Timeline) {
			until = r.Timeline[i+1].At
		}
		lasts := float64(until - p.At)
		used, stranded, total = used+lasts*float64(p.Used), stranded+lasts*float64(p.Stranded), total+lasts
		s.PeakUsed, s.PeakStranded = max(s.PeakUsed, p.Used), max(s.PeakStranded, p.Stranded)
	}
	if total > 0 {
		s.MeanUsed, s.MeanStranded = used/total, stranded/total
	} else if n := len(r.Timeline); n > 0 { // All came at once and stays.
		s.MeanUsed, s.MeanStranded = float64(r.Timeline[n-1].Used), float64(r.Timeline[n-1].Stranded)
	}
}

func seconds(d time.Duration) Seconds { return Seconds(d.Seconds()) }

// departure is the end of a job.
type departure struct {
	at     time.Duration
	index  int
	claims []*resourceapi.ResourceClaim
}

// departures is a heap by time, then by the order in which the jobs came.
type departures []departure

func (d departures) Len() int { return len(d) }
func (d departures) Less(a, b int) bool {
	return d[a].at < d[b].at || d[a].at == d[b].at && d[a].index < d[b].index
}
func (d departures) Swap(a, b int) { d[a], d[b] = d[b], d[a] }
func (d *departures) Push(x any)   { *d = append(*d, x.(departure)) }
func (d *departures) Pop() any {
	last := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return last
}
