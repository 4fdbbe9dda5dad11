package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// GPUScalingHint asks how many replicas a workload on GPUs should have, and of
// which shape. The answer, with its evidence, is in the status.
//
// +kubebuilder:object:root=true
// +kubebuilder:metadata:annotations="helm.sh/resource-policy=keep"
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=gsh,categories=kerf
// +kubebuilder:printcolumn:name="Target",type=string,JSONPath=`.spec.targetRef.name`
// +kubebuilder:printcolumn:name="Current",type=integer,JSONPath=`.status.currentReplicas`
// +kubebuilder:printcolumn:name="Desired",type=integer,JSONPath=`.status.desiredReplicas`
// +kubebuilder:printcolumn:name="ScaleTo",type=integer,JSONPath=`.status.scaleTo`
// +kubebuilder:printcolumn:name="Direction",type=string,JSONPath=`.status.direction`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.reason`
// +kubebuilder:printcolumn:name="Util%",type=integer,JSONPath=`.status.evidence.utilizationPercent`
// +kubebuilder:printcolumn:name="Fits",type=string,JSONPath=`.status.feasibility.state`
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.mode`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type GPUScalingHint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec GPUScalingHintSpec `json:"spec"`
	// +optional
	Status GPUScalingHintStatus `json:"status,omitzero"`
}

// GPUScalingHintList is a list of them.
//
// +kubebuilder:object:root=true
type GPUScalingHintList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []GPUScalingHint `json:"items"`
}

// GPUScalingHintSpec is what the owner of a workload asks for.
//
// +kubebuilder:validation:XValidation:rule="has(self.class) != has(self.thresholds)",message="give either a class or thresholds of your own"
// +kubebuilder:validation:XValidation:rule="self.minReplicas <= self.maxReplicas",message="minReplicas must not be above maxReplicas"
type GPUScalingHintSpec struct {
	// TargetRef is the workload, in the hint's namespace.
	TargetRef TargetReference `json:"targetRef"`
	// Class chooses the thresholds by the kind of work.
	// +optional
	Class Class `json:"class,omitempty"`
	// Thresholds are given instead of a class.
	// +optional
	Thresholds *Thresholds `json:"thresholds,omitempty"`
	// MinReplicas is never gone below. It is at least 1: without a replica there is no utilization to decide by.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:default=1
	// +optional
	MinReplicas int32 `json:"minReplicas,omitempty"`
	// MaxReplicas is never gone above.
	// +kubebuilder:validation:Minimum=1
	MaxReplicas int32 `json:"maxReplicas"`
	// FallbackReplicas is what the workload has at least once the metrics could not be read three times in a row.
	// It is held between minReplicas and maxReplicas, and never makes a workload smaller.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:default=3
	// +optional
	FallbackReplicas int32 `json:"fallbackReplicas,omitempty"`
	// Pool is the name of the GPUElasticPool that the workload may grow into.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Pool string `json:"pool,omitempty"`
	// Priority says who gets what is free: the higher first.
	// +kubebuilder:validation:Minimum=-1000000000
	// +kubebuilder:validation:Maximum=1000000000
	// +kubebuilder:default=0
	// +optional
	Priority int32 `json:"priority,omitempty"`
	// Memory says what used GPU memory means: Elastic memory follows the demand; Reserved memory was taken at the
	// start, as inference servers do, and says nothing about it.
	// +kubebuilder:default=Elastic
	// +optional
	Memory MemoryModel `json:"memory,omitempty"`
	// Signals are further reasons to grow. None of them alone makes a workload smaller.
	// +kubebuilder:validation:MaxItems=8
	// +listType=map
	// +listMapKey=name
	// +optional
	Signals []Signal `json:"signals,omitempty"`
	// Mode: Advise only says what should be done; Scale also sets the replicas of the target.
	// +kubebuilder:default=Advise
	// +optional
	Mode Mode `json:"mode,omitempty"`
}

// TargetReference names an object that has a scale subresource.
type TargetReference struct {
	// APIVersion, such as apps/v1.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=317
	APIVersion string `json:"apiVersion"`
	// Kind, such as Deployment.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Kind string `json:"kind"`
	// Name of the object.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// Class is a kind of work, with the thresholds that go with it.
//
// +kubebuilder:validation:Enum=Realtime;Batch;Conversational;Conservative
type Class string

// The classes. Package scaling has their thresholds.
const (
	ClassRealtime       Class = "Realtime"
	ClassBatch          Class = "Batch"
	ClassConversational Class = "Conversational"
	ClassConservative   Class = "Conservative"
)

// Thresholds bound the utilization in which nothing is done.
//
// +kubebuilder:validation:XValidation:rule="self.scaleDownBelow < self.scaleUpAbove",message="scaleDownBelow must be below scaleUpAbove: between them nothing is done"
type Thresholds struct {
	// ScaleUpAbove is the mean utilization in percent above which replicas are added.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=99
	ScaleUpAbove int32 `json:"scaleUpAbove"`
	// ScaleDownBelow is the mean utilization in percent below which replicas are taken away.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=98
	ScaleDownBelow int32 `json:"scaleDownBelow"`
	// CooldownSeconds is how long nothing is advised after a change of the replicas was seen.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=3600
	// +kubebuilder:default=60
	// +optional
	CooldownSeconds *int32 `json:"cooldownSeconds,omitempty"`
}

// MemoryModel says what used GPU memory means.
//
// +kubebuilder:validation:Enum=Elastic;Reserved
type MemoryModel string

// The memory models.
const (
	MemoryElastic  MemoryModel = "Elastic"
	MemoryReserved MemoryModel = "Reserved"
)

// Mode says what is done with a hint.
//
// +kubebuilder:validation:Enum=Advise;Scale
type Mode string

// The modes.
const (
	ModeAdvise Mode = "Advise"
	ModeScale  Mode = "Scale"
)

// Signal is a query whose value, above a threshold, is a reason to grow.
type Signal struct {
	// Name of the signal in messages.
	// +kubebuilder:validation:Pattern=`^[a-z]([a-z0-9-]*[a-z0-9])?$`
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name"`
	// Query in PromQL, which gives one value. No value is no reason to do anything.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=4096
	Query string `json:"query"`
	// ScaleUpAbove is the value above which the workload grows by one step.
	ScaleUpAbove int64 `json:"scaleUpAbove"`
}
