package fleet

import (
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/cache"
)

// Interner makes the objects of a cluster small enough to keep all of them: of what
// is the same in many slices it keeps one, and it drops what a Fleet never reads.
// It is safe for concurrent use, by the informers of several kinds.
//
// In the slices of a node, what names a device (its UUID, its parent's, its PCI bus
// address) is replaced by a number. It is the same number for the same value, in
// all slices of the node, so that constraints on such an attribute mean what they
// did. A selector that may read one is answered with ErrDropped. For each node that
// it ever saw it keeps a few bytes a GPU.
type Interner struct {
	mutex      sync.Mutex
	attributes *table[resourceapi.QualifiedName, resourceapi.DeviceAttribute]
	capacities *table[resourceapi.QualifiedName, resourceapi.DeviceCapacity]
	counters   *table[string, resourceapi.Counter]
	numbers    map[string]*ordinals // by node
	mark       map[string]string
}

// NewInterner makes one. Its informers' objects are to be read by Fleets alone, or by
// who needs no more than what Transform leaves.
func NewInterner() *Interner {
	return &Interner{
		attributes: newAttributes(), capacities: newCapacities(), counters: newCounters(),
		numbers: map[string]*ordinals{}, mark: map[string]string{slimmed: ""},
	}
}

var _ cache.TransformFunc = (*Interner)(nil).Transform

// slimmed marks slices that an Interner has seen.
const slimmed = "fleet.kerf.dev/slimmed"

func isSlim(s *resourceapi.ResourceSlice) bool { _, ok := s.Annotations[slimmed]; return ok }

// Transform is a cache.TransformFunc. It changes the object, which must be nobody
// else's yet, and doing it again changes nothing. No object keeps its managed
// fields. A ResourceSlice, ResourceClaim or Node has no annotations, a Node no images.
// A Pod keeps its name, UID, version, labels, owners, deletion and its cost; of its
// specification what decides where it runs and which devices it has; of its status the
// phase, the conditions, its address and its claims.
func (i *Interner) Transform(object any) (any, error) {
	switch x := object.(type) {
	case *resourceapi.ResourceSlice:
		i.slice(x)
	case *resourceapi.ResourceClaim:
		x.ManagedFields, x.Annotations = nil, nil
	case *corev1.Node:
		x.ManagedFields, x.Annotations, x.Status.Images = nil, nil, nil
	case *corev1.Pod:
		slimPod(x)
	default:
		if o, err := meta.Accessor(object); err == nil {
			o.SetManagedFields(nil)
		}
	}
	return object, nil
}

func (i *Interner) slice(s *resourceapi.ResourceSlice) {
	if isSlim(s) {
		return
	}
	s.ManagedFields, s.Annotations = nil, nil
	i.mutex.Lock()
	defer i.mutex.Unlock()
	var numbers *ordinals
	if node := value(s.Spec.NodeName); node != "" {
		s.Annotations = i.mark
		if numbers = i.numbers[node]; numbers == nil {
			numbers = &ordinals{}
			i.numbers[node] = numbers
		}
	}
	for n := range s.Spec.SharedCounters {
		set := &s.Spec.SharedCounters[n]
		set.Counters = i.counters.intern(set.Counters).m
	}
	names := map[string]string{}
	for n := range s.Spec.Devices {
		d := &s.Spec.Devices[n]
		if numbers != nil {
			d.Attributes = numbers.alias(d.Attributes)
		}
		d.Attributes, d.Capacity = i.attributes.intern(d.Attributes).m, i.capacities.intern(d.Capacity).m
		for m := range d.ConsumesCounters {
			c := &d.ConsumesCounters[m]
			if _, ok := names[c.CounterSet]; !ok {
				names[c.CounterSet] = c.CounterSet
			}
			c.CounterSet, c.Counters = names[c.CounterSet], i.counters.intern(c.Counters).m
		}
	}
	// Decoders leave room at the end.
	s.Spec.Devices = slices.Clone(s.Spec.Devices)
}

func slimPod(p *corev1.Pod) {
	cost, has := p.Annotations[corev1.PodDeletionCost]
	p.ManagedFields, p.Annotations = nil, nil
	if has {
		p.Annotations = map[string]string{corev1.PodDeletionCost: cost}
	}
	containers := func(all []corev1.Container) []corev1.Container {
		all = slices.Clone(all)
		for i, c := range all {
			all[i] = corev1.Container{Name: c.Name, Resources: c.Resources, RestartPolicy: c.RestartPolicy}
		}
		return all
	}
	p.Spec = corev1.PodSpec{
		NodeName: p.Spec.NodeName, NodeSelector: p.Spec.NodeSelector, Affinity: p.Spec.Affinity, Tolerations: p.Spec.Tolerations,
		Priority: p.Spec.Priority, ResourceClaims: p.Spec.ResourceClaims, Resources: p.Spec.Resources,
		InitContainers: containers(p.Spec.InitContainers), Containers: containers(p.Spec.Containers),
	}
	p.Status = corev1.PodStatus{
		Phase: p.Status.Phase, Conditions: p.Status.Conditions, StartTime: p.Status.StartTime, PodIP: p.Status.PodIP,
		ResourceClaimStatuses: p.Status.ResourceClaimStatuses, ExtendedResourceClaimStatus: p.Status.ExtendedResourceClaimStatus,
	}
}
