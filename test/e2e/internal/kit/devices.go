package kit

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Device is a device that a claim is allocated, as the API tells of it.
type Device struct {
	// Request is that of the allocation, with the chosen alternative: "gpu/half".
	Request string
	// Published is what the slices say.
	Published resourceapi.Device
}

// Type is what the device is made of.
func (d Device) Type() gpu.DeviceType { return gpu.DeviceType(attribute(d.Published, "type")) }

// Parent is the UUID of its board.
func (d Device) Parent() string { return attribute(d.Published, "parentUUID") }

// Profile is empty for what is no MIG device.
func (d Device) Profile() string { return attribute(d.Published, "profile") }

// Placement is what a MIG device covers, by the counters that it takes.
func (d Device) Placement() gpu.Placement {
	var covered []int
	for _, taken := range d.Published.ConsumesCounters {
		for name := range taken.Counters {
			var slice int
			if _, err := fmt.Sscanf(name, "memory-slice-%d", &slice); err == nil {
				covered = append(covered, slice)
			}
		}
	}
	if len(covered) == 0 {
		return gpu.Placement{}
	}
	return gpu.Placement{Start: slices.Min(covered), Size: len(covered)}
}

func attribute(d resourceapi.Device, name resourceapi.QualifiedName) string {
	if value := d.Attributes[name].StringValue; value != nil {
		return *value
	}
	return ""
}

// Published are all devices of the node.
func (e *Env) Published(ctx context.Context) ([]Device, error) {
	pool, err := e.pool(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]Device, len(pool))
	for i := range pool {
		all[i].Published = pool[i]
	}
	return all, nil
}

// ClaimDevices are the devices of a claim of the test's namespace.
func (e *Env) ClaimDevices(name string) ([]Device, error) {
	claim, err := e.Client.ResourceV1().ResourceClaims(e.Namespace).Get(e.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return e.Devices(e.t.Context(), claim)
}

// PodDevices are the devices of all claims of a pod.
func (e *Env) PodDevices(pod *corev1.Pod) ([]Device, error) {
	claims, err := e.Claims(e.t.Context(), pod)
	if err != nil {
		return nil, err
	}
	var all []Device
	for _, c := range claims {
		devices, err := e.Devices(e.t.Context(), &c)
		if err != nil {
			return nil, err
		}
		all = append(all, devices...)
	}
	return all, nil
}

// Devices are those that a claim is allocated. A claim that is not allocated is an error.
func (e *Env) Devices(ctx context.Context, claim *resourceapi.ResourceClaim) ([]Device, error) {
	if claim.Status.Allocation == nil {
		return nil, fmt.Errorf("claim %s is not allocated", claim.Name)
	}
	pool, err := e.pool(ctx)
	if err != nil {
		return nil, err
	}
	var devices []Device
	for _, r := range claim.Status.Allocation.Devices.Results {
		index := slices.IndexFunc(pool, func(d resourceapi.Device) bool { return d.Name == r.Device })
		if r.Driver != Driver || r.Pool != NodeName || index < 0 {
			return nil, fmt.Errorf("claim %s is allocated %s of pool %s of driver %s, which is not published", claim.Name, r.Device, r.Pool, r.Driver)
		}
		devices = append(devices, Device{Request: r.Request, Published: pool[index]})
	}
	return devices, nil
}

// extended is the name by which Claims has the claim that the scheduler makes of a pod's extended resources.
const extended = ""

// Claims are those of a pod, by the names that the pod has for them.
func (e *Env) Claims(ctx context.Context, pod *corev1.Pod) (map[string]resourceapi.ResourceClaim, error) {
	names := map[string]string{}
	for _, c := range pod.Spec.ResourceClaims {
		if c.ResourceClaimName != nil {
			names[c.Name] = *c.ResourceClaimName
		}
	}
	for _, s := range pod.Status.ResourceClaimStatuses {
		if s.ResourceClaimName != nil {
			names[s.Name] = *s.ResourceClaimName
		}
	}
	if s := pod.Status.ExtendedResourceClaimStatus; s != nil {
		names[extended] = s.ResourceClaimName
	}
	claims := map[string]resourceapi.ResourceClaim{}
	for name, object := range names {
		claim, err := e.Client.ResourceV1().ResourceClaims(pod.Namespace).Get(ctx, object, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		claims[name] = *claim
	}
	return claims, nil
}

// containerDevices are those that a container of a pod asks for: of a whole claim, of one request of it, or with limits.
func (e *Env) containerDevices(ctx context.Context, pod *corev1.Pod, container string) ([]Device, error) {
	claims, err := e.Claims(ctx, pod)
	if err != nil {
		return nil, err
	}
	index := slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == container })
	asked := slices.Clone(pod.Spec.Containers[index].Resources.Claims)
	if s := pod.Status.ExtendedResourceClaimStatus; s != nil {
		for _, m := range s.RequestMappings {
			if m.ContainerName == container {
				asked = append(asked, corev1.ResourceClaim{Name: extended, Request: m.RequestName})
			}
		}
	}
	var all []Device
	for _, wanted := range asked {
		claim := claims[wanted.Name]
		devices, err := e.Devices(ctx, &claim)
		if err != nil {
			return nil, err
		}
		for _, d := range devices {
			if main, _, _ := strings.Cut(d.Request, "/"); wanted.Request == "" || wanted.Request == main {
				all = append(all, d)
			}
		}
	}
	return all, nil
}
