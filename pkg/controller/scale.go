package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

const (
	// deletionCost is what ReplicaSets look at when they choose pods to delete: the lower goes first.
	deletionCost = corev1.PodDeletionCost
	// lowCost is below what pods have that nobody has given a cost. Nobody gives it by hand, so it may be taken away.
	lowCost = "-1000000000"
)

// scale sets the replicas of a target whose hint asks for it. It leaves alone what
// somebody else scales: two that write the same number would undo each other's.
func (c *Controller) scale(ctx context.Context, all *world, w *workload) error {
	if w.hint.Spec.Mode != v1alpha1.ModeScale {
		return nil
	}
	set := func(status metav1.ConditionStatus, reason, format string, args ...any) {
		w.scaled = &condition{status, reason, fmt.Sprintf(format, args...)}
	}
	if !c.Scale {
		set(metav1.ConditionFalse, "NotAllowed", "the controller was not started with --scale: it advises only")
		return nil
	}
	if other := all.scalers[keyOf(w.hint)]; other != "" {
		set(metav1.ConditionFalse, "AnotherScaler", "%s sets the replicas of the target: delete one of the two, or use mode Advise", other)
		return nil
	}
	to := w.outcome.ScaleTo
	if to == w.target.replicas {
		set(metav1.ConditionTrue, "InSync", "the target has %d replicas", to)
		return nil
	}
	// The resource version is that of the object that was decided about: if it has changed, this is refused.
	body := &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.hint.Namespace, Name: w.hint.Spec.TargetRef.Name, ResourceVersion: w.target.object.GetResourceVersion()},
		Spec:       autoscalingv1.ScaleSpec{Replicas: int32(to)},
	}
	object, ok := w.target.object.DeepCopyObject().(client.Object)
	if !ok {
		return fmt.Errorf("hint %s: %T is no object", w.name(), w.target.object)
	}
	if err := c.Client.SubResource("scale").Update(ctx, object, client.WithSubResourceBody(body)); err != nil {
		set(metav1.ConditionFalse, "Failed", "%v", err)
		return fmt.Errorf("hint %s: set %d replicas: %w", w.name(), to, err)
	}
	set(metav1.ConditionTrue, "Scaled", "from %d to %d replicas", w.target.replicas, to)
	c.Events.Eventf(w.hint, nil, corev1.EventTypeNormal, "Scaled", "Scale", "%s %s: %d -> %d replicas", w.hint.Spec.TargetRef.Kind, w.hint.Spec.TargetRef.Name, w.target.replicas, to)
	return nil
}

// mark gives the pods that are to go the lowest cost of deletion, and takes it from
// all those that are not any more, also where their hint is gone.
func (c *Controller) mark(ctx context.Context, all *world, workloads []*workload) error {
	if !c.DeletionCosts {
		return nil
	}
	goes := map[types.NamespacedName]bool{}
	for _, w := range workloads {
		for _, r := range w.outcome.Gives {
			goes[types.NamespacedName{Namespace: w.hint.Namespace, Name: r.Name}] = true
		}
	}
	var errs []error
	for _, pod := range all.pods.all {
		key := client.ObjectKeyFromObject(pod)
		cost, has := pod.Annotations[deletionCost]
		var to any
		switch {
		case pod.DeletionTimestamp != nil:
			continue
		case goes[key] && !has:
			to = lowCost
		case !goes[key] && cost == lowCost:
			to = nil
		default:
			continue // A cost that somebody else has set stays.
		}
		// Only if it is still that pod.
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID, "annotations": map[string]any{deletionCost: to}}})
		if err != nil {
			return err
		}
		named := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}}
		if err := c.Client.Patch(ctx, named, client.RawPatch(types.MergePatchType, patch)); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("set the deletion cost of pod %s: %w", key, err))
		}
	}
	return errors.Join(errs...)
}
