package plugin

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/dynamic-resource-allocation/resourceslice"
	"k8s.io/klog/v2"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/pool"
)

const (
	// lookTimeout bounds a look, so that a GPU that does not answer is reported and not waited for.
	lookTimeout = 10 * time.Second
	// confirmTimeout bounds how long the API server is waited for, and confirmPoll how often it is asked.
	confirmTimeout = 15 * time.Second
	confirmPoll    = 100 * time.Millisecond
)

// Hardware is where the publisher sees the GPUs. With a gpu.ReadErrors the node
// is good for all boards that it does not name.
type Hardware interface {
	Node(ctx context.Context) (gpu.Node, error)
}

// Records are what this node's processes know of claims and instances.
type Records interface {
	Claims() ([]*journal.Claim, error)
	Instances() ([]*journal.Instance, error)
}

// API is what the publisher asks the API server. See API.
type API interface {
	// Allocated are the devices of the node's pool that claims are allocated, by name.
	Allocated(ctx context.Context) ([]string, error)
	// Complete returns nil if the published slices are the pool, and else what they lack.
	Complete(ctx context.Context, want resourceslice.Pool) error
}

// Health tells what is wrong with the GPUs, beside what a look finds. See package health.
type Health interface {
	Conditions() []gpu.Condition
}

// Publisher decides again and again what the node publishes: what its GPUs
// offer, never withdrawing a device that is in use.
type Publisher struct {
	hardware Hardware
	records  Records
	api      API
	health   Health
	config   *configv1alpha1.NodeConfiguration
	stateDir string
	now      func() time.Time
	wake     chan struct{}
	// publish hands the pool to who writes it. Set once, by Run.
	publish atomic.Pointer[Publish]

	failing  sync.Mutex
	failures map[gpu.Device]failure
	// lacks is what the API server has turned out not to have.
	lacks atomic.Pointer[pool.Lacks]

	// mu is held during a look.
	mu        sync.Mutex
	inventory inventory
	// unsaved is true while the inventory is not what is on disk.
	unsaved bool
	looked  bool

	state atomic.Pointer[state]
}

// state is the outcome of a look.
type state struct {
	node      pool.Node
	devices   map[string]gpu.Device
	resources resourceslice.DriverResources
	// pending is true where a GPU does not offer yet what it is to offer.
	pending bool
	foreign int
	// conditions hold until changed is closed.
	conditions []gpu.Condition
	changed    chan struct{}
}

// Publish hands the pool over to be written to the API server.
type Publish func(context.Context, resourceslice.DriverResources) error

// NewPublisher makes the publisher of a node. A nil config has the defaults.
func NewPublisher(ctx context.Context, node pool.Node, hardware Hardware, records Records, api API, health Health, config *configv1alpha1.NodeConfiguration, stateDir string) *Publisher {
	p := &Publisher{
		hardware: hardware, records: records, api: api, health: health, config: config, stateDir: stateDir,
		now: time.Now, wake: make(chan struct{}, 1), failures: map[gpu.Device]failure{},
	}
	p.lacks.Store(&pool.Lacks{})
	p.load(ctx)
	p.state.Store(&state{node: node, changed: make(chan struct{})})
	return p
}

// load reads what was published last.
func (p *Publisher) load(ctx context.Context) {
	var err error
	if p.inventory, err = loadInventory(p.stateDir); err != nil {
		klog.FromContext(ctx).Error(err, "The inventory of an earlier process is lost; what is in use is taken from the journal and the API")
	}
	p.looked, p.unsaved = false, false
}

// Device finds a device that the node could offer, under whatever configuration, by its published name.
func (p *Publisher) Device(name string) (gpu.Device, bool) {
	d, ok := p.state.Load().devices[name]
	return d, ok
}

// Resources are what the node publishes now.
func (p *Publisher) Resources() resourceslice.DriverResources { return p.state.Load().resources }

// Conditions are what is wrong with the devices, until the channel is closed.
func (p *Publisher) Conditions() ([]gpu.Condition, <-chan struct{}) {
	now := p.state.Load()
	return now.conditions, now.changed
}

// Foreign is the number of GPU instances that kerf did not make.
func (p *Publisher) Foreign() int { return p.state.Load().foreign }

// Wake asks for another look. It does not wait for it.
func (p *Publisher) Wake() {
	select {
	case p.wake <- struct{}{}:
	default: // Somebody has asked already.
	}
}

// Released says that a claim has been released: a change that waited for it can be made now.
func (p *Publisher) Released() {
	if p.state.Load().pending {
		p.Wake()
	}
}

// Lacks says what the API server has dropped from the slices, and reports whether
// that is news. From then on the pool does without it, until the process ends.
func (p *Publisher) Lacks(l pool.Lacks) bool {
	for {
		before := p.lacks.Load()
		after := before.Or(l)
		if after == *before {
			return false
		}
		// If somebody else was faster, what he added stays.
		if p.lacks.CompareAndSwap(before, &after) {
			p.Wake()
			return true
		}
	}
}

// Turn is how the processes of a node agree on who publishes. See package journal.
type Turn interface {
	LockPublisher(ctx context.Context) (unlock func(), err error)
}

// Publishing reports whether this is the process of the node that publishes.
func (p *Publisher) Publishing() bool { return p.publish.Load() != nil }

// Run waits until no other process of the node publishes, publishes what a look
// decides, and looks again whenever it is woken, until the context ends.
func (p *Publisher) Run(ctx context.Context, turn Turn, publish Publish) error {
	unlock, err := turn.LockPublisher(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	p.publish.Store(&publish)
	// What another process has published since this one looked is in the inventory.
	if err := p.resume(ctx); err != nil {
		return err
	}
	for {
		// Also without a change: it costs nothing, and mends what a failed look has left.
		if err := publish(ctx, p.Resources()); err != nil {
			return fmt.Errorf("publish the node's pool: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		}
		if err := p.Look(ctx); err != nil {
			klog.FromContext(ctx).Error(err, "The pool stays as it is; the GPUs are looked at again in a minute")
		}
	}
}

// resume goes on from what was published last, by whichever process.
func (p *Publisher) resume(ctx context.Context) error {
	p.mu.Lock()
	p.load(ctx)
	p.mu.Unlock()
	return p.Look(ctx)
}

// Confirm looks, publishes and waits until the API server has what was decided.
// After it the scheduler gives nobody what is tainted now.
func (p *Publisher) Confirm(ctx context.Context) error {
	publish := p.publish.Load()
	if publish == nil {
		return errors.New("another process of the node publishes its pool")
	}
	if err := p.Look(ctx); err != nil {
		return err
	}
	if err := (*publish)(ctx, p.Resources()); err != nil {
		return err
	}
	var missing error
	err := wait.PollUntilContextTimeout(ctx, confirmPoll, confirmTimeout, true, func(ctx context.Context) (bool, error) {
		now := p.state.Load()
		missing = p.api.Complete(ctx, now.resources.Pools[now.node.Name])
		return missing == nil, nil
	})
	if err != nil {
		return fmt.Errorf("the API server does not have the node's pool as it is now: %w", errors.Join(missing, err))
	}
	return nil
}

// Look decides anew what the node publishes. On an error all stays as it was.
func (p *Publisher) Look(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()

	before, err := p.known()
	if err != nil {
		return err
	}
	found, err := p.hardware.Node(ctx)
	var unread gpu.ReadErrors
	if err != nil && !errors.As(err, &unread) {
		return fmt.Errorf("look at the GPUs: %w", err)
	}
	claims, err := p.records.Claims()
	if err = tolerated(err); err != nil {
		return err
	}
	after, err := p.known()
	if err != nil {
		return err
	}
	inUse := map[string][]gpu.Device{}
	for _, c := range claims {
		for _, d := range c.Devices {
			inUse[d.Device.GPU] = append(inUse[d.Device.GPU], d.Device)
		}
	}
	// A record comes before its instance and goes after it. So an instance is
	// foreign only if it had a record neither before nor after it was seen.
	foreign := foreignInstances(found.GPUs, append(before, after...))

	next := &state{node: p.state.Load().node}
	next.node.Node = found
	absent := p.absent(found)
	next.node.GPUs = append(slices.Clone(found.GPUs), absent...)
	next.devices = gpu.Catalogue(next.node.GPUs)

	offers, withdrawn, pending := p.settle(next.node.GPUs, foreign, inUse)
	forgets := slices.ContainsFunc(absent, func(g gpu.GPU) bool { return len(inUse[g.UUID]) == 0 })
	lacks := *p.lacks.Load()
	if withdrawn || forgets || !p.looked || p.anyFailing() || lacks != (pool.Lacks{}) {
		// Only the API knows of claims that are allocated and not prepared yet.
		if err := p.addAllocated(ctx, next.devices, inUse); err != nil {
			klog.FromContext(ctx).Error(err, "Whether claims are allocated is not known, so no device is withdrawn for now")
			p.addPublished(inUse)
		}
		p.forgetFailures(inUse)
		offers, _, pending = p.settle(next.node.GPUs, foreign, inUse)
	}
	// A GPU that is gone is kept for its users, and while a GPU that did not say who it is may be it.
	unidentified := slices.ContainsFunc(unread, func(e gpu.ReadError) bool { return e.UUID == "" })
	next.node.GPUs = slices.DeleteFunc(next.node.GPUs, func(g gpu.GPU) bool {
		gone := slices.ContainsFunc(absent, func(a gpu.GPU) bool { return a.UUID == g.UUID })
		return gone && !unidentified && len(inUse[g.UUID]) == 0
	})
	conditions := p.conditions(unread, absent, claims)
	if next.resources, err = pool.Build(next.node, offers, conditions); err != nil {
		return err
	}
	next.resources = pool.Reduce(next.resources, lacks, next.devices, inUse)
	next.pending = pending
	for _, all := range foreign {
		next.foreign += len(all)
	}
	p.remember(ctx, next.node.GPUs, offers, conditions)
	p.looked = true
	last := p.state.Load()
	next.conditions, next.changed = conditions, last.changed
	if !reflect.DeepEqual(conditions, last.conditions) {
		next.changed = make(chan struct{})
		defer close(last.changed)
	}
	p.state.Store(next)
	return nil
}

// known are the instances that have a record.
func (p *Publisher) known() ([]*journal.Instance, error) {
	all, err := p.records.Instances()
	return all, tolerated(err)
}

// tolerated drops the error of records that did not parse: recovery looks after them.
func tolerated(err error) error {
	var corrupt *journal.CorruptError
	if errors.As(err, &corrupt) {
		return nil
	}
	return err
}

func foreignInstances(gpus []gpu.GPU, known []*journal.Instance) map[string][]gpu.Instance {
	foreign := map[string][]gpu.Instance{}
	for _, g := range gpus {
		for _, i := range g.Instances {
			recorded := func(k *journal.Instance) bool {
				return k.Instance.GPU == i.GPU && k.Instance.Profile == i.Profile && k.Instance.Placement == i.Placement
			}
			if !slices.ContainsFunc(known, recorded) {
				foreign[g.UUID] = append(foreign[g.UUID], i)
			}
		}
	}
	return foreign
}

// absent are the GPUs that were published before and that the driver no longer lists.
func (p *Publisher) absent(found gpu.Node) []gpu.GPU {
	return slices.DeleteFunc(slices.Clone(p.inventory.GPUs), func(known gpu.GPU) bool {
		return slices.ContainsFunc(found.GPUs, func(g gpu.GPU) bool { return g.UUID == known.UUID })
	})
}

// settle is what the GPUs offer now, whether a device that was offered before is
// not among it, and whether a GPU does not offer yet what it is to offer.
func (p *Publisher) settle(gpus []gpu.GPU, foreign map[string][]gpu.Instance, inUse map[string][]gpu.Device) (offers map[string]pool.Offer, withdrawn, pending bool) {
	offers = make(map[string]pool.Offer, len(gpus))
	for _, g := range gpus {
		previous := p.inventory.Offers[g.UUID]
		offer, waits := pool.Settle(previous, pool.Desired(g, p.config.For(g.ProductName), foreign[g.UUID]), inUse[g.UUID])
		offers[g.UUID] = offer
		pending = pending || waits
		withdrawn = withdrawn || slices.ContainsFunc(previous, func(d pool.Device) bool {
			return !slices.ContainsFunc(offer, func(o pool.Device) bool { return o.Device == d.Device })
		})
	}
	return offers, withdrawn, pending
}

func (p *Publisher) addAllocated(ctx context.Context, devices map[string]gpu.Device, inUse map[string][]gpu.Device) error {
	names, err := p.api.Allocated(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if d, ok := devices[name]; ok && !slices.Contains(inUse[d.GPU], d) {
			inUse[d.GPU] = append(inUse[d.GPU], d)
		}
	}
	return nil
}

// addPublished takes every device that was published for one in use.
func (p *Publisher) addPublished(inUse map[string][]gpu.Device) {
	for uuid, offer := range p.inventory.Offers {
		for _, d := range offer {
			if !slices.Contains(inUse[uuid], d.Device) {
				inUse[uuid] = append(inUse[uuid], d.Device)
			}
		}
	}
}

// remember saves what is about to be published, if it is something else than what
// was saved last and this is the process that publishes. A disk that is full stops
// nobody: what is in use is known from the journal and the API as well.
func (p *Publisher) remember(ctx context.Context, gpus []gpu.GPU, offers map[string]pool.Offer, conditions []gpu.Condition) {
	next := inventory{Version: inventoryVersion, GPUs: slices.Clone(gpus), Offers: offers, Conditions: conditions}
	for i := range next.GPUs {
		next.GPUs[i].Instances = nil
	}
	if !reflect.DeepEqual(next, p.inventory) {
		p.inventory, p.unsaved = next, true
	}
	if !p.unsaved || !p.Publishing() {
		return
	}
	if err := p.inventory.save(p.stateDir); err != nil {
		klog.FromContext(ctx).Error(err, "What is published could not be saved; it is tried again with the next look")
		return
	}
	p.unsaved = false
}
