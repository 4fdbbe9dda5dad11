package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/fleet"
)

// world is what the API server says at one moment. Its objects are the cache's: nobody changes them.
type world struct {
	hints   []v1alpha1.GPUScalingHint
	pools   []v1alpha1.GPUElasticPool
	objects fleet.Objects
	claims  map[types.NamespacedName]*resourceapi.ResourceClaim
	pods    podIndex
	// scalers are who else sets replicas.
	scalers map[targetKey]string
	nodes   nodePools
}

// read reads all of it from the cache. What nobody asks about is not looked at.
func (c *Controller) read(ctx context.Context) (*world, error) {
	var (
		w         = &world{claims: map[types.NamespacedName]*resourceapi.ResourceClaim{}, scalers: map[targetKey]string{}}
		hints     v1alpha1.GPUScalingHintList
		pools     v1alpha1.GPUElasticPoolList
		nodes     corev1.NodeList
		slices    resourceapi.ResourceSliceList
		classes   resourceapi.DeviceClassList
		claims    resourceapi.ResourceClaimList
		templates resourceapi.ResourceClaimTemplateList
		rules     resourceapi.DeviceTaintRuleList
		pods      corev1.PodList
		hpas      autoscalingv2.HorizontalPodAutoscalerList
	)
	lists := []client.ObjectList{&hints, &pools, &nodes, &slices, &classes, &claims, &templates, &pods, &hpas}
	if c.TaintRules {
		lists = append(lists, &rules)
	}
	for _, list := range lists {
		if err := c.Client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("list %T: %w", list, err)
		}
	}
	w.hints, w.pools = hints.Items, pools.Items
	o := &w.objects
	o.Nodes, o.Slices, o.Classes = pointers(nodes.Items), pointers(slices.Items), pointers(classes.Items)
	o.Claims, o.TaintRules, o.Templates = pointers(claims.Items), pointers(rules.Items), pointers(templates.Items)
	for _, claim := range o.Claims {
		w.claims[client.ObjectKeyFromObject(claim)] = claim
	}
	w.pods = indexPods(pods.Items)
	for i := range hpas.Items {
		h := &hpas.Items[i]
		ref := h.Spec.ScaleTargetRef
		w.scalers[targetKey{h.Namespace, schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).GroupKind(), ref.Name}] = "HorizontalPodAutoscaler " + h.Name
	}
	return w, c.readOptional(ctx, w)
}

// readOptional reads kinds that a cluster need not have. They are few, and read from the API server.
func (c *Controller) readOptional(ctx context.Context, w *world) error {
	scaled, err := c.listOptional(ctx, schema.GroupVersionKind{Group: "keda.sh", Version: "v1alpha1", Kind: "ScaledObject"})
	if err != nil {
		return err
	}
	for i := range scaled {
		name, _, _ := unstructured.NestedString(scaled[i].Object, "spec", "scaleTargetRef", "name")
		kind, _, _ := unstructured.NestedString(scaled[i].Object, "spec", "scaleTargetRef", "kind")
		version, _, _ := unstructured.NestedString(scaled[i].Object, "spec", "scaleTargetRef", "apiVersion")
		if kind == "" { // KEDA's default.
			kind, version = "Deployment", "apps/v1"
		}
		// It comes before the HPA that KEDA makes of it.
		w.scalers[targetKey{scaled[i].GetNamespace(), schema.FromAPIVersionAndKind(version, kind).GroupKind(), name}] = "ScaledObject " + scaled[i].GetName()
	}
	karpenter, err := c.listOptional(ctx, schema.GroupVersionKind{Group: "karpenter.sh", Version: "v1", Kind: "NodePool"})
	if err != nil {
		return err
	}
	w.nodes = nodePools{karpenter: karpenter}
	status := &corev1.ConfigMap{}
	err = c.Live.Get(ctx, types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: "cluster-autoscaler-status"}, status)
	w.nodes.clusterAutoscaler = err == nil
	return ignoreAbsent(err)
}

func (c *Controller) listOptional(ctx context.Context, kind schema.GroupVersionKind) ([]unstructured.Unstructured, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(kind)
	if err := ignoreAbsent(c.Live.List(ctx, list)); err != nil {
		return nil, fmt.Errorf("list %s: %w", kind.Kind, err)
	}
	return list.Items, nil
}

// ignoreAbsent takes the errors of a kind that the cluster does not have, or that nobody may read, for none.
func ignoreAbsent(err error) error {
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return nil
	}
	return err
}

// targetKey names a workload, in whatever version of its API.
type targetKey struct {
	namespace string
	kind      schema.GroupKind
	name      string
}

func keyOf(h *v1alpha1.GPUScalingHint) targetKey {
	ref := h.Spec.TargetRef
	return targetKey{h.Namespace, schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).GroupKind(), ref.Name}
}

// target is the workload that a hint is about.
type target struct {
	object   client.Object
	replicas int
	selector labels.Selector
	// template is nil for kinds whose pods are not known before they are there.
	template *corev1.PodSpec
	// ordered is true where the last pod goes first, whatever anybody wishes.
	ordered bool
}

var errNoSelector = errors.New("it has no selector, so its pods are not known")

func (c *Controller) target(ctx context.Context, h *v1alpha1.GPUScalingHint) (t target, err error) {
	key := types.NamespacedName{Namespace: h.Namespace, Name: h.Spec.TargetRef.Name}
	get := func(o client.Object) error {
		t.object = o
		return c.Client.Get(ctx, key, o, client.UnsafeDisableDeepCopy)
	}
	set := func(replicas *int32, selector *metav1.LabelSelector, template *corev1.PodTemplateSpec) {
		t.replicas = 1
		if replicas != nil {
			t.replicas = int(*replicas)
		}
		t.template = &template.Spec
		t.selector, err = metav1.LabelSelectorAsSelector(selector)
	}
	switch keyOf(h).kind {
	case schema.GroupKind{Group: appsv1.GroupName, Kind: "Deployment"}:
		d := &appsv1.Deployment{}
		if err := get(d); err != nil {
			return t, err
		}
		set(d.Spec.Replicas, d.Spec.Selector, &d.Spec.Template)
	case schema.GroupKind{Group: appsv1.GroupName, Kind: "StatefulSet"}:
		s := &appsv1.StatefulSet{}
		if err := get(s); err != nil {
			return t, err
		}
		set(s.Spec.Replicas, s.Spec.Selector, &s.Spec.Template)
		t.ordered = true
	default:
		return c.anyTarget(ctx, h, key)
	}
	return t, err
}

// anyTarget asks the scale subresource of a kind that is not in the cache.
func (c *Controller) anyTarget(ctx context.Context, h *v1alpha1.GPUScalingHint, key types.NamespacedName) (target, error) {
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(schema.FromAPIVersionAndKind(h.Spec.TargetRef.APIVersion, h.Spec.TargetRef.Kind))
	o.SetNamespace(key.Namespace)
	o.SetName(key.Name)
	scale := &autoscalingv1.Scale{}
	if err := c.Client.SubResource("scale").Get(ctx, o, scale); err != nil {
		return target{}, err
	}
	if scale.Status.Selector == "" {
		return target{}, errNoSelector
	}
	selector, err := labels.Parse(scale.Status.Selector)
	return target{object: o, replicas: int(scale.Spec.Replicas), selector: selector}, err
}

// podIndex finds pods by namespace and label.
type podIndex struct {
	all []*corev1.Pod
	at  map[string][]*corev1.Pod
}

func indexPods(pods []corev1.Pod) podIndex {
	index := podIndex{at: map[string][]*corev1.Pod{}}
	for i := range pods {
		p := &pods[i]
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue // Their claims are given back.
		}
		index.all = append(index.all, p)
		index.at[p.Namespace] = append(index.at[p.Namespace], p)
		for key, value := range p.Labels {
			at := strings.Join([]string{p.Namespace, key, value}, "/")
			index.at[at] = append(index.at[at], p)
		}
	}
	return index
}

// of are the pods that a selector chooses.
func (i podIndex) of(namespace string, selector labels.Selector) []*corev1.Pod {
	candidates := i.at[namespace]
	requirements, _ := selector.Requirements()
	for _, r := range requirements {
		if values := r.ValuesUnsorted(); len(values) == 1 && (r.Operator() == "=" || r.Operator() == "in") {
			if some := i.at[strings.Join([]string{namespace, r.Key(), values[0]}, "/")]; len(some) < len(candidates) {
				candidates = some
			}
		}
	}
	var chosen []*corev1.Pod
	for _, p := range candidates {
		if selector.Matches(labels.Set(p.Labels)) {
			chosen = append(chosen, p)
		}
	}
	return chosen
}

func pointers[T any](items []T) []*T {
	all := make([]*T, len(items))
	for i := range items {
		all[i] = &items[i]
	}
	return all
}
