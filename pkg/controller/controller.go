// Package controller owns the loop that turns measurements into scaling hints: it
// finds the pods and claims of each hint's target, has them measured, has package
// scaling decide and package fleet say what fits, and tells the result: in the
// status of the hints and pools, as events and gauges, and, where it was asked to,
// in the replicas of the target. It has no policy of its own.
package controller

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/dcgm"
	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/scaling"
)

// Source is where measurements come from: Measurements, but for tests.
type Source interface {
	Rows(ctx context.Context, nodes sets.Set[string]) ([]dcgm.Row, error)
	Signal(ctx context.Context, query string) (float64, error)
	Usage(ctx context.Context) (map[types.UID]scaling.Usage, error)
}

// Controller decides once an interval. It is not safe for concurrent use.
type Controller struct {
	// Client reads from a cache whose objects nobody changes.
	Client client.Client
	// Live reads from the API server what a cluster may not have.
	Live   client.Reader
	Source Source
	Events events.EventRecorder
	Gauges *Gauges
	Clock  clock.WithTicker
	// Driver is the name of kerf's driver.
	Driver string
	// Interval is that of the decisions, Collect that in which the exporters collect.
	Interval, Collect time.Duration
	// TaintRules says whether the API server has device taint rules.
	TaintRules bool
	// Scale lets hints of mode Scale set replicas, and DeletionCosts mark the pods that are to go.
	Scale, DeletionCosts bool

	fleet *fleet.Fleet
	known map[types.UID]*memory
	// claims are what claims said in the last tick, and seen in this one.
	claims, seen map[types.UID]decoded
	// usageAt is when it was asked last what claims have used.
	usageAt time.Time
}

// memory is what is remembered of a hint from tick to tick.
type memory struct {
	state   scaling.State
	written time.Time
	// told is the last event, so that it is not told again.
	told string
	// rightSize is the last advice on the shape.
	rightSize *v1alpha1.RightSize
}

// search bounds the allocator's search for one replica. A shape so odd that it takes
// longer counts as one that does not fit: a tick has to end.
const search = 20_000

// NeedLeaderElection says that one controller of a cluster decides.
func (c *Controller) NeedLeaderElection() bool { return true }

// Start decides until the context ends. What fails is logged, and tried again in the next interval.
func (c *Controller) Start(ctx context.Context) error {
	ticker := c.Clock.NewTicker(c.Interval)
	defer ticker.Stop()
	for {
		began := c.Clock.Now()
		err := c.Tick(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			klog.FromContext(ctx).Error(err, "Not all hints could be decided or told; it is tried again", "in", c.Interval)
		}
		c.Gauges.ticked(c.Clock.Since(began), err)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
	}
}

// Tick decides all hints once.
func (c *Controller) Tick(ctx context.Context) error {
	all, err := c.read(ctx)
	if err != nil {
		return err
	}
	now := c.Clock.Now()
	workloads := make([]*workload, 0, len(all.hints))
	taken := map[targetKey]string{}
	c.seen = make(map[types.UID]decoded, len(c.claims))
	for _, h := range byAge(all.hints) {
		w := c.observe(ctx, all, h)
		if other, ok := taken[keyOf(h)]; ok {
			w.err = fmt.Errorf("%w: GPUScalingHint %s is about it too, and older", errTargetTaken, other)
		}
		taken[keyOf(h)] = h.Name
		workloads = append(workloads, w)
	}
	c.claims = c.seen
	c.measure(ctx, now, workloads)
	pools := c.decide(ctx, all, workloads)
	c.Gauges.set(workloads, pools)
	return errors.Join(c.mark(ctx, all, workloads), c.tell(ctx, now, all, workloads), c.tellPools(ctx, pools))
}

var errTargetTaken = errors.New("the target is another hint's")

// byAge orders hints so that of two with one target the older one comes first.
func byAge(hints []v1alpha1.GPUScalingHint) []*v1alpha1.GPUScalingHint {
	return slices.SortedFunc(slices.Values(pointers(hints)), func(a, b *v1alpha1.GPUScalingHint) int {
		if order := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); order != 0 {
			return order
		}
		return slices.Compare([]string{a.Namespace, a.Name}, []string{b.Namespace, b.Name})
	})
}

// measure gives every workload its observation. Who has no GPUs is not waited for.
func (c *Controller) measure(ctx context.Context, now time.Time, workloads []*workload) {
	nodes := sets.New[string]()
	for _, w := range workloads {
		for _, r := range w.replicas {
			if len(r.devices) > 0 {
				nodes.Insert(r.pod.Spec.NodeName)
			}
		}
	}
	var (
		rows []dcgm.Row
		err  error
	)
	if len(nodes) > 0 {
		rows, err = c.Source.Rows(ctx, nodes)
	}
	join(workloads, rows, now, c.Collect)
	for _, w := range workloads {
		w.measure(now, err)
	}
	c.signals(ctx, workloads)
}

// signals asks the queries of all hints.
func (c *Controller) signals(ctx context.Context, workloads []*workload) {
	ctx, cancel := context.WithTimeout(ctx, ReadTimeout)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(readsAtOnce)
	for _, w := range workloads {
		if len(w.hint.Spec.Signals) == 0 || w.err != nil {
			continue
		}
		group.Go(func() error {
			for _, s := range w.hint.Spec.Signals {
				value, err := c.Source.Signal(ctx, s.Query)
				switch {
				case err != nil:
					w.blind = fmt.Errorf("signal %s: %w", s.Name, err)
				case math.IsNaN(value):
					w.blind = fmt.Errorf("signal %s: the query gives no value", s.Name)
				case value > float64(s.ScaleUpAbove):
					w.observation.Signals = append(w.observation.Signals, s.Name)
				}
			}
			w.observation.Blind = w.blind != nil
			return nil
		})
	}
	_ = group.Wait()
}

// decide has each workload decided by itself, and then all together.
func (c *Controller) decide(ctx context.Context, all *world, workloads []*workload) map[string]*members {
	known := make(map[types.UID]*memory, len(workloads))
	var plans []scaling.Workload
	var decided []*workload
	for _, w := range workloads {
		m := c.known[w.hint.UID]
		if m == nil {
			m = &memory{state: scaling.Resume(&w.hint.Status, c.Clock.Now())}
		}
		known[w.hint.UID] = m
		if w.err != nil {
			m.state = scaling.State{}
			continue
		}
		policy := scaling.PolicyOf(&w.hint.Spec, c.Collect)
		w.decision, m.state = policy.Decide(m.state, w.observation)
		w.state = m.state
		plan := w.plan()
		plan.Spare = policy.Spare(m.state, w.decision)
		plans, decided = append(plans, plan), append(decided, w)
	}
	c.known = known

	if c.fleet == nil {
		c.fleet = fleet.New(all.objects.Snapshot)
		c.fleet.Search = search
	} else {
		c.fleet.Refresh(all.objects.Snapshot)
	}
	pools := map[string]*members{}
	for i := range all.pools {
		m := membersOf(&all.pools[i], c.fleet.Nodes())
		m.count(c.fleet)
		pools[m.pool.Name] = m
	}
	placer := newPlacer(ctx, c.fleet, all, decided, pools)
	outcomes := scaling.Plan(plans, placer)
	placer.restore()
	for _, w := range decided {
		w.outcome = outcomes[w.name()]
	}
	c.advise(ctx, c.Clock.Now(), all, decided)
	return pools
}
