package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

// Objects are what manifests, or a cluster, hold of what matters to claims.
type Objects struct {
	Snapshot
	Templates []*resourceapi.ResourceClaimTemplate
	Pods      []*corev1.Pod
	// Workloads are the pods of Pod, Deployment, ReplicaSet, StatefulSet and Job
	// objects, in the order of the manifests.
	Workloads []Workload
	// Ignored names the objects that matter to no claim, and those of unknown kinds.
	Ignored []string
}

// Workload is a number of pods that are alike.
type Workload struct {
	// Kind and the key say which object it is.
	Kind, Namespace, Name string
	Replicas              int
	Spec                  corev1.PodSpec
}

// Read adds the objects of a stream of YAML or JSON documents. Lists, as kubectl get
// writes them, are taken apart. Objects without a namespace are in the default one.
func (o *Objects) Read(r io.Reader) error {
	for documents := yaml.NewYAMLOrJSONDecoder(r, 4096); ; {
		var raw runtime.RawExtension
		if err := documents.Decode(&raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(bytes.TrimSpace(raw.Raw)) == 0 || bytes.Equal(bytes.TrimSpace(raw.Raw), []byte("null")) {
			continue
		}
		if err := o.decode(raw.Raw); err != nil {
			return err
		}
	}
}

func (o *Objects) decode(raw []byte) error {
	object, kind, err := scheme.Codecs.UniversalDeserializer().Decode(raw, nil, nil)
	if runtime.IsNotRegisteredError(err) {
		o.Ignored = append(o.Ignored, kind.Kind)
		return nil
	}
	if err != nil {
		return err
	}
	if kind.Group == resourceapi.GroupName && kind.Version != resourceapi.SchemeGroupVersion.Version {
		return fmt.Errorf("a %s of %s: export it as %s", kind.Kind, kind.GroupVersion(), resourceapi.SchemeGroupVersion)
	}
	if named, ok := object.(metav1.Object); ok {
		switch object.(type) {
		case *corev1.Node, *resourceapi.ResourceSlice, *resourceapi.DeviceClass, *resourceapi.DeviceTaintRule:
		default:
			if named.GetNamespace() == "" {
				named.SetNamespace(corev1.NamespaceDefault)
			}
		}
	}
	return o.add(object)
}

func (o *Objects) add(object runtime.Object) error {
	one := int32(1)
	switch x := object.(type) {
	case *corev1.List:
		for _, item := range x.Items {
			if err := o.decode(item.Raw); err != nil {
				return err
			}
		}
	case *corev1.Node:
		o.Nodes = append(o.Nodes, x)
	case *resourceapi.ResourceSlice:
		o.Slices = append(o.Slices, x)
	case *resourceapi.ResourceSliceList:
		o.Slices = append(o.Slices, pointers(x.Items)...)
	case *resourceapi.DeviceClass:
		o.Classes = append(o.Classes, x)
	case *resourceapi.DeviceTaintRule:
		o.TaintRules = append(o.TaintRules, x)
	case *resourceapi.ResourceClaim:
		o.Claims = append(o.Claims, setDefaults(x))
	case *resourceapi.ResourceClaimTemplate:
		o.Templates = append(o.Templates, x)
	case *corev1.Pod:
		o.Pods = append(o.Pods, x)
		o.Workloads = append(o.Workloads, Workload{"Pod", x.Namespace, x.Name, 1, x.Spec})
	case *appsv1.Deployment:
		o.workload("Deployment", x, x.Spec.Replicas, x.Spec.Template)
	case *appsv1.ReplicaSet:
		o.workload("ReplicaSet", x, x.Spec.Replicas, x.Spec.Template)
	case *appsv1.StatefulSet:
		o.workload("StatefulSet", x, x.Spec.Replicas, x.Spec.Template)
	case *batchv1.Job:
		n := x.Spec.Parallelism
		if n == nil {
			n = &one
		}
		if c := x.Spec.Completions; c != nil && *c < *n {
			n = c
		}
		o.workload("Job", x, n, x.Spec.Template)
	default:
		name := ""
		if named, ok := object.(metav1.Object); ok {
			name = " " + Key(named)
		}
		o.Ignored = append(o.Ignored, object.GetObjectKind().GroupVersionKind().Kind+name)
	}
	return nil
}

func (o *Objects) workload(kind string, x metav1.Object, replicas *int32, t corev1.PodTemplateSpec) {
	n := 1
	if replicas != nil {
		n = int(*replicas)
	}
	o.Workloads = append(o.Workloads, Workload{kind, x.GetNamespace(), x.GetName(), n, t.Spec})
}

// Template returns the claim template of that name.
func (o *Objects) Template(namespace, name string) (*resourceapi.ResourceClaimTemplate, error) {
	i := slices.IndexFunc(o.Templates, func(t *resourceapi.ResourceClaimTemplate) bool { return t.Namespace == namespace && t.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no ResourceClaimTemplate %s/%s", namespace, name)
	}
	return o.Templates[i], nil
}

// Claim returns the claim of that name.
func (o *Objects) Claim(namespace, name string) (*resourceapi.ResourceClaim, error) {
	i := slices.IndexFunc(o.Claims, func(c *resourceapi.ResourceClaim) bool { return c.Namespace == namespace && c.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no ResourceClaim %s/%s", namespace, name)
	}
	return o.Claims[i], nil
}

// setDefaults does to a claim what the API server would.
func setDefaults(c *resourceapi.ResourceClaim) *resourceapi.ResourceClaim {
	set := func(mode *resourceapi.DeviceAllocationMode, count *int64) {
		if *mode == "" {
			*mode = resourceapi.DeviceAllocationModeExactCount
		}
		if *mode == resourceapi.DeviceAllocationModeExactCount && *count == 0 {
			*count = 1
		}
	}
	for i := range c.Spec.Devices.Requests {
		r := &c.Spec.Devices.Requests[i]
		if r.Exactly != nil {
			set(&r.Exactly.AllocationMode, &r.Exactly.Count)
		}
		for n := range r.FirstAvailable {
			set(&r.FirstAvailable[n].AllocationMode, &r.FirstAvailable[n].Count)
		}
	}
	return c
}

func pointers[T any](items []T) []*T {
	all := make([]*T, len(items))
	for i := range items {
		all[i] = &items[i]
	}
	return all
}
