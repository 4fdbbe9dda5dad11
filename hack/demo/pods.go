package main

import (
	"encoding/json"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes/scheme"
)

// expected are the pods that manifests make: those that they name, and those of
// their deployments. Whatever else runs in the namespace is the user's.
type expected struct {
	names     []string
	selectors []labels.Selector
	count     int
}

// podsOf reads a list of applied objects.
func podsOf(applied []byte) (expected, error) {
	var e expected
	var list metav1.List
	if err := json.Unmarshal(applied, &list); err != nil {
		return e, fmt.Errorf("what kubectl applied: %w", err)
	}
	for _, item := range list.Items {
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(item.Raw, nil, nil)
		if err != nil {
			return e, fmt.Errorf("what kubectl applied: %w", err)
		}
		switch o := object.(type) {
		case *corev1.Pod:
			e.names = append(e.names, o.Name)
			e.count++
		case *appsv1.Deployment:
			selector, err := metav1.LabelSelectorAsSelector(o.Spec.Selector)
			if err != nil {
				return e, fmt.Errorf("deployment %s: %w", o.Name, err)
			}
			e.selectors = append(e.selectors, selector)
			e.count += int(*o.Spec.Replicas)
		}
	}
	return e, nil
}

// among returns those of the pods that are expected and not on their way out.
func (e expected) among(pods []corev1.Pod) []corev1.Pod {
	return slices.DeleteFunc(pods, func(p corev1.Pod) bool {
		selected := slices.ContainsFunc(e.selectors, func(s labels.Selector) bool { return s.Matches(labels.Set(p.Labels)) })
		return p.DeletionTimestamp != nil || !selected && !slices.Contains(e.names, p.Name)
	})
}

func isReady(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
