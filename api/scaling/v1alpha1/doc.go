// Package v1alpha1 is the API of scaling hints, group scaling.kerf.dev: what a
// workload's owner asks for, and what is answered in the status. It holds types
// and their rules, which the API server checks; package scaling decides.
//
// +kubebuilder:object:generate=true
// +groupName=scaling.kerf.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion of the types.
var GroupVersion = schema.GroupVersion{Group: "scaling.kerf.dev", Version: "v1alpha1"}

// AddToScheme makes the types known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &GPUScalingHint{}, &GPUScalingHintList{}, &GPUElasticPool{}, &GPUElasticPoolList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
