package fleet

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
)

// PodOf is a pod with its claims, as they are or, where they have not been made yet,
// as they will be: from the templates, and from the extended resources that are
// limits of its containers and that a device class bears. A name that leads nowhere is an error.
func (o *Objects) PodOf(pod *corev1.Pod) (Pod, error) {
	p := Pod{Spec: &pod.Spec}
	for i := range pod.Spec.ResourceClaims {
		wanted := &pod.Spec.ResourceClaims[i]
		name, _, err := resourceclaim.Name(pod, wanted)
		var c *resourceapi.ResourceClaim
		switch {
		case err == nil && name == nil:
			continue // It was decided that the pod needs none.
		case err == nil:
			c, err = o.Claim(pod.Namespace, *name)
		case errors.Is(err, resourceclaim.ErrClaimNotFound):
			c, err = o.Instantiate(pod.Namespace, *wanted.ResourceClaimTemplateName, pod.Name+"-"+wanted.Name)
		}
		if err != nil {
			return Pod{}, fmt.Errorf("pod %s, claim %s: %w", Key(pod), wanted.Name, err)
		}
		p.Claims = append(p.Claims, c)
	}
	if made := pod.Status.ExtendedResourceClaimStatus; made != nil {
		c, err := o.Claim(pod.Namespace, made.ResourceClaimName)
		if err != nil {
			return Pod{}, fmt.Errorf("pod %s, claim of its extended resources: %w", Key(pod), err)
		}
		p.Claims = append(p.Claims, c)
	} else if c := o.extended(pod); c != nil {
		p.Claims = append(p.Claims, c)
	}
	return p, nil
}

// Instantiate makes a claim of a template.
func (o *Objects) Instantiate(namespace, template, name string) (*resourceapi.ResourceClaim, error) {
	t, err := o.Template(namespace, template)
	if err != nil {
		return nil, err
	}
	return setDefaults(&resourceapi.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: t.Spec.Labels, Annotations: t.Spec.Annotations},
		Spec:       *t.Spec.Spec.DeepCopy(),
	}), nil
}

// extended is the claim that the scheduler makes for a pod that asks by limits, or
// nil: a request for each resource of each container.
func (o *Objects) extended(pod *corev1.Pod) *resourceapi.ResourceClaim {
	byResource := map[corev1.ResourceName]string{}
	for _, c := range o.Classes {
		byResource[corev1.ResourceName(resourceapi.ResourceDeviceClassPrefix+c.Name)] = c.Name
		if c.Spec.ExtendedResourceName != nil {
			byResource[corev1.ResourceName(*c.Spec.ExtendedResourceName)] = c.Name
		}
	}
	var requests []resourceapi.DeviceRequest
	for i, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		names := slices.SortedFunc(maps.Keys(container.Resources.Limits), func(a, b corev1.ResourceName) int { return cmp.Compare(a, b) })
		for n, name := range names {
			class, ok := byResource[name]
			count := container.Resources.Limits[name]
			if !ok || count.IsZero() {
				continue
			}
			requests = append(requests, resourceapi.DeviceRequest{
				Name: fmt.Sprintf("container-%d-request-%d", i, n),
				Exactly: &resourceapi.ExactDeviceRequest{
					DeviceClassName: class, AllocationMode: resourceapi.DeviceAllocationModeExactCount, Count: count.Value(),
				},
			})
		}
	}
	if requests == nil {
		return nil
	}
	return &resourceapi.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name + "-extended-resources"},
		Spec:       resourceapi.ResourceClaimSpec{Devices: resourceapi.DeviceClaim{Requests: requests}},
	}
}

// Find returns the claim or the pod that a name, or kind/name, means. A name alone
// is the claim's if there are both.
func (o *Objects) Find(namespace, name string) (Pod, error) {
	kind, rest, qualified := strings.Cut(name, "/")
	if !qualified {
		kind, rest = "", name
	}
	switch kind {
	case "", "claim", "resourceclaim", "resourceclaims", "pod", "pods", "po":
	default:
		return Pod{}, fmt.Errorf("%s: explained are claims and pods: claim/NAME or pod/NAME", name)
	}
	isPod := strings.HasPrefix(kind, "po")
	if !isPod {
		if c, err := o.Claim(namespace, rest); err == nil {
			return Pod{Claims: []*resourceapi.ResourceClaim{c}}, nil
		} else if kind != "" {
			return Pod{}, err
		}
	}
	i := slices.IndexFunc(o.Pods, func(p *corev1.Pod) bool { return p.Namespace == namespace && p.Name == rest })
	if i < 0 && isPod {
		return Pod{}, fmt.Errorf("there is no Pod %s/%s", namespace, rest)
	} else if i < 0 {
		return Pod{}, fmt.Errorf("there is neither a ResourceClaim nor a Pod %s/%s", namespace, rest)
	}
	return o.PodOf(o.Pods[i])
}
