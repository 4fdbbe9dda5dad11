package controller

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/scaling"
)

// members are the nodes of an elastic pool.
type members struct {
	pool    *v1alpha1.GPUElasticPool
	elastic []*corev1.Node
	// primaries are the nodes of each hint that has some of its own.
	primaries map[string][]*corev1.Node
	order     []string
	// nodes are all of them by name, true for an elastic one.
	nodes   map[string]bool
	orders  map[string][]*corev1.Node
	content content
	// err is why the pool cannot be used.
	err error
}

// membersOf chooses the nodes of a pool by their labels. A node that a hint has for its own is not elastic.
func membersOf(pool *v1alpha1.GPUElasticPool, nodes []*corev1.Node) *members {
	m := &members{pool: pool, primaries: map[string][]*corev1.Node{}, nodes: map[string]bool{}, orders: map[string][]*corev1.Node{}}
	elastic, err := metav1.LabelSelectorAsSelector(&pool.Spec.Selector)
	if err != nil {
		m.err = fmt.Errorf("selector: %w", err)
		return m
	}
	selectors := make([]labels.Selector, len(pool.Spec.Primaries))
	for i, p := range pool.Spec.Primaries {
		if selectors[i], err = metav1.LabelSelectorAsSelector(&p.Selector); err != nil {
			m.err = fmt.Errorf("selector of primary pool %s: %w", p.Name, err)
			return m
		}
		if !slices.Contains(m.order, p.Hint) {
			m.order = append(m.order, p.Hint)
		}
	}
	for _, n := range nodes {
		set := labels.Set(n.Labels)
		if i := slices.IndexFunc(selectors, func(s labels.Selector) bool { return s.Matches(set) }); i >= 0 {
			owner := pool.Spec.Primaries[i].Hint
			m.primaries[owner] = append(m.primaries[owner], n)
			m.nodes[n.Name] = false
		} else if elastic.Matches(set) {
			m.elastic = append(m.elastic, n)
			m.nodes[n.Name] = true
		}
	}
	return m
}

// allowed are all nodes, in the order in which a workload takes them: its own, those of nobody, those of others.
func (m *members) allowed(hint string) []*corev1.Node {
	if nodes, ok := m.orders[hint]; ok {
		return nodes
	}
	nodes := slices.Concat(m.primaries[hint], m.elastic)
	for _, other := range m.order {
		if other != hint {
			nodes = append(nodes, m.primaries[other]...)
		}
	}
	m.orders[hint] = nodes
	return nodes
}

// nodePools are what can bring nodes here.
type nodePools struct {
	karpenter         []unstructured.Unstructured
	clusterAutoscaler bool
}

// gpuResource is what Karpenter counts as GPUs of an instance type.
const gpuResource = "nvidia.com/gpu"

// answer says what brings a node for a pod. Fits is whether a node like those that are here would have its shape.
func (n nodePools) answer(pod *corev1.PodSpec, fits bool) scaling.NewNodes {
	var able, unable []string
	for i := range n.karpenter {
		p := &n.karpenter[i]
		if why := unfit(p, pod); why != "" {
			unable = append(unable, fmt.Sprintf("NodePool %s does not, because %s", p.GetName(), why))
		} else {
			able = append(able, p.GetName())
		}
	}
	switch {
	case len(able) > 0:
		message := fmt.Sprintf("Karpenter's NodePool %s can bring them, unless Karpenter ignores claims (settings.ignoreDRARequests)", strings.Join(able, " or "))
		if !fits {
			message += "; no node that is here has the shape, even when empty"
		}
		return scaling.NewNodes{State: scaling.NewNodesAutomatic, Message: message}
	case n.clusterAutoscaler && fits:
		return scaling.NewNodes{State: scaling.NewNodesAutomatic, Message: "the cluster autoscaler can bring them"}
	case fits:
		return scaling.NewNodes{State: scaling.NewNodesByHand, Message: strings.Join(append([]string{"nothing here brings them"}, unable...), "; ")}
	default:
		return scaling.NewNodes{State: scaling.NewNodesNone, Message: strings.Join(append([]string{"no node here has the shape, even when empty"}, unable...), "; ")}
	}
}

// unfit says why a NodePool brings no node for a pod, empty if it can.
func unfit(pool *unstructured.Unstructured, pod *corev1.PodSpec) string {
	conditions, _, _ := unstructured.NestedSlice(pool.Object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == "Ready" && c["status"] == "False" {
			return fmt.Sprintf("it is not ready (%v)", c["reason"])
		}
	}
	if limit, used, reached := reachedLimit(pool); reached {
		return fmt.Sprintf("it has %s of at most %s GPUs", used, limit)
	}
	if pod == nil {
		return ""
	}
	raw, _, _ := unstructured.NestedSlice(pool.Object, "spec", "template", "spec", "taints")
	for _, r := range raw {
		var taint corev1.Taint
		object, ok := r.(map[string]any)
		if !ok || runtime.DefaultUnstructuredConverter.FromUnstructured(object, &taint) != nil {
			continue
		}
		blocks := func(t *corev1.Taint) bool { return t.Effect != corev1.TaintEffectPreferNoSchedule }
		if t, untolerated := corev1helpers.FindMatchingUntoleratedTaint(klog.Background(), []corev1.Taint{taint}, pod.Tolerations, blocks, true); untolerated {
			return "the pod does not tolerate its taint " + t.ToString()
		}
	}
	return ""
}

func reachedLimit(pool *unstructured.Unstructured) (limit, used string, reached bool) {
	limit, _, _ = unstructured.NestedString(pool.Object, "spec", "limits", gpuResource)
	used, _, _ = unstructured.NestedString(pool.Object, "status", "resources", gpuResource)
	most, err := resource.ParseQuantity(limit)
	if err != nil {
		return "", "", false // No limit.
	}
	now, err := resource.ParseQuantity(used)
	return limit, used, err == nil && now.Cmp(most) >= 0
}
