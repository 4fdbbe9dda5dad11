package claims

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// Prepare makes the claim's devices ready and returns them in the order of the
// claim. Calling it again for a prepared claim verifies and returns the same.
// On an error everything that the call did is undone; what could not be undone
// stays recorded for Recover.
func (e *Engine) Prepare(ctx context.Context, c Claim) ([]Prepared, error) {
	unlock, err := e.journal.LockClaim(ctx, c.UID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	unlockGPUs, err := e.lockGPUs(ctx, c.Devices, nil)
	if err != nil {
		return nil, err
	}
	defer unlockGPUs()

	record, err := e.record(c.UID)
	if err != nil {
		return nil, err
	}
	// Of what an earlier call of this claim left, what lies on other GPUs, because it
	// was allocated anew and its record was lost, goes with its release or with Recover.
	left, err := e.ownedOn(c.UID, c.Devices)
	if err != nil {
		return nil, err
	}
	switch {
	case record == nil:
		// New, or as good as new: its instances have records of their own.
	case !sameDevices(record.Devices, c.Devices):
		// Its GPUs may be others than those locked here, so leave it to its release.
		return nil, fmt.Errorf("claim %s/%s is recorded with other devices than it is allocated now: it has to be released first", c.Namespace, c.Name)
	case record.State == journal.ClaimPrepared:
		return e.again(ctx, record)
	case record.State == journal.ClaimLost:
		return nil, fmt.Errorf("an instance of claim %s/%s vanished while it was in use: delete the pod and the claim, so that another is allocated", c.Namespace, c.Name)
	}
	// Whatever an earlier call of this claim left behind goes first.
	if record != nil || len(left) > 0 {
		if err := e.release(ctx, c.UID, left, e.destroy); err != nil {
			return nil, fmt.Errorf("undo what an earlier call left of claim %s/%s: %w", c.Namespace, c.Name, err)
		}
	}

	record = &journal.Claim{UID: c.UID, Namespace: c.Namespace, Name: c.Name, State: journal.ClaimIntent, Devices: slices.Clone(c.Devices)}
	if err := e.checkFree(ctx, record); err != nil {
		return nil, err
	}
	ready, err := e.realize(ctx, record)
	if err == nil {
		return ready, nil
	}
	// The call may be over; its undo must still run.
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	left, undoErr := e.ownedOn(c.UID, c.Devices)
	if undoErr == nil {
		undoErr = e.release(undo, c.UID, left, e.destroy)
	}
	if undoErr != nil {
		err = errors.Join(err, fmt.Errorf("and undoing it failed, it will be tried again: %w", undoErr))
	}
	return nil, err
}

// sameDevices reports whether the two name the same devices for the same requests.
func sameDevices(a, b []journal.ClaimDevice) bool {
	return slices.EqualFunc(a, b, func(x, y journal.ClaimDevice) bool {
		return x.Request == y.Request && x.Pool == y.Pool && x.Name == y.Name && x.ShareID == y.ShareID && x.Device == y.Device
	})
}

// again answers for a claim that is prepared already, after a look at the hardware.
func (e *Engine) again(ctx context.Context, record *journal.Claim) ([]Prepared, error) {
	if err := e.verify(ctx, record); err != nil {
		return nil, err
	}
	// Written again in any case: it costs little, and a spec that was lost or cut off is whole again.
	return e.writeSpec(ctx, record)
}

// writeSpec writes the CDI spec of a prepared claim, with a copy of its record.
func (e *Engine) writeSpec(ctx context.Context, record *journal.Claim) ([]Prepared, error) {
	devices, err := e.specDevices(ctx, record.Devices)
	if err != nil {
		return nil, err
	}
	note, err := json.Marshal(record)
	if err != nil {
		return nil, err
	}
	ids, err := e.specs.Write(ctx, record.UID, string(note), devices)
	if err != nil {
		return nil, err
	}
	all := make([]Prepared, len(record.Devices))
	for i, d := range record.Devices {
		all[i] = Prepared{ClaimDevice: d, CDI: ids[d.Name]}
	}
	return all, nil
}

// errMissing is what verify wraps for an instance that is no longer what was prepared.
var errMissing = errors.New("the instance is gone")

// verify compares the instances of a prepared claim with the hardware.
func (e *Engine) verify(ctx context.Context, record *journal.Claim) error {
	for _, d := range record.Devices {
		board, err := e.hardware.GPU(ctx, d.Device.GPU)
		if err != nil {
			return err
		}
		if d.Instance == nil {
			continue
		}
		if found, ok := board.InstanceAt(d.Instance.Profile, d.Instance.Placement); !ok || !found.Same(*d.Instance) {
			return fmt.Errorf("device %s of claim %s/%s: %s: %w", d.Name, record.Namespace, record.Name, d.Instance, errMissing)
		}
	}
	return nil
}

// checkFree compares the devices, by what they cover and not by name, with those
// of all other claims, and with one another: the scheduler gives nobody two that
// collide, but the status of a claim can be written by others as well.
func (e *Engine) checkFree(ctx context.Context, record *journal.Claim) error {
	others, err := readable(e.journal.Claims())
	if err != nil {
		return err
	}
	type holder struct {
		device gpu.Device
		claim  string
	}
	taken := map[string][]holder{} // by GPU
	for _, o := range others {
		for _, d := range o.Devices {
			if o.UID != record.UID && !d.AdminAccess {
				taken[d.Device.GPU] = append(taken[d.Device.GPU], holder{d.Device, fmt.Sprintf("claim %s/%s (%s)", o.Namespace, o.Name, o.State)})
			}
		}
	}
	for _, wanted := range record.Devices {
		d := wanted.Device
		if wanted.AdminAccess {
			continue
		}
		if len(taken[d.GPU]) > 0 {
			board, err := e.hardware.GPU(ctx, d.GPU)
			if err != nil {
				return err
			}
			for _, h := range taken[d.GPU] {
				if board.Collide(h.device, d) {
					return collision(d, h.device, fmt.Sprintf("%s of %s", h.device, h.claim))
				}
			}
		}
		taken[d.GPU] = append(taken[d.GPU], holder{d, "the claim itself"})
	}
	return nil
}

// realize takes a claim from intent to prepared. The caller undoes it on an error.
func (e *Engine) realize(ctx context.Context, record *journal.Claim) ([]Prepared, error) {
	if err := e.journal.PutClaim(record); err != nil {
		return nil, err
	}
	for i := range record.Devices {
		d := &record.Devices[i]
		if d.AdminAccess {
			if err := e.look(ctx, d); err != nil {
				return nil, fmt.Errorf("device %s: %w", d.Name, err)
			}
			continue
		}
		board, err := e.mode(ctx, record.UID, d.Device)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Name, err)
		}
		if d.Device.Type != gpu.TypeMIG {
			if err := e.shareTime(ctx, record, i, board); err != nil {
				return nil, fmt.Errorf("device %s: %w", d.Name, err)
			}
			continue
		}
		instance, made, err := e.instance(ctx, record, board, d.Device)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Name, err)
		}
		d.Instance, d.Made = &instance, made
	}
	record.State, record.PreparedAt = journal.ClaimPrepared, e.now()
	if err := e.journal.PutClaim(record); err != nil {
		return nil, err
	}
	return e.writeSpec(ctx, record)
}

// look finds what admin access to a device shows: what is there, whoever made it. It changes nothing.
func (e *Engine) look(ctx context.Context, d *journal.ClaimDevice) error {
	if d.Device.Type != gpu.TypeMIG {
		return nil
	}
	board, err := e.hardware.GPU(ctx, d.Device.GPU)
	if err != nil {
		return err
	}
	found, ok := board.InstanceAt(d.Device.Profile, d.Device.Placement)
	if !ok || !found.Usable() {
		return fmt.Errorf("admin access to %s: there is no such instance now, and admin access creates none: %w", d.Device, gpu.ErrNotFound)
	}
	d.Instance = &found
	return nil
}

// mode gives the board the MIG mode that a device needs, if nobody is on it,
// and returns the board as it is then. A mode is not turned back when the claim
// fails or ends: the next claim turns it as it needs it.
func (e *Engine) mode(ctx context.Context, claim string, d gpu.Device) (gpu.GPU, error) {
	board, err := e.hardware.GPU(ctx, d.GPU)
	if err != nil {
		return gpu.GPU{}, err
	}
	need := d.Type == gpu.TypeMIG
	if board.MIG.Current == need {
		return board, nil
	}
	if !board.MIG.Capable {
		return gpu.GPU{}, fmt.Errorf("%s has no MIG: %w", d.GPU, gpu.ErrNotSupported)
	}
	if board.ToggleNeedsReset {
		return gpu.GPU{}, fmt.Errorf("%s has to change its MIG mode for %s, which takes effect only with a reset: drain the node and reset the GPU: %w", d.GPU, d, gpu.ErrResetRequired)
	}
	evicted, err := e.evict(ctx, board, func(gpu.Device) bool { return true })
	if err == nil && evicted {
		board, err = e.hardware.GPU(ctx, d.GPU)
	}
	if err != nil {
		return gpu.GPU{}, fmt.Errorf("the MIG mode of %s cannot be changed for %s: %w", d.GPU, d, err)
	}
	if err := e.idle(ctx, claim, board); err != nil {
		return gpu.GPU{}, fmt.Errorf("the MIG mode of %s cannot be changed for %s: %w", d.GPU, d, err)
	}
	if err := ctx.Err(); err != nil {
		return gpu.GPU{}, err
	}
	err = e.hardware.SetMIGMode(ctx, d.GPU, need)
	e.specs.Invalidate()
	if errors.Is(err, gpu.ErrInUse) {
		// Who was to be seen has been named before.
		return gpu.GPU{}, fmt.Errorf("change the MIG mode of %s: %w (no process is to be seen on it: a monitoring agent such as DCGM or, during an update, the other plugin of this node has it open; it is tried again, and kerf diagnose says who it is)", d.GPU, err)
	}
	if err != nil {
		return gpu.GPU{}, fmt.Errorf("change the MIG mode of %s: %w", d.GPU, err)
	}
	return e.hardware.GPU(ctx, d.GPU)
}

// idle returns an error that names who is on the board, other than the claim itself.
func (e *Engine) idle(ctx context.Context, claim string, board gpu.GPU) error {
	claims, err := readable(e.journal.Claims())
	if err != nil {
		return err
	}
	for _, o := range claims {
		holds := func(d journal.ClaimDevice) bool { return d.Device.GPU == board.UUID && !d.AdminAccess }
		if o.UID != claim && slices.ContainsFunc(o.Devices, holds) {
			return fmt.Errorf("claim %s/%s is on it: %w", o.Namespace, o.Name, gpu.ErrInUse)
		}
	}
	if len(board.Instances) > 0 {
		return fmt.Errorf("it holds %s: %w", &board.Instances[0], gpu.ErrInUse)
	}
	processes, err := e.hardware.Processes(ctx, board.UUID)
	if err != nil {
		return err
	}
	if len(processes) > 0 {
		return fmt.Errorf("it is held by %v: %w", processes, gpu.ErrInUse)
	}
	return nil
}

// instance finds or makes the instance of a MIG device: an idle one, a foreign
// one that is exactly it, or a new one. It also reports whether kerf made it.
func (e *Engine) instance(ctx context.Context, c *journal.Claim, board gpu.GPU, d gpu.Device) (gpu.Instance, bool, error) {
	if idle, err := e.reuse(ctx, c, board, d); err != nil || idle != nil {
		if err != nil {
			return gpu.Instance{}, false, err
		}
		return idle.Instance, true, nil
	}
	evicted, err := e.evict(ctx, board, func(held gpu.Device) bool { return board.Collide(held, d) })
	if err == nil && evicted {
		board, err = e.hardware.GPU(ctx, d.GPU)
	}
	if err != nil {
		return gpu.Instance{}, false, err
	}
	if found, ok := board.InstanceAt(d.Profile, d.Placement); ok {
		// Ours would have a record, and checkFree, release or reuse would have met it.
		if !found.Usable() {
			return gpu.Instance{}, false, &CollisionError{Wanted: d, Foreign: true, Holder: fmt.Sprintf("the foreign %s, which has not exactly one compute instance over all of it,", &found)}
		}
		return found, false, nil
	}
	if blocker, ok := board.Blocker(d); ok {
		err := collision(d, blocker.Device(), fmt.Sprintf("the foreign %s", &blocker))
		err.Foreign = true
		return gpu.Instance{}, false, err
	}
	made, err := e.create(ctx, c.UID, d)
	return made, true, err
}

// create makes the instance of a device whose place is free.
func (e *Engine) create(ctx context.Context, claim string, d gpu.Device) (gpu.Instance, error) {
	// From here on an instance at this place is taken for ours: it was verified
	// to be free, under the lock, just before this record.
	record := &journal.Instance{State: journal.InstanceClaimed, Claim: claim, Instance: gpu.Instance{GPU: d.GPU, Profile: d.Profile, Placement: d.Placement}}
	if err := e.journal.PutInstance(record); err != nil {
		return gpu.Instance{}, err
	}
	for _, step := range []func() (gpu.Instance, error){
		func() (gpu.Instance, error) {
			return e.hardware.CreateGPUInstance(ctx, d.GPU, d.Profile, d.Placement)
		},
		func() (gpu.Instance, error) { return e.hardware.CreateComputeInstance(ctx, record.Instance) },
	} {
		// A call that is over changes nothing more.
		if err := ctx.Err(); err != nil {
			return gpu.Instance{}, err
		}
		made, err := step()
		if err != nil {
			return gpu.Instance{}, err
		}
		record.Instance, record.Identified = made, true
		if err := e.journal.PutInstance(record); err != nil {
			return gpu.Instance{}, err
		}
	}
	return record.Instance, nil
}
