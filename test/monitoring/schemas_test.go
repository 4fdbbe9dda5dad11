package monitoring

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The kinds of others, reduced to the fields that the examples use: a field that is not here fails the strict
// decoding. Sources: KEDA 2.21, Karpenter 1.15 and its provider for AWS, the Prometheus operator.

type header struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
}

type scaledObject struct {
	header `json:",inline"`
	Spec   struct {
		ScaleTargetRef  autoscalingv2.CrossVersionObjectReference `json:"scaleTargetRef"`
		PollingInterval int32                                     `json:"pollingInterval"`
		MinReplicaCount int32                                     `json:"minReplicaCount"`
		MaxReplicaCount int32                                     `json:"maxReplicaCount"`
		Fallback        struct {
			FailureThreshold int32  `json:"failureThreshold"`
			Replicas         int32  `json:"replicas"`
			Behavior         string `json:"behavior"`
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
			Name      string `json:"name"`
			Key       string `json:"key"`
		} `json:"secretTargetRef"`
	} `json:"spec"`
}

type nodePool struct {
	header `json:",inline"`
	Spec   struct {
		Weight   int32 `json:"weight"`
		Template struct {
			Metadata struct {
				Labels map[string]string `json:"labels"`
			} `json:"metadata"`
			Spec struct {
				Requirements []corev1.NodeSelectorRequirement `json:"requirements"`
				NodeClassRef struct {
					Group string `json:"group"`
					Kind  string `json:"kind"`
					Name  string `json:"name"`
				} `json:"nodeClassRef"`
				Taints []corev1.Taint `json:"taints"`
			} `json:"spec"`
		} `json:"template"`
		Limits     corev1.ResourceList `json:"limits"`
		Disruption struct {
			ConsolidationPolicy string          `json:"consolidationPolicy"`
			ConsolidateAfter    metav1.Duration `json:"consolidateAfter"`
			Budgets             []struct {
				Nodes    string          `json:"nodes"`
				Schedule string          `json:"schedule"`
				Duration metav1.Duration `json:"duration"`
			} `json:"budgets"`
		} `json:"disruption"`
	} `json:"spec"`
}

type selectorTerm struct {
	Tags map[string]string `json:"tags"`
}

type ec2NodeClass struct {
	header `json:",inline"`
	Spec   struct {
		Role             string `json:"role"`
		AMISelectorTerms []struct {
			Alias string `json:"alias"`
		} `json:"amiSelectorTerms"`
		SubnetSelectorTerms        []selectorTerm `json:"subnetSelectorTerms"`
		SecurityGroupSelectorTerms []selectorTerm `json:"securityGroupSelectorTerms"`
		BlockDeviceMappings        []struct {
			DeviceName string `json:"deviceName"`
			EBS        struct {
				VolumeSize          string `json:"volumeSize"`
				VolumeType          string `json:"volumeType"`
				IOPS                int64  `json:"iops"`
				Throughput          int64  `json:"throughput"`
				Encrypted           bool   `json:"encrypted"`
				DeleteOnTermination bool   `json:"deleteOnTermination"`
			} `json:"ebs"`
		} `json:"blockDeviceMappings"`
		InstanceStorePolicy string            `json:"instanceStorePolicy"`
		Tags                map[string]string `json:"tags"`
	} `json:"spec"`
}

type endpoint struct {
	Port        string          `json:"port"`
	Path        string          `json:"path"`
	Interval    metav1.Duration `json:"interval"`
	HonorLabels bool            `json:"honorLabels"`
}

type serviceMonitor struct {
	header `json:",inline"`
	Spec   struct {
		Selector          metav1.LabelSelector `json:"selector"`
		NamespaceSelector struct {
			MatchNames []string `json:"matchNames"`
		} `json:"namespaceSelector"`
		Endpoints []endpoint `json:"endpoints"`
	} `json:"spec"`
}

type podMonitor struct {
	header `json:",inline"`
	Spec   struct {
		Selector            metav1.LabelSelector `json:"selector"`
		PodMetricsEndpoints []endpoint           `json:"podMetricsEndpoints"`
	} `json:"spec"`
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
	"monitoring.coreos.com/v1, Kind=ServiceMonitor": func() any { return &serviceMonitor{} },
	"monitoring.coreos.com/v1, Kind=PodMonitor":     func() any { return &podMonitor{} },
	"monitoring.coreos.com/v1, Kind=PrometheusRule": func() any { return &prometheusRule{} },
}
