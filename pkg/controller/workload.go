package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/dcgm"
	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/scaling"
)

// workload is a hint with what is known of its target at one moment.
type workload struct {
	hint   *v1alpha1.GPUScalingHint
	target target
	// err is why the target cannot be looked at.
	err      error
	replicas []*replica

	observation scaling.Observation
	// blind is why a signal could not be read.
	blind    error
	decision scaling.Hint
	state    scaling.State
	outcome  scaling.Outcome
	// scaled says what became of mode Scale.
	scaled *condition
}

// replica is a pod of a target.
type replica struct {
	pod     *corev1.Pod
	claims  []*resourceapi.ResourceClaim
	devices []dcgm.Device
	// readings are those of the devices, in the same order.
	readings []dcgm.Reading
	// ready pods count for the decision, leaving ones are being deleted, pending ones have a claim without devices.
	ready, leaving, pending bool
	// shared is true where a claim has other pods too, so that it stays when this one goes.
	shared bool
}

func (w *workload) name() string { return fleet.Key(w.hint) }

// observe finds the target, its pods, and what their claims were prepared with.
func (c *Controller) observe(ctx context.Context, all *world, h *v1alpha1.GPUScalingHint) *workload {
	w := &workload{hint: h}
	if w.target, w.err = c.target(ctx, h); w.err != nil {
		return w
	}
	for _, pod := range all.pods.of(h.Namespace, w.target.selector) {
		r := &replica{pod: pod, leaving: pod.DeletionTimestamp != nil}
		r.ready = !r.leaving && isReady(pod)
		for _, name := range claimNames(pod) {
			claim := all.claims[types.NamespacedName{Namespace: pod.Namespace, Name: name}]
			if claim == nil || claim.Status.Allocation == nil {
				r.pending = !r.leaving
				continue
			}
			devices, err := c.devices(claim)
			if err != nil {
				w.err = errors.Join(w.err, err)
			}
			r.claims, r.devices = append(r.claims, claim), append(r.devices, devices...)
			r.shared = r.shared || len(claim.Status.ReservedFor) > 1
		}
		w.replicas = append(w.replicas, r)
	}
	w.sort()
	return w
}

// sort puts the replicas into the order in which they go.
func (w *workload) sort() {
	slices.SortFunc(w.replicas, func(a, b *replica) int {
		if w.target.ordered {
			return cmp.Compare(ordinal(b.pod), ordinal(a.pod))
		}
		return comparePods(a.pod, b.pod)
	})
}

// claimNames are the claims of a pod that have been made. One that has not makes the pod wait, and has the name "".
func claimNames(pod *corev1.Pod) []string {
	var names []string
	for i := range pod.Spec.ResourceClaims {
		name, _, err := resourceclaim.Name(pod, &pod.Spec.ResourceClaims[i])
		switch {
		case err != nil:
			names = append(names, "")
		case name != nil:
			names = append(names, *name)
		}
	}
	if extended := pod.Status.ExtendedResourceClaimStatus; extended != nil {
		names = append(names, extended.ResourceClaimName)
	}
	return names
}

// decoded is what a version of a claim says of its devices.
type decoded struct {
	version string
	devices []dcgm.Device
}

// devices are those of the driver that a claim was prepared with. Of thousands of
// claims few change from tick to tick, so that what one said is kept.
func (c *Controller) devices(claim *resourceapi.ResourceClaim) ([]dcgm.Device, error) {
	have, ok := c.claims[claim.UID]
	if !ok || have.version != claim.ResourceVersion {
		devices, err := readDevices(claim, c.Driver)
		if err != nil {
			return nil, err
		}
		have = decoded{claim.ResourceVersion, devices}
	}
	c.seen[claim.UID] = have
	return have.devices, nil
}

func readDevices(claim *resourceapi.ResourceClaim, driver string) ([]dcgm.Device, error) {
	var devices []dcgm.Device
	for _, d := range claim.Status.Devices {
		if d.Driver != driver || d.Data == nil {
			continue
		}
		var data plugin.DeviceData
		if err := json.Unmarshal(d.Data.Raw, &data); err != nil {
			return nil, fmt.Errorf("claim %s: the status of device %s cannot be read: %w", fleet.Key(claim), d.Device, err)
		}
		device := dcgm.Device{
			Claim: fleet.Key(claim), Key: dcgm.Key{GPU: data.GPUUUID, Instance: dcgm.NoInstance},
			Shared: data.Type == gpu.TypeTimeSlice || len(claim.Status.ReservedFor) > 1, PreparedAt: data.PreparedAt.Time,
		}
		if data.GPUInstanceID != nil {
			device.Instance = *data.GPUInstanceID
		}
		devices = append(devices, device)
	}
	return devices, nil
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// join gives the devices of all replicas that work their readings.
func join(workloads []*workload, rows []dcgm.Row, now time.Time, interval time.Duration) {
	var devices []dcgm.Device
	for _, w := range workloads {
		for _, r := range w.replicas {
			if r.ready {
				devices = append(devices, r.devices...)
			}
		}
	}
	readings := dcgm.Join(devices, rows, now, interval)
	for _, w := range workloads {
		for _, r := range w.replicas {
			if r.ready {
				r.readings, readings = readings[:len(r.devices)], readings[len(r.devices):]
			}
		}
	}
}

// measure makes the observation of a moment: of the pods that work, those all of whose devices were measured.
func (w *workload) measure(now time.Time, readError error) {
	o := scaling.Observation{At: now, Current: w.target.replicas, ReadError: readError}
	for _, r := range w.replicas {
		if !r.ready {
			continue
		}
		o.Ready++
		if m, ok := r.measurement(now); ok {
			o.Replicas = append(o.Replicas, m)
		}
	}
	// Pods that nobody asks for any more work until they are gone.
	o.Ready = min(o.Ready, o.Current)
	w.observation = o
}

// measurement is that of a replica: the mean of its devices, and the largest share of memory.
func (r *replica) measurement(now time.Time) (scaling.Measurement, bool) {
	m := scaling.Measurement{At: now}
	for _, reading := range r.readings {
		switch reading.State {
		case dcgm.OK:
		case dcgm.Stale:
			return scaling.Measurement{}, true // Of no time: it is too old whatever the interval.
		default:
			return m, false
		}
		m.Utilization += reading.Utilization / float64(len(r.readings))
		m.Shared = m.Shared || reading.Shared
		if reading.At.Before(m.At) {
			m.At = reading.At
		}
		if share := reading.MemoryUsed / reading.MemoryTotal * 100; !math.IsNaN(share) {
			m.Memory = max(m.Memory, share)
		}
	}
	return m, len(r.readings) > 0
}

// plan is what the plan needs to know of a workload.
func (w *workload) plan() scaling.Workload {
	p := scaling.Workload{Name: w.name(), Pool: w.hint.Spec.Pool, Priority: w.hint.Spec.Priority, Hint: w.decision}
	live := 0
	for _, r := range w.replicas {
		switch {
		case r.leaving && len(r.claims) > 0:
			p.Leaving++
		case r.leaving:
		default:
			live++
			if r.pending {
				p.Pending++
			}
		}
	}
	p.Leaving += max(0, live-w.target.replicas)
	// Pods that have not been made wait as well as those that have.
	p.Pending += max(0, w.target.replicas-live)
	p.Pending = min(p.Pending, w.target.replicas)
	return p
}

// shape is the pod of a further replica, whose claims are those that it would get.
func (w *workload) shape(o *fleet.Objects) (fleet.Pod, error) {
	spec := w.target.template
	if spec == nil {
		if len(w.replicas) == 0 {
			return fleet.Pod{}, fmt.Errorf("%s %s has no pod, and the template of its kind is not known", w.hint.Spec.TargetRef.Kind, w.hint.Spec.TargetRef.Name)
		}
		spec = w.replicas[0].pod.Spec.DeepCopy()
		spec.NodeName = ""
	}
	pod := &corev1.Pod{Spec: *spec}
	pod.Namespace, pod.Name = w.hint.Namespace, w.hint.Spec.TargetRef.Name
	return o.PodOf(pod)
}

// ordinal is the number of a StatefulSet's pod, of which the highest goes first.
func ordinal(pod *corev1.Pod) int {
	n, _ := strconv.Atoi(pod.Labels[appsv1.PodIndexLabel])
	return n
}

// comparePods orders pods as they go: those that are leaving already, then the youngest.
func comparePods(a, b *corev1.Pod) int {
	if (a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil) {
		if a.DeletionTimestamp != nil {
			return -1
		}
		return 1
	}
	if order := b.CreationTimestamp.Compare(a.CreationTimestamp.Time); order != 0 {
		return order
	}
	return slices.Compare([]string{a.Name}, []string{b.Name})
}
