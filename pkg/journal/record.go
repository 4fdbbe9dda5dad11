// Package journal owns the records of what is intended and owned on a node: one
// file a claim, one file a GPU instance that kerf made, and the locks that the
// processes of a node share. It belongs on a tmpfs, so that it lives exactly as
// long as the instances and CDI specs that it describes; it needs no fsync.
// It knows neither NVML nor Kubernetes.
package journal

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// version is that of the records that this package writes.
const version = 1

// ClaimState is how far a claim's preparation has come.
type ClaimState string

// The states of a claim.
const (
	// ClaimIntent: the hardware may have been touched. Found by itself, it is to be undone.
	ClaimIntent ClaimState = "intent"
	// ClaimPrepared: every device is there and verified.
	ClaimPrepared ClaimState = "prepared"
	// ClaimReleasing: the claim's devices are being given back. It can only go on.
	ClaimReleasing ClaimState = "releasing"
	// ClaimLost: prepared once, and an instance of it is gone. Never made again behind a running container.
	ClaimLost ClaimState = "lost"
)

// Claim is the record of one claim.
type Claim struct {
	Version   int        `json:"version"`
	UID       string     `json:"uid"`
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	State     ClaimState `json:"state"`
	// PreparedAt is set with ClaimPrepared.
	PreparedAt time.Time `json:"preparedAt,omitzero"`
	// Blocked says, in ClaimReleasing, who keeps it from being released although
	// its tenant has gone. Its devices must not be given to anybody.
	Blocked string        `json:"blocked,omitempty"`
	Devices []ClaimDevice `json:"devices"`
}

// ClaimDevice is one allocation result of a claim.
type ClaimDevice struct {
	// Request, Pool and Name are those of the allocation result.
	Request string `json:"request"`
	Pool    string `json:"pool"`
	Name    string `json:"name"`
	// ShareID and ConsumedCapacity are in the allocation and not in the call that releases it.
	ShareID          string            `json:"shareID,omitempty"`
	ConsumedCapacity map[string]string `json:"consumedCapacity,omitempty"`
	// AdminAccess is true for a device that is only looked at: it collides with nothing and owns nothing.
	AdminAccess bool       `json:"adminAccess,omitempty"`
	Device      gpu.Device `json:"device"`
	// Instance is the whole identity of a MIG device, from ClaimPrepared on.
	Instance *gpu.Instance `json:"instance,omitempty"`
	// Made is true where kerf made the instance, so that its record can be
	// written again should it be lost.
	Made bool `json:"made,omitempty"`
	// TimeSlice is that of the GPU, where the device is a whole one or a replica.
	TimeSlice TimeSlice `json:"timeSlice,omitzero"`
	// Conditions are what the device's user should know of it, beyond that it is ready.
	Conditions []Condition `json:"conditions,omitempty"`
}

// TimeSlice is what a claim wants of the time slice of a GPU, and what it has.
type TimeSlice struct {
	// Wanted is what the claim's parameters ask for; empty: nothing.
	Wanted gpu.TimeSlice `json:"wanted,omitempty"`
	// Set is what kerf has set while the claim uses the GPU, in ClaimIntent also what
	// it may be about to set; empty: the GPU was left as it was.
	Set gpu.TimeSlice `json:"set,omitempty"`
	// SetBy names the claim that used the GPU first, where that is another.
	SetBy string `json:"setBy,omitempty"`
}

// Condition is a condition of a device in the status of its claim.
type Condition struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// InstanceState is what an instance that kerf made is there for.
type InstanceState string

// The states of an instance.
const (
	// InstanceClaimed: a claim's, also while it is being created.
	InstanceClaimed InstanceState = "claimed"
	// InstanceIdle: nobody's, kept for the next claim of its shape.
	InstanceIdle InstanceState = "idle"
	// InstanceReleasing: to be destroyed.
	InstanceReleasing InstanceState = "releasing"
)

// Instance is the record of a GPU instance that kerf made or is about to make.
// Only an instance with such a record may be destroyed; every other is foreign.
type Instance struct {
	Version int           `json:"version"`
	State   InstanceState `json:"state"`
	// Claim is the UID of the claim that it is made for, empty when idle.
	Claim string `json:"claim,omitempty"`
	// Namespace is that of the last claim that had it, and IdleSince the end of that.
	Namespace string    `json:"namespace,omitempty"`
	IdleSince time.Time `json:"idleSince,omitzero"`
	// Identified is false between the intent and the moment when the ids are
	// known: GPU, profile and placement of Instance are set, its ids are not.
	Identified bool         `json:"identified"`
	Instance   gpu.Instance `json:"instance"`
}

// ErrNotFound is returned for a record that does not exist.
var ErrNotFound = errors.New("no such record")

// CorruptError is a record that cannot be read. The record has been moved
// aside, so it stops nobody; what it described is to be rebuilt.
type CorruptError struct {
	// Path is where the record was, MovedTo where it is now; empty where it was only looked at.
	Path, MovedTo string
	Err           error
}

func (e *CorruptError) Error() string {
	if e.MovedTo == "" {
		return fmt.Sprintf("record %s does not parse: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("record %s does not parse and was moved to %s: %v", e.Path, e.MovedTo, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// Names reports whether it is the record of that claim.
func (e *CorruptError) Names(uid string) bool {
	return filepath.Base(filepath.Dir(e.Path)) == claimsDir && filepath.Base(e.Path) == uid+suffix
}

func (c *Claim) validate(key string) error {
	switch c.State {
	case ClaimIntent, ClaimPrepared, ClaimReleasing, ClaimLost:
	default:
		return fmt.Errorf("unknown state %q", c.State)
	}
	if c.UID != key {
		return fmt.Errorf("the file's name does not belong to claim %q", c.UID)
	}
	for _, d := range c.Devices {
		if d.Device.GPU == "" {
			return fmt.Errorf("device %q has no GPU", d.Name)
		}
		if err := errors.Join(d.TimeSlice.Wanted.Validate(), d.TimeSlice.Set.Validate()); err != nil {
			return fmt.Errorf("time slice of device %q: %w", d.Name, err)
		}
		if c.State == ClaimPrepared && d.Device.Type == gpu.TypeMIG && d.Instance == nil {
			return fmt.Errorf("prepared device %q has no instance", d.Name)
		}
	}
	return nil
}

func (i *Instance) validate(key string) error {
	switch i.State {
	case InstanceClaimed, InstanceIdle, InstanceReleasing:
	default:
		return fmt.Errorf("unknown state %q", i.State)
	}
	if instanceKey(i.Instance) != key {
		return fmt.Errorf("the file's name does not belong to %s", &i.Instance)
	}
	return nil
}

// instanceKey is unique on a node: no two instances hold the same placement at once.
func instanceKey(i gpu.Instance) string {
	return fmt.Sprintf("%s_%s_%d-%d", i.GPU, i.Profile, i.Placement.Start, i.Placement.Size)
}
