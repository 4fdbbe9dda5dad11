package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// GPUElasticPool is GPUs that several workloads may grow into, by priority.
//
// +kubebuilder:object:root=true
// +kubebuilder:metadata:annotations="helm.sh/resource-policy=keep"
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=gep,categories=kerf
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes`
// +kubebuilder:printcolumn:name="GPUs",type=integer,JSONPath=`.status.gpus`
// +kubebuilder:printcolumn:name="Free",type=integer,JSONPath=`.status.freeGPUs`
// +kubebuilder:printcolumn:name="Stranded",type=integer,JSONPath=`.status.strandedSlices`,description="free memory slices that no profile can use"
// +kubebuilder:printcolumn:name="Price",type=string,JSONPath=`.spec.price.perGPUHour`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type GPUElasticPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec GPUElasticPoolSpec `json:"spec"`
	// +optional
	Status GPUElasticPoolStatus `json:"status,omitzero"`
}

// GPUElasticPoolList is a list of them.
//
// +kubebuilder:object:root=true
type GPUElasticPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []GPUElasticPool `json:"items"`
}

// GPUElasticPoolSpec says which GPUs are in the pool, and who has GPUs of its own beside it.
type GPUElasticPoolSpec struct {
	// Selector chooses the nodes whose GPUs are the pool, by their labels. It must not be empty: that would be all nodes.
	// +kubebuilder:validation:XValidation:rule="(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",message="selector must not be empty: it would choose all nodes"
	Selector metav1.LabelSelector `json:"selector"`
	// Primaries are GPUs that belong to one workload each. What it does not need of them it may give.
	// +kubebuilder:validation:MaxItems=64
	// +listType=map
	// +listMapKey=name
	// +optional
	Primaries []PrimaryPool `json:"primaries,omitempty"`
	// Price of a GPU, for what is said about cost.
	// +optional
	Price *Price `json:"price,omitempty"`
}

// PrimaryPool is the nodes whose GPUs one workload has first.
type PrimaryPool struct {
	// Name of the primary pool, unique in this object.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// Hint is the workload's, as namespace/name.
	// +kubebuilder:validation:MaxLength=317
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Hint string `json:"hint"`
	// Selector chooses the nodes by their labels.
	// +kubebuilder:validation:XValidation:rule="(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",message="selector must not be empty: it would choose all nodes"
	Selector metav1.LabelSelector `json:"selector"`
}

// Price of a GPU.
type Price struct {
	// PerGPUHour is a decimal number, such as "2.50".
	// +kubebuilder:validation:Pattern=`^[0-9]{1,9}(\.[0-9]{1,6})?$`
	PerGPUHour string `json:"perGPUHour"`
	// Currency is a code of ISO 4217.
	// +kubebuilder:validation:Pattern=`^[A-Z]{3}$`
	// +kubebuilder:default=USD
	// +optional
	Currency string `json:"currency,omitempty"`
}

// GPUElasticPoolStatus is what is in the pool, and what of it is free.
type GPUElasticPoolStatus struct {
	// ObservedGeneration is the generation of the spec that the status is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	Nodes int32 `json:"nodes"`
	// +optional
	GPUs int32 `json:"gpus"`
	// FreeGPUs are those that nobody uses at all.
	// +optional
	FreeGPUs int32 `json:"freeGPUs"`
	// Free says of each profile how many more can be placed. They exclude one another: the numbers do not add up.
	// +listType=map
	// +listMapKey=profile
	// +optional
	Free []FreeProfile `json:"free,omitempty"`
	// StrandedSlices are free memory slices of which no profile can be made.
	// +optional
	StrandedSlices int32 `json:"strandedSlices"`
	// Conditions of the pool.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// FreeProfile is how many more of a profile can be placed.
type FreeProfile struct {
	// Profile, such as 2g.20gb, or "gpu" for whole GPUs.
	Profile string `json:"profile"`
	Count   int32  `json:"count"`
}
