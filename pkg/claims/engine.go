// Package claims is the engine that prepares and releases claims on a node:
// Prepare, Unprepare and Recover. It decides in which order hardware, journal
// and CDI specs are touched, so that a claim is never half done. It speaks no
// gRPC and lists no API objects.
//
// The order of locks is: the claim, then its GPUs by UUID. Under them journal
// and hardware are read anew, because another process may share the node.
package claims

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

const (
	// undoTimeout bounds what a call still does after it has failed or was cancelled.
	undoTimeout = 10 * time.Second
	// recoverTimeout bounds what recovery waits for one claim or board, so that
	// a driver that does not answer for a board keeps nobody from the others.
	recoverTimeout = 20 * time.Second
)

// Hardware is what the engine asks of the boards. Errors wrap those of package
// gpu. A destroy verifies the whole identity first and destroys nothing else.
type Hardware interface {
	TimeSlicer
	GPU(ctx context.Context, uuid string) (gpu.GPU, error)
	CreateGPUInstance(ctx context.Context, uuid, profile string, at gpu.Placement) (gpu.Instance, error)
	CreateComputeInstance(ctx context.Context, i gpu.Instance) (gpu.Instance, error)
	DestroyComputeInstance(ctx context.Context, i gpu.Instance) (gpu.Instance, error)
	DestroyGPUInstance(ctx context.Context, i gpu.Instance) error
	SetMIGMode(ctx context.Context, uuid string, on bool) error
	Processes(ctx context.Context, uuid string) ([]gpu.Process, error)
}

// Journal is where the engine writes what it is about to do. See package journal.
type Journal interface {
	LockClaim(ctx context.Context, uid string) (unlock func(), err error)
	TryLockClaim(uid string) (unlock func(), err error)
	LockGPUs(ctx context.Context, uuids ...string) (unlock func(), err error)

	Claim(uid string) (*journal.Claim, error)
	Claims() ([]*journal.Claim, error)
	PutClaim(c *journal.Claim) error
	DeleteClaim(uid string) error

	Instance(at gpu.Instance) (*journal.Instance, error)
	Instances() ([]*journal.Instance, error)
	InstancesOn(gpu string) ([]*journal.Instance, error)
	InstancesOf(claimUID string) ([]*journal.Instance, error)
	PutInstance(i *journal.Instance) error
	DeleteInstance(at gpu.Instance) error
}

// Specs writes what the container runtime reads. See package cdispec.
type Specs interface {
	// Write keeps the note in the spec, and Note returns it, or an error that is fs.ErrNotExist.
	Write(ctx context.Context, claimUID, note string, devices []cdispec.Device) (map[string]string, error)
	Note(claimUID string) (string, error)
	Exists(claimUID string) (bool, error)
	Remove(claimUID string) error
	Claims() ([]string, error)
	Invalidate()
}

// Engine prepares and releases claims. Its methods may be called concurrently.
type Engine struct {
	hardware Hardware
	journal  Journal
	specs    Specs
	policy   Policy
	unwell   Unwell
	now      func() time.Time
}

// New makes an engine. It touches nothing.
func New(hardware Hardware, j Journal, specs Specs, policy Policy, unwell Unwell) *Engine {
	return &Engine{hardware: hardware, journal: j, specs: specs, policy: policy, unwell: unwell, now: time.Now}
}

// Claim is a claim with the devices of this driver and node that it was allocated.
type Claim struct {
	UID, Namespace, Name string
	// Devices are the allocation's results; their Instance is not set.
	Devices []journal.ClaimDevice
}

// Prepared is a device that a container can be given.
type Prepared struct {
	journal.ClaimDevice
	// CDI is the fully qualified CDI device id.
	CDI string
}

// CollisionError says that a device can't be had because something else is there.
type CollisionError struct {
	Wanted gpu.Device
	// Holder names what is in the way: a claim or a foreign instance.
	Holder string
	// Foreign is true where it is an instance that kerf did not make: no claim's end will make room.
	Foreign bool
}

func (e *CollisionError) Error() string {
	return fmt.Sprintf("%s is not free: %s is in the way", e.Wanted, e.Holder)
}

// collision is the error for a device that collides with another, which the holder's text names.
func collision(wanted, held gpu.Device, holder string) *CollisionError {
	if !wanted.Overlaps(held) {
		holder += ", which has the GPU's only media engines,"
	}
	return &CollisionError{Wanted: wanted, Holder: holder}
}

// gpusOf are the UUIDs of the GPUs that a claim's devices are on.
func gpusOf(devices []journal.ClaimDevice) []string {
	uuids := make([]string, len(devices))
	for i, d := range devices {
		uuids[i] = d.Device.GPU
	}
	return uuids
}

// lockGPUs takes the locks of the GPUs of a claim's devices and of its
// instances. The claim's own lock is held already.
func (e *Engine) lockGPUs(ctx context.Context, devices []journal.ClaimDevice, instances []*journal.Instance) (func(), error) {
	uuids := gpusOf(devices)
	for _, i := range instances {
		uuids = append(uuids, i.Instance.GPU)
	}
	return e.journal.LockGPUs(ctx, uuids...)
}

// readable drops the error of records that did not parse: they have been moved
// aside and concern other claims, which recovery looks after.
func readable[T any](records []T, err error) ([]T, error) {
	var corrupt *journal.CorruptError
	if err != nil && !errors.As(err, &corrupt) {
		return nil, err
	}
	return records, nil
}

// specDevices pairs a claim's devices with the boards that they are on.
func (e *Engine) specDevices(ctx context.Context, devices []journal.ClaimDevice) ([]cdispec.Device, error) {
	boards := map[string]gpu.GPU{}
	all := make([]cdispec.Device, len(devices))
	for i, d := range devices {
		board, ok := boards[d.Device.GPU]
		if !ok {
			var err error
			// Read anew, because a change of the MIG mode can change the minor number.
			if board, err = e.hardware.GPU(ctx, d.Device.GPU); err != nil {
				return nil, err
			}
			boards[d.Device.GPU] = board
		}
		all[i] = cdispec.Device{Name: d.Name, Request: d.Request, GPU: board, Device: d.Device, Instance: d.Instance}
	}
	return all, nil
}
