package gpu

import "time"

// Condition is something wrong with devices, and what it does to their users.
type Condition struct {
	// Device narrows the condition. With an empty Type it concerns the whole
	// GPU and everything on it; with TypeMIG and a Size, every device that overlaps the placement.
	Device Device `json:"device"`
	// Reason is a CamelCase word: "GPULost", "Xid79", "Releasing".
	Reason string `json:"reason"`
	// Message says what happened and what to do, for people.
	Message string `json:"message,omitempty"`
	Effect  Effect `json:"effect"`
	// Since is when it began.
	Since time.Time `json:"since"`
}

// Effect is what a condition does, in the words of Kubernetes' taints.
type Effect string

// The effects, from mild to severe.
const (
	EffectNone       Effect = "None"
	EffectNoSchedule Effect = "NoSchedule"
	EffectNoExecute  Effect = "NoExecute"
)

// Concerns reports whether a device is touched by the condition.
func (c Condition) Concerns(d Device) bool {
	if c.Device.Type == "" {
		return c.Device.GPU == d.GPU
	}
	return c.Device.Overlaps(d)
}
