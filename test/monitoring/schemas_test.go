package monitoring

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What is asserted of the kinds of others. Their fields are checked against their CRDs in the end-to-end tests, by a real
// API server.

type header struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
}

type scaledObject struct {
	header `json:",inline"`
	Spec   struct {
		ScaleTargetRef  autoscalingv2.CrossVersionObjectReference `json:"scaleTargetRef"`
		MinReplicaCount int32                                     `json:"minReplicaCount"`
		MaxReplicaCount int32                                     `json:"maxReplicaCount"`
		Fallback        struct {
			Replicas int32  `json:"replicas"`
			Behavior string `json:"behavior"`
		} `json:"fallback"`
		Advanced struct {
			HorizontalPodAutoscalerConfig struct {
				// KEDA has the type of Kubernetes here as well.
				Behavior autoscalingv2.HorizontalPodAutoscalerBehavior `json:"behavior"`
			} `json:"horizontalPodAutoscalerConfig"`
		} `json:"advanced"`
		Triggers []struct {
			Type       string                         `json:"type"`
			MetricType autoscalingv2.MetricTargetType `json:"metricType"`
			Metadata   map[string]string              `json:"metadata"`
			// AuthenticationRef is to an object of the same namespace.
			AuthenticationRef struct {
				Name string `json:"name"`
			} `json:"authenticationRef"`
		} `json:"triggers"`
	} `json:"spec"`
}

type triggerAuthentication struct {
	header `json:",inline"`
	Spec   struct {
		SecretTargetRef []struct {
			Parameter string `json:"parameter"`
		} `json:"secretTargetRef"`
	} `json:"spec"`
}

type nodePool struct {
	header `json:",inline"`
	Spec   struct {
		Template struct {
			Spec struct {
				NodeClassRef struct {
					Name string `json:"name"`
				} `json:"nodeClassRef"`
			} `json:"spec"`
		} `json:"template"`
		Disruption struct {
			Budgets []any `json:"budgets"`
		} `json:"disruption"`
	} `json:"spec"`
}

type ec2NodeClass struct {
	header `json:",inline"`
}

type prometheusRule struct {
	header `json:",inline"`
	Spec   ruleFile `json:"spec"`
}

// ofOthers gives a new object of a kind that is none of Kubernetes'.
var ofOthers = map[string]func() any{
	"keda.sh/v1alpha1, Kind=ScaledObject":           func() any { return &scaledObject{} },
	"keda.sh/v1alpha1, Kind=TriggerAuthentication":  func() any { return &triggerAuthentication{} },
	"karpenter.sh/v1, Kind=NodePool":                func() any { return &nodePool{} },
	"karpenter.k8s.aws/v1, Kind=EC2NodeClass":       func() any { return &ec2NodeClass{} },
	"monitoring.coreos.com/v1, Kind=PrometheusRule": func() any { return &prometheusRule{} },
}
