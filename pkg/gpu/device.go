package gpu

import (
	"fmt"
	"slices"
	"strings"
)

// MaxReplicas is the largest number of time-slice replicas of a GPU. The
// scheduler's search grows with the devices of a node: sixteen replicas make
// that of a full node 2.3 times slower, for pods that would each get a
// sixteenth of the time.
const MaxReplicas = 8

// DeviceType says what a device is made of.
type DeviceType string

// The device types, as the attribute "type" publishes them.
const (
	TypeGPU       DeviceType = "gpu"
	TypeMIG       DeviceType = "mig"
	TypeTimeSlice DeviceType = "timeslice"
)

// Device is what a claim can be given: a whole GPU, a MIG placement or a time-slice replica.
type Device struct {
	Type DeviceType `json:"type"`
	// GPU is the UUID of the board.
	GPU string `json:"gpu"`
	// Profile and Placement are set for TypeMIG only.
	Profile   string    `json:"profile,omitempty"`
	Placement Placement `json:"placement,omitzero"`
	// Replica, from 0, is meaningful for TypeTimeSlice only.
	Replica int `json:"replica,omitempty"`
}

// Overlaps reports whether the two cannot be in use at once.
func (d Device) Overlaps(o Device) bool {
	switch {
	case d.GPU != o.GPU:
		return false
	case d.Type == TypeTimeSlice && o.Type == TypeTimeSlice:
		return d.Replica == o.Replica
	case d.Type == TypeMIG && o.Type == TypeMIG:
		return d.Placement.Overlaps(o.Placement)
	default:
		return true
	}
}

// String names the device for people: it is not the published name.
func (d Device) String() string {
	switch d.Type {
	case TypeMIG:
		return fmt.Sprintf("MIG %s at %s of %s", d.Profile, d.Placement, d.GPU)
	case TypeTimeSlice:
		return fmt.Sprintf("time-slice replica %d of %s", d.Replica, d.GPU)
	default:
		return d.GPU
	}
}

// Names gives devices the names under which they are published. They derive
// from the board's UUID, so they are stable over reboots. Nothing parses them.
type Names struct {
	short map[string]string
}

// NewNames makes the names for the boards of a node. A name starts with the
// first 8 digits of the UUID, or as many more as tell the boards apart.
func NewNames(uuids []string) Names {
	digits := make(map[string]string, len(uuids))
	for _, u := range uuids {
		digits[u] = strings.ToLower(strings.TrimPrefix(u, "GPU-"))
	}
	names := Names{short: make(map[string]string, len(uuids))}
	for _, u := range uuids {
		n := min(8, len(digits[u]))
		for n < len(digits[u]) && slices.ContainsFunc(uuids, func(o string) bool { return o != u && strings.HasPrefix(digits[o], digits[u][:n]) }) {
			n++
		}
		names.short[u] = "gpu-" + strings.TrimRight(digits[u][:n], "-")
	}
	return names
}

// GPU is the name of the board itself and the first part of its devices' names.
func (n Names) GPU(uuid string) string { return n.short[uuid] }

// Device is the name of a device: "gpu-3f2a91c4", "gpu-3f2a91c4-mig-1g10gb-4", "gpu-3f2a91c4-timeslice-2".
func (n Names) Device(d Device) string {
	switch d.Type {
	case TypeMIG:
		profile := strings.NewReplacer(".", "", "+", "-").Replace(d.Profile)
		return fmt.Sprintf("%s-mig-%s-%d", n.GPU(d.GPU), profile, d.Placement.Start)
	case TypeTimeSlice:
		return fmt.Sprintf("%s-timeslice-%d", n.GPU(d.GPU), d.Replica)
	default:
		return n.GPU(d.GPU)
	}
}

// Catalogue maps the published name of every device that the boards could
// possibly offer, under whatever configuration, to the device. A claim that was
// allocated before a change of configuration is still understood.
func Catalogue(gpus []GPU) map[string]Device {
	uuids := make([]string, len(gpus))
	for i, g := range gpus {
		uuids[i] = g.UUID
	}
	names := NewNames(uuids)
	all := map[string]Device{}
	add := func(d Device) { all[names.Device(d)] = d }
	for _, g := range gpus {
		add(Device{Type: TypeGPU, GPU: g.UUID})
		for _, p := range AllPlaced(g.Profiles) {
			add(Device{Type: TypeMIG, GPU: g.UUID, Profile: p.Profile.Name, Placement: p.Placement})
		}
		for r := range MaxReplicas {
			add(Device{Type: TypeTimeSlice, GPU: g.UUID, Replica: r})
		}
	}
	return all
}
