package fleet

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// Pod is what is allocated together, on one node: the claims of a pod, or a claim alone.
type Pod struct {
	// Spec restricts the nodes; nil for a claim alone.
	Spec   *corev1.PodSpec
	Claims []*resourceapi.ResourceClaim
}

// Pending are the claims that have no allocation yet.
func (p Pod) Pending() []*resourceapi.ResourceClaim {
	return slices.DeleteFunc(slices.Clone(p.Claims), func(c *resourceapi.ResourceClaim) bool { return c.Status.Allocation != nil })
}

// terms are all that Excluded looks at, but for the node.
func (p Pod) terms() any {
	var t struct {
		Node        string
		Selector    map[string]string
		Affinity    *corev1.NodeSelector
		Tolerations []corev1.Toleration
		Alone       bool
		Allocated   []*corev1.NodeSelector
	}
	for _, c := range p.Claims {
		if c.Status.Allocation != nil && c.Status.Allocation.NodeSelector != nil {
			t.Allocated = append(t.Allocated, c.Status.Allocation.NodeSelector)
		}
	}
	if p.Spec == nil {
		t.Alone = true
		return t
	}
	t.Node, t.Selector, t.Tolerations = p.Spec.NodeName, p.Spec.NodeSelector, p.Spec.Tolerations
	if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		t.Affinity = a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	return t
}

// Excluded says why the pod cannot run on the node whatever devices it has, and is
// empty if it can. CPU and memory are no concern of it.
func (p Pod) Excluded(node *corev1.Node) string {
	for _, c := range p.Claims {
		if c.Status.Allocation == nil || c.Status.Allocation.NodeSelector == nil {
			continue
		}
		selector, err := nodeaffinity.NewNodeSelector(c.Status.Allocation.NodeSelector)
		if err != nil {
			return fmt.Sprintf("the allocation of claim %s has a node selector that cannot be read: %v", Key(c), err)
		}
		if !selector.Match(node) {
			return fmt.Sprintf("claim %s is allocated on another node", Key(c))
		}
	}
	if p.Spec == nil {
		return ""
	}
	if p.Spec.NodeName != "" && p.Spec.NodeName != node.Name {
		return "the pod names node " + p.Spec.NodeName
	}
	matches, err := nodeaffinity.GetRequiredNodeAffinity(&corev1.Pod{Spec: *p.Spec}).Match(node)
	if err != nil {
		return fmt.Sprintf("the node affinity of the pod cannot be read: %v", err)
	}
	if !matches {
		return "its labels do not match the pod's node selector or affinity"
	}
	if node.Spec.Unschedulable {
		return "it is cordoned"
	}
	blocks := func(t *corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	}
	if t, untolerated := corev1helpers.FindMatchingUntoleratedTaint(klog.Background(), node.Spec.Taints, p.Spec.Tolerations, blocks, true); untolerated {
		return fmt.Sprintf("the pod does not tolerate the node's taint %s", t.ToString())
	}
	return ""
}
