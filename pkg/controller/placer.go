package controller

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"

	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/scaling"
)

// placer answers a plan's questions with the scheduler's allocator. What it takes
// and frees for the time of a plan it gives back at the end.
type placer struct {
	ctx       context.Context
	fleet     *fleet.Fleet
	objects   *fleet.Objects
	workloads map[string]*workload
	pools     map[string]*members
	nodes     nodePools

	shapes map[string]shape
	// gone are the pods whose places were given away.
	gone map[*corev1.Pod]bool
	undo []func()
}

// shape is a further replica of a workload.
type shape struct {
	pod fleet.Pod
	err error
}

func newPlacer(ctx context.Context, f *fleet.Fleet, all *world, workloads []*workload, pools map[string]*members) *placer {
	p := &placer{
		ctx: ctx, fleet: f, objects: &all.objects, nodes: all.nodes, pools: pools,
		workloads: map[string]*workload{}, shapes: map[string]shape{}, gone: map[*corev1.Pod]bool{},
	}
	for _, w := range workloads {
		p.workloads[w.name()] = w
	}
	return p
}

// restore makes the fleet what it was.
func (p *placer) restore() {
	for i := len(p.undo) - 1; i >= 0; i-- {
		p.undo[i]()
	}
	p.undo = nil
}

func (p *placer) shape(name string) (fleet.Pod, error) {
	s, ok := p.shapes[name]
	if !ok {
		s.pod, s.err = p.workloads[name].shape(p.objects)
		p.shapes[name] = s
	}
	return s.pod, s.err
}

// Place takes the first free place: with a pool on the nodes of the workload, then
// on those of nobody, then on those of others, who come before where they want them.
func (p *placer) Place(name string) (bool, error) {
	pod, err := p.shape(name)
	if err != nil {
		return false, err
	}
	pool, err := p.pool(name)
	if err != nil {
		return false, err
	}
	if pool == nil {
		return p.place(pod, p.fleet.Nodes())
	}
	return p.place(pod, pool.allowed(name))
}

// pool is that of a workload, nil if it names none.
func (p *placer) pool(name string) (*members, error) {
	wanted := p.workloads[name].hint.Spec.Pool
	if wanted == "" {
		return nil, nil
	}
	pool := p.pools[wanted]
	switch {
	case pool == nil:
		return nil, fmt.Errorf("there is no GPUElasticPool %s: make it, or take it out of the hint", wanted)
	case pool.err != nil:
		return nil, fmt.Errorf("GPUElasticPool %s cannot be used: %w", wanted, pool.err)
	}
	return pool, nil
}

func (p *placer) place(pod fleet.Pod, nodes []*corev1.Node) (bool, error) {
	_, placed, err := p.fleet.PlaceOn(p.ctx, pod, nodes)
	if errors.Is(err, fleet.ErrNoFit) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.undo = append(p.undo, func() {
		for _, c := range placed {
			p.fleet.Release(c)
		}
	})
	return true, nil
}

// MakeRoom looks for the fewest replicas of a donor, on one node, without which a replica fits there.
func (p *placer) MakeRoom(name string, donors []scaling.Donor, elastic bool) ([]scaling.Replica, error) {
	pool, err := p.pool(name)
	if err != nil || pool == nil {
		return nil, err
	}
	pod, err := p.shape(name)
	if err != nil {
		return nil, err
	}
	for _, donor := range donors {
		var best []*replica
		var at *corev1.Node
		for _, on := range p.candidates(donor, pool, elastic) {
			node, ok := p.fleet.Node(on.name)
			if !ok {
				continue
			}
			gone, err := p.without(pod, node, on.replicas)
			if err != nil {
				return nil, err
			}
			if len(gone) > 0 && len(gone) <= donor.Replicas && (best == nil || len(gone) < len(best)) {
				best, at = gone, node
			}
			if len(best) == 1 {
				break
			}
		}
		if best == nil {
			continue
		}
		var replicas []scaling.Replica
		for _, r := range best {
			p.release(r)
			replicas = append(replicas, scaling.Replica{Workload: donor.Workload, Name: r.pod.Name})
		}
		if ok, err := p.place(pod, []*corev1.Node{at}); !ok {
			return nil, errors.Join(err, fmt.Errorf("no place on node %s although room was made", at.Name))
		}
		return replicas, nil
	}
	return nil, nil
}

type onNode struct {
	name     string
	replicas []*replica
}

// candidates are the replicas that a donor may give, by node, in the order in which they go.
func (p *placer) candidates(donor scaling.Donor, pool *members, elastic bool) []*onNode {
	w := p.workloads[donor.Workload]
	var all []*onNode
	byName := map[string]*onNode{}
	for _, r := range w.replicas {
		if p.gone[r.pod] {
			continue
		}
		name := r.pod.Spec.NodeName
		isElastic, member := pool.nodes[name]
		if member && (isElastic || !elastic) && len(r.claims) > 0 && !r.shared {
			on := byName[name]
			if on == nil {
				on = &onNode{name: name}
				byName[name] = on
				all = append(all, on)
			}
			on.replicas = append(on.replicas, r)
		}
		if w.target.ordered && !r.leaving {
			break // Of a StatefulSet the last pod goes, and no other.
		}
	}
	return all
}

// without are the fewest replicas without which the pod fits on the node.
func (p *placer) without(pod fleet.Pod, node *corev1.Node, replicas []*replica) ([]*replica, error) {
	var may []*resourceapi.ResourceClaim
	for _, r := range replicas {
		may = append(may, r.claims...)
	}
	claims, err := p.fleet.MakeRoom(p.ctx, pod, node, may)
	if err != nil {
		return nil, err
	}
	var gone []*replica
	for _, r := range replicas {
		for _, c := range claims {
			if holds(r, c) {
				gone = append(gone, r)
				break
			}
		}
	}
	return gone, nil
}

func holds(r *replica, claim *resourceapi.ResourceClaim) bool {
	for _, c := range r.claims {
		if c.UID == claim.UID {
			return true
		}
	}
	return false
}

// release frees what a replica has.
func (p *placer) release(r *replica) {
	p.gone[r.pod] = true
	for _, c := range r.claims {
		p.fleet.Release(c)
	}
	p.undo = append(p.undo, func() {
		for _, c := range r.claims {
			p.fleet.Take(c)
		}
	})
}

// NewNodes says what brings nodes with room for the workload.
func (p *placer) NewNodes(name string) scaling.NewNodes {
	pod, err := p.shape(name)
	if err != nil {
		return scaling.NewNodes{State: scaling.NewNodesByHand, Message: err.Error()}
	}
	fits, err := p.fleet.FitsEmpty(p.ctx, pod)
	if err != nil {
		return scaling.NewNodes{State: scaling.NewNodesByHand, Message: err.Error()}
	}
	return p.nodes.answer(pod.Spec, fits)
}
