package claims

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// Unprepare gives back all that a claim holds. A claim that is not known is
// released already. After an error the claim stays recorded as releasing and
// the call can be repeated.
func (e *Engine) Unprepare(ctx context.Context, uid string) error {
	unlock, err := e.journal.LockClaim(ctx, uid)
	if err != nil {
		return err
	}
	defer unlock()
	return e.unprepare(ctx, uid)
}

// unprepare is Unprepare under the claim's lock.
func (e *Engine) unprepare(ctx context.Context, uid string) error {
	record, err := e.record(uid)
	if err != nil {
		return err
	}
	if record == nil {
		record = &journal.Claim{UID: uid}
	}
	// A record that was lost leaves those of its instances.
	owned, err := e.owned(uid)
	if err != nil {
		return err
	}
	unlock, err := e.lockGPUs(ctx, record.Devices, owned)
	if err != nil {
		return err
	}
	defer unlock()
	// What was ever in doubt is destroyed: only an instance that was prepared to its end can be kept.
	giveBack := e.destroy
	if record.State == journal.ClaimPrepared {
		giveBack = func(ctx context.Context, i *journal.Instance) error {
			kept, err := e.keep(ctx, i, record.Namespace)
			if err != nil || kept {
				return err
			}
			return e.destroy(ctx, i)
		}
	}
	if record.State != "" && record.State != journal.ClaimReleasing {
		record.State = journal.ClaimReleasing
		if err := e.journal.PutClaim(record); err != nil {
			return err
		}
	}
	if err := e.release(ctx, uid, owned, giveBack); err != nil {
		err = fmt.Errorf("release claim %s/%s (%s): %w", record.Namespace, record.Name, uid, err)
		return e.blocked(ctx, record, err)
	}
	return nil
}

// release removes the CDI spec first, so that no container starts with what is
// about to go, then the instances and time slices, then the record. It can be
// repeated at will. The locks of the claim and of the GPUs of its instances are held.
func (e *Engine) release(ctx context.Context, uid string, owned []*journal.Instance, giveBack func(context.Context, *journal.Instance) error) error {
	if err := e.specs.Remove(uid); err != nil {
		return err
	}
	var errs []error
	for _, i := range owned {
		errs = append(errs, giveBack(ctx, i))
	}
	errs = append(errs, e.restoreTime(ctx, uid))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return e.journal.DeleteClaim(uid)
}

// owned are the records of the instances that were made for a claim.
func (e *Engine) owned(uid string) ([]*journal.Instance, error) {
	return readable(e.journal.InstancesOf(uid))
}

// ownedOn are those of them on the GPUs of some devices.
func (e *Engine) ownedOn(uid string, devices []journal.ClaimDevice) ([]*journal.Instance, error) {
	var all []*journal.Instance
	uuids := gpusOf(devices)
	slices.Sort(uuids)
	for _, uuid := range slices.Compact(uuids) {
		on, err := readable(e.journal.InstancesOn(uuid))
		if err != nil {
			return nil, err
		}
		all = append(all, slices.DeleteFunc(on, func(i *journal.Instance) bool { return i.Claim != uid })...)
	}
	return all, nil
}

// destroy destroys the instance of a record, if it is still the one that was
// recorded, and deletes the record.
func (e *Engine) destroy(ctx context.Context, record *journal.Instance) error {
	board, err := e.hardware.GPU(ctx, record.Instance.GPU)
	if err != nil {
		return err
	}
	found, ok := board.InstanceAt(record.Instance.Profile, record.Instance.Placement)
	if ok && isRecorded(found, record) {
		record.State = journal.InstanceReleasing
		if err := e.journal.PutInstance(record); err != nil {
			return err
		}
		if err := e.destroyFound(ctx, found); err != nil {
			return err
		}
	}
	return e.journal.DeleteInstance(record.Instance)
}

// isRecorded reports whether an instance at the record's place is the record's.
// A crash can come between a creation and its record, so ids that are not yet
// recorded match any; ids that are recorded must match exactly.
func isRecorded(found gpu.Instance, record *journal.Instance) bool {
	if !record.Identified {
		return true
	}
	if len(record.Instance.Compute) == 0 {
		return found.ID == record.Instance.ID
	}
	// A destroy that was cut off leaves the GPU instance without its compute instance.
	bare := record.Instance
	bare.Compute = nil
	return found.Same(record.Instance) || found.Same(bare)
}

func (e *Engine) destroyFound(ctx context.Context, i gpu.Instance) error {
	for len(i.Compute) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		left, err := e.hardware.DestroyComputeInstance(ctx, i)
		if err != nil {
			return e.namingHolders(ctx, i, err)
		}
		i = left
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := e.hardware.DestroyGPUInstance(ctx, i); err != nil {
		return e.namingHolders(ctx, i, err)
	}
	return nil
}

// namingHolders adds to an error of a destroy who is in the way, where that can be seen.
func (e *Engine) namingHolders(ctx context.Context, i gpu.Instance, err error) error {
	err = fmt.Errorf("destroy %s: %w", &i, err)
	if !errors.Is(err, gpu.ErrInUse) {
		return err
	}
	processes, listErr := e.hardware.Processes(ctx, i.GPU)
	if listErr != nil || len(processes) == 0 {
		return fmt.Errorf("%w (no process is to be seen: another client of the driver, such as a monitoring agent, may hold it)", err)
	}
	return fmt.Errorf("%w (processes on the GPU: %v)", err, processes)
}
