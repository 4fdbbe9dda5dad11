package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// GPUScalingHintStatus is the answer, and what it rests on.
type GPUScalingHintStatus struct {
	// ObservedGeneration is the generation of the spec that was answered.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// CurrentReplicas is how many the target asks for now.
	// +optional
	CurrentReplicas *int32 `json:"currentReplicas,omitempty"`
	// DesiredReplicas is how many it should have.
	// +optional
	DesiredReplicas *int32 `json:"desiredReplicas,omitempty"`
	// ScaleTo is how many replicas to set at once: the desired ones without those that have to wait until another
	// workload has given way, or for nodes that nothing here brings. This is what KEDA is told, and what mode Scale sets.
	// +optional
	ScaleTo *int32 `json:"scaleTo,omitempty"`
	// Direction is Up, Down or Hold.
	// +optional
	Direction Direction `json:"direction,omitempty"`
	// Reason is one word for why.
	// +optional
	Reason Reason `json:"reason,omitempty"`
	// Message says why, with the numbers.
	// +optional
	Message string `json:"message,omitempty"`
	// Evidence is what was measured.
	// +optional
	Evidence *Evidence `json:"evidence,omitempty"`
	// Feasibility says whether what is desired can be had.
	// +optional
	Feasibility *Feasibility `json:"feasibility,omitempty"`
	// RightSize is a shape that suits the workload better than its own.
	// +optional
	RightSize *RightSize `json:"rightSize,omitempty"`
	// LastScaleTime is when the target's replicas were last seen to change.
	// +optional
	LastScaleTime *metav1.Time `json:"lastScaleTime,omitempty"`
	// ValidUntil is when the hint is void if it has not been renewed.
	// +optional
	ValidUntil *metav1.Time `json:"validUntil,omitempty"`
	// Conditions of the hint.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Direction is where the replicas should go.
//
// +kubebuilder:validation:Enum=Up;Down;Hold
type Direction string

// The directions.
const (
	DirectionUp   Direction = "Up"
	DirectionDown Direction = "Down"
	DirectionHold Direction = "Hold"
)

// Reason is why a hint says what it says, in one word.
type Reason string

// The reasons.
const (
	// ReasonUtilizationHigh: above the upper threshold for as long as it takes.
	ReasonUtilizationHigh Reason = "UtilizationHigh"
	// ReasonUtilizationLow: below the lower threshold for as long as it takes.
	ReasonUtilizationLow Reason = "UtilizationLow"
	// ReasonSignal: a further signal is above its threshold.
	ReasonSignal Reason = "Signal"
	// ReasonWithinThresholds: neither above the one nor below the other.
	ReasonWithinThresholds Reason = "WithinThresholds"
	// ReasonNotSustained: a threshold is passed, but not for long enough yet.
	ReasonNotSustained Reason = "NotSustained"
	// ReasonCooldown: the replicas changed a short time ago.
	ReasonCooldown Reason = "Cooldown"
	// ReasonReplicasPending: replicas that were asked for do not work yet.
	ReasonReplicasPending Reason = "ReplicasPending"
	// ReasonRateLimited: as much as is allowed in a period has changed in it.
	ReasonRateLimited Reason = "RateLimited"
	// ReasonAtMaximum and ReasonAtMinimum: the bounds of the spec are reached.
	ReasonAtMaximum Reason = "AtMaximum"
	ReasonAtMinimum Reason = "AtMinimum"
	// ReasonOutOfBounds: the replicas are outside the bounds of the spec.
	ReasonOutOfBounds Reason = "OutOfBounds"
	// ReasonNoData: too few replicas have a measurement.
	ReasonNoData Reason = "NoData"
	// ReasonStaleData: the measurements are too old.
	ReasonStaleData Reason = "StaleData"
	// ReasonSharedOnly: all that is measured is GPUs that are shared in time, whose utilization is not the workload's own.
	ReasonSharedOnly Reason = "SharedOnly"
	// ReasonFallback: the metrics could not be read several times in a row.
	ReasonFallback Reason = "Fallback"
	// ReasonGivesWay: another workload of the pool needs more than the GPUs that this one does not.
	ReasonGivesWay Reason = "GivesWay"
	// ReasonNoTarget: the target is not there or cannot be used, for the reason of the condition TargetFound.
	ReasonNoTarget Reason = "NoTarget"
)

// Evidence is what a hint was decided from.
type Evidence struct {
	// UtilizationPercent is the mean over the replicas that were measured.
	// +optional
	UtilizationPercent *int32 `json:"utilizationPercent,omitempty"`
	// MemoryPercent is the largest share of the memory that a replica uses.
	// +optional
	MemoryPercent *int32 `json:"memoryPercent,omitempty"`
	// MeasuredReplicas of ReadyReplicas have a measurement.
	// +optional
	MeasuredReplicas int32 `json:"measuredReplicas"`
	// +optional
	ReadyReplicas int32 `json:"readyReplicas"`
	// AgeSeconds is the age of the oldest measurement used.
	// +optional
	AgeSeconds *int64 `json:"ageSeconds,omitempty"`
	// Shared is true where GPUs are shared in time: their utilization is that of all who share them.
	// +optional
	Shared bool `json:"shared,omitempty"`
}

// FeasibilityState says whether, and how, the desired replicas can be placed.
//
// +kubebuilder:validation:Enum=FitsNow;FitsAfter;NeedsNodes;Never;Unknown
type FeasibilityState string

// The states.
const (
	FitsNow            FeasibilityState = "FitsNow"
	FitsAfter          FeasibilityState = "FitsAfter"
	NeedsNodes         FeasibilityState = "NeedsNodes"
	FitsNever          FeasibilityState = "Never"
	FeasibilityUnknown FeasibilityState = "Unknown"
)

// Feasibility says whether what is desired can be had.
type Feasibility struct {
	// State is that of the replica that is the hardest to have.
	State FeasibilityState `json:"state"`
	// Now is how many of the further replicas fit on what is free.
	// +optional
	Now int32 `json:"now,omitempty"`
	// After says who has to give way for how many of the others.
	// +listType=map
	// +listMapKey=hint
	// +optional
	After []Donation `json:"after,omitempty"`
	// Nodes is how many of the others need nodes that are not there.
	// +optional
	Nodes int32 `json:"nodes,omitempty"`
	// Message explains the state.
	// +optional
	Message string `json:"message,omitempty"`
}

// Donation is what a workload gives, so that another one can grow.
type Donation struct {
	// Hint of the workload that gives, as namespace/name.
	Hint string `json:"hint"`
	// Replicas that it gives.
	Replicas int32 `json:"replicas"`
}

// RightSize is a shape that would do better.
type RightSize struct {
	// Profile is that of the MIG instance, such as 2g.20gb, or "gpu" for a whole GPU.
	Profile string `json:"profile"`
	// Message says from which measurements it follows.
	// +optional
	Message string `json:"message,omitempty"`
}

// The types of conditions.
const (
	// ConditionTargetFound: the target of a hint can be looked at.
	ConditionTargetFound = "TargetFound"
	// ConditionMeasured: all of its replicas that work are measured. The reason says what is missing.
	ConditionMeasured = "Measured"
	// ConditionGives: replicas of the target are to go in favour of another's.
	ConditionGives = "Gives"
	// ConditionReceives: further replicas of the target wait for others to go.
	ConditionReceives = "Receives"
	// ConditionScaled: the target has been given the replicas that mode Scale is to set.
	ConditionScaled = "Scaled"
	// ConditionReady: a pool has GPUs.
	ConditionReady = "Ready"
)
