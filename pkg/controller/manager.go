package controller

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
	"github.com/kerf-project/kerf/pkg/fleet"
)

// Scheme has all kinds that are read and written.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := scheme.AddToScheme(s); err != nil {
		return nil, err
	}
	return s, v1alpha1.AddToScheme(s)
}

// CacheOptions keep what is cached small: of thousands of nodes it is most of the memory.
func CacheOptions() cache.Options {
	return cache.Options{DefaultTransform: fleet.NewInterner().Transform}
}

// HasTaintRules asks whether the API server has device taint rules in the version that is read.
func HasTaintRules(mapper meta.RESTMapper) (bool, error) {
	gvk := resourceapi.SchemeGroupVersion.WithKind("DeviceTaintRule")
	_, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if meta.IsNoMatchError(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask for the kinds of the API server: %w", err)
	}
	return true, nil
}

// Cached are the kinds that are watched, so that the cache has them before the first decision.
func Cached(taintRules bool) []client.Object {
	kinds := []client.Object{
		&v1alpha1.GPUScalingHint{}, &v1alpha1.GPUElasticPool{}, &corev1.Node{}, &corev1.Pod{},
		&resourceapi.ResourceSlice{}, &resourceapi.DeviceClass{}, &resourceapi.ResourceClaim{}, &resourceapi.ResourceClaimTemplate{},
		&autoscalingv2.HorizontalPodAutoscaler{}, &appsv1.Deployment{}, &appsv1.StatefulSet{},
	}
	if taintRules {
		kinds = append(kinds, &resourceapi.DeviceTaintRule{})
	}
	return kinds
}
