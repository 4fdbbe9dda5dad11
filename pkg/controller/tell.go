package controller

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/dcgm"
)

const (
	// validFor is how long a hint holds without being renewed: time enough for another controller to take over.
	validFor = 3 * time.Minute
	// renewEvery is how often a status is written in which only the measurements have changed.
	renewEvery = time.Minute
	// writesAtOnce bounds the writes that are under way.
	writesAtOnce = 16
)

type condition struct {
	status          metav1.ConditionStatus
	reason, message string
}

// tell writes what was decided: statuses, events and replicas.
func (c *Controller) tell(ctx context.Context, now time.Time, all *world, workloads []*workload) error {
	var group errgroup.Group
	group.SetLimit(writesAtOnce)
	errs := make([]error, len(workloads))
	for i, w := range workloads {
		group.Go(func() error {
			if w.err == nil {
				errs[i] = c.scale(ctx, all, w)
			}
			errs[i] = errors.Join(errs[i], c.write(ctx, now, w))
			return nil
		})
	}
	_ = group.Wait()
	return errors.Join(errs...)
}

func (c *Controller) write(ctx context.Context, now time.Time, w *workload) error {
	m := c.known[w.hint.UID]
	hint := w.hint.DeepCopy()
	hint.Status = w.status(now, m.rightSize)
	if !material(&w.hint.Status, &hint.Status) && now.Sub(m.written) < renewEvery {
		return nil
	}
	if err := c.Client.Status().Patch(ctx, hint, client.MergeFrom(w.hint)); err != nil {
		if apierrors.IsNotFound(err) {
			return nil // Deleted meanwhile. What is missing with it, if it is the CRD, the cache says.
		}
		return fmt.Errorf("hint %s: write the status: %w", w.name(), err)
	}
	m.written = now
	c.event(w, m, &hint.Status)
	return nil
}

// material reports whether a status says something else, apart from measurements and times.
func material(old, now *v1alpha1.GPUScalingHintStatus) bool {
	a, b := old.DeepCopy(), now.DeepCopy()
	for _, s := range []*v1alpha1.GPUScalingHintStatus{a, b} {
		s.Evidence, s.ValidUntil, s.Message = nil, nil, ""
		if s.Feasibility != nil {
			s.Feasibility.Message = ""
		}
		if s.RightSize != nil {
			s.RightSize.Message = ""
		}
		for i := range s.Conditions {
			s.Conditions[i].Message, s.Conditions[i].LastTransitionTime = "", metav1.Time{}
		}
	}
	return !equality.Semantic.DeepEqual(a, b)
}

// status is the answer of a workload's hint.
func (w *workload) status(now time.Time, rightSize *v1alpha1.RightSize) v1alpha1.GPUScalingHintStatus {
	old := w.hint.Status
	s := v1alpha1.GPUScalingHintStatus{
		ObservedGeneration: w.hint.Generation, LastScaleTime: old.LastScaleTime,
		ValidUntil: &metav1.Time{Time: now.Add(validFor)}, Conditions: slices.Clone(old.Conditions),
	}
	set := func(kind string, c condition) {
		meta.SetStatusCondition(&s.Conditions, metav1.Condition{
			Type: kind, Status: c.status, Reason: c.reason, Message: c.message,
			ObservedGeneration: w.hint.Generation, LastTransitionTime: metav1.NewTime(now),
		})
	}
	if w.err != nil {
		// Nothing is asked for: whoever follows the hint has to see that it is void.
		set(v1alpha1.ConditionTargetFound, targetMissing(w))
		s.Direction, s.Reason, s.Message = v1alpha1.DirectionHold, v1alpha1.ReasonNoTarget, w.err.Error()
		for _, kind := range []string{v1alpha1.ConditionMeasured, v1alpha1.ConditionGives, v1alpha1.ConditionReceives, v1alpha1.ConditionScaled} {
			meta.RemoveStatusCondition(&s.Conditions, kind)
		}
		return s
	}
	set(v1alpha1.ConditionTargetFound, condition{metav1.ConditionTrue, "Found", fmt.Sprintf("%s %s has %d pods", w.hint.Spec.TargetRef.Kind, w.hint.Spec.TargetRef.Name, len(w.replicas))})
	h, o := w.outcome.Hint, w.outcome
	s.CurrentReplicas, s.DesiredReplicas, s.ScaleTo = number(h.Current), number(h.Desired), number(o.ScaleTo)
	s.Direction, s.Reason, s.Message = h.Direction, h.Reason, h.Message
	s.Feasibility = o.Feasibility.DeepCopy()
	s.RightSize = rightSize
	if change := w.state.LastChange; !change.IsZero() {
		// To the second, as the API keeps it: else it would look as if it changed with every tick.
		at := metav1.NewTime(change).Rfc3339Copy()
		s.LastScaleTime = &at
	}
	e := h.Evidence
	s.Evidence = &v1alpha1.Evidence{MeasuredReplicas: int32(e.Measured), ReadyReplicas: int32(e.Ready), Shared: e.Shared}
	if e.Measured > 0 {
		age := int64(e.Age.Seconds())
		s.Evidence.UtilizationPercent, s.Evidence.MemoryPercent, s.Evidence.AgeSeconds = number(int(math.Round(e.Utilization))), number(int(math.Round(e.Memory))), &age
	}
	set(v1alpha1.ConditionMeasured, w.measured())
	gives, receives := condition{metav1.ConditionFalse, "NothingAsked", ""}, condition{metav1.ConditionFalse, "NothingNeeded", ""}
	if len(o.Gives) > 0 {
		names := make([]string, len(o.Gives))
		for i, r := range o.Gives {
			names[i] = r.Name
		}
		gives = condition{metav1.ConditionTrue, "GivesWay", fmt.Sprintf("%s can have the places of %s", strings.Join(o.To, ", "), strings.Join(names, ", "))}
	}
	if len(o.Feasibility.After) > 0 {
		receives = condition{metav1.ConditionTrue, "WaitsForOthers", o.Feasibility.Message}
	}
	set(v1alpha1.ConditionGives, gives)
	set(v1alpha1.ConditionReceives, receives)
	if w.scaled != nil {
		set(v1alpha1.ConditionScaled, *w.scaled)
	} else {
		meta.RemoveStatusCondition(&s.Conditions, v1alpha1.ConditionScaled)
	}
	return s
}

func targetMissing(w *workload) condition {
	reason := "Unreadable"
	switch {
	case apierrors.IsNotFound(w.err) || meta.IsNoMatchError(w.err):
		reason = "NotFound"
	case errors.Is(w.err, errTargetTaken):
		reason = "TargetTaken"
	case errors.Is(w.err, errNoSelector):
		reason = "NoSelector"
	}
	return condition{metav1.ConditionFalse, reason, w.err.Error()}
}

// measured says what is missing, and what helps.
func (w *workload) measured() condition {
	if err := w.observation.ReadError; err != nil {
		return condition{metav1.ConditionFalse, "ReadFailed", err.Error()}
	}
	count := map[dcgm.State]int{}
	example := map[dcgm.State]string{}
	withoutDevices, all := 0, 0
	for _, r := range w.replicas {
		if !r.ready {
			continue
		}
		all++
		if len(r.devices) == 0 {
			withoutDevices++
		}
		for _, reading := range r.readings {
			if count[reading.State]++; example[reading.State] == "" {
				example[reading.State] = reading.Claim
			}
		}
	}
	for _, missing := range []struct {
		state dcgm.State
		why   string
	}{
		{dcgm.NoSeries, "have no row. The exporter lists the MIG instances that existed when it started: reload it, or have kerf's plugin measure them (docs/monitoring.md)"},
		{dcgm.Stale, "have rows that are too old, or of the future: look at the exporter, the scrape and the clocks"},
		{dcgm.NoValue, "have a row without a value: DCGM cannot measure them, or another profiler holds the counters"},
		{dcgm.Earlier, "have rows from before they were prepared: new ones come with the next collection"},
	} {
		if n := count[missing.state]; n > 0 {
			return condition{metav1.ConditionFalse, string(missing.state), fmt.Sprintf("%d devices, such as that of claim %s, %s", n, example[missing.state], missing.why)}
		}
	}
	switch {
	case withoutDevices > 0:
		return condition{metav1.ConditionFalse, "NoDevices", fmt.Sprintf("%d of %d ready pods have no claim that kerf has prepared", withoutDevices, all)}
	case w.blind != nil:
		return condition{metav1.ConditionFalse, "SignalUnreadable", w.blind.Error()}
	case all == 0:
		return condition{metav1.ConditionFalse, "NoReadyPods", "no pod of the target is ready"}
	}
	return condition{metav1.ConditionTrue, "Measured", fmt.Sprintf("all of %d ready pods", all)}
}

// event tells a change of what is desired, once.
func (c *Controller) event(w *workload, m *memory, s *v1alpha1.GPUScalingHintStatus) {
	kind, reason := corev1.EventTypeNormal, ""
	switch {
	case w.err != nil:
		kind, reason = corev1.EventTypeWarning, "TargetNotUsable"
	case s.Reason == v1alpha1.ReasonFallback:
		kind, reason = corev1.EventTypeWarning, "Fallback"
	case s.Direction == v1alpha1.DirectionUp && s.Feasibility.State == v1alpha1.FitsNever:
		kind, reason = corev1.EventTypeWarning, "ScaleUpImpossible"
	case s.Direction == v1alpha1.DirectionUp:
		reason = "ScaleUp"
	case s.Reason == v1alpha1.ReasonGivesWay:
		reason = "GivesWay"
	case s.Direction == v1alpha1.DirectionDown:
		reason = "ScaleDown"
	}
	told := reason
	if s.DesiredReplicas != nil && reason != "" && reason != "Fallback" {
		told = fmt.Sprintf("%s %d", reason, *s.DesiredReplicas)
	}
	if told == m.told {
		return
	}
	m.told = told
	if reason == "" {
		return
	}
	message := s.Message
	if w.err == nil {
		message = fmt.Sprintf("%d -> %d replicas: %s. %s", *s.CurrentReplicas, *s.DesiredReplicas, s.Message, s.Feasibility.Message)
	}
	c.Events.Eventf(w.hint, nil, kind, reason, "Decide", "%s", message)
}

// tellPools writes what is free in the pools.
func (c *Controller) tellPools(ctx context.Context, pools map[string]*members) error {
	var errs []error
	for name, m := range pools {
		pool := m.pool.DeepCopy()
		pool.Status = m.status()
		if equality.Semantic.DeepEqual(pool.Status, m.pool.Status) {
			continue
		}
		if err := c.Client.Status().Patch(ctx, pool, client.MergeFrom(m.pool)); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("pool %s: write the status: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func number(n int) *int32 {
	i := int32(n)
	return &i
}
