package claims

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// TimeSlicer sets the time slice of a GPU and makes it admit several processes.
// A GPU in MIG mode has none.
type TimeSlicer interface {
	SetTimeSlice(ctx context.Context, uuid string, slice gpu.TimeSlice) error
}

// TimeSliceNotApplied is the condition of a device whose claim asks for another
// time slice than the one that an earlier user of the GPU has.
const TimeSliceNotApplied = "TimeSliceNotApplied"

// shareTime gives the GPU of a claim's device, a whole one or a replica, its time
// slice. The first user's is set; a later user takes what is there, because
// nothing that is in use changes under its user. The GPU's lock is held.
func (e *Engine) shareTime(ctx context.Context, record *journal.Claim, index int, board gpu.GPU) error {
	d := &record.Devices[index]
	first, err := e.firstUser(record, index)
	if err != nil {
		return err
	}
	if first != nil {
		d.TimeSlice.Set, d.TimeSlice.SetBy = first.Set, first.SetBy
		if wanted := d.TimeSlice.Wanted; wanted != "" && wanted != first.Set {
			d.Conditions = append(slices.Clip(d.Conditions), journal.Condition{Type: TimeSliceNotApplied, Message: fmt.Sprintf(
				"the time slice %s of the parameters is not set: claim %s used GPU %s first, and the slice stays %s until all its users have ended",
				wanted, first.SetBy, board.UUID, cmp.Or(first.Set, "as it was"))})
		}
		return nil
	}
	d.TimeSlice.Set = cmp.Or(d.TimeSlice.Wanted, e.policy(board.ProductName).TimeSlicing.Interval)
	if d.Device.Type == gpu.TypeTimeSlice && d.TimeSlice.Set == "" {
		// An administrator may have left the compute mode such that only one process
		// gets in, and a release that is not finished yet another slice.
		d.TimeSlice.Set = gpu.TimeSliceDefault
	}
	if d.TimeSlice.Set == "" {
		return nil
	}
	// The intent: from here on whoever releases the claim restores the slice.
	if err := e.journal.PutClaim(record); err != nil {
		return err
	}
	// A call that is over changes nothing more.
	if err := ctx.Err(); err != nil {
		return err
	}
	return e.hardware.SetTimeSlice(ctx, board.UUID, d.TimeSlice.Set)
}

// firstUser finds who decided on the time slice that the GPU of a claim's device
// has now, or nil where nobody uses it: another claim, or an earlier device of the same.
func (e *Engine) firstUser(record *journal.Claim, index int) (*journal.TimeSlice, error) {
	uuid := record.Devices[index].Device.GPU
	others, err := e.users(record.UID, uuid)
	if err != nil {
		return nil, err
	}
	self := *record
	self.Devices = record.Devices[:index]
	for _, c := range append(others, &self) {
		for _, d := range c.Devices {
			if d.Device.GPU == uuid && !d.AdminAccess && d.Device.Type != gpu.TypeMIG {
				return &journal.TimeSlice{Set: d.TimeSlice.Set, SetBy: cmp.Or(d.TimeSlice.SetBy, c.Namespace+"/"+c.Name)}, nil
			}
		}
	}
	return nil, nil
}

// users are the claims, other than one, that have containers on a GPU or can get
// them at any time. One that is being prepared or released has none: what it may
// have set is set anew by the next, or restored when its release is finished.
func (e *Engine) users(but, uuid string) ([]*journal.Claim, error) {
	all, err := readable(e.journal.Claims())
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(c *journal.Claim) bool {
		uses := func(d journal.ClaimDevice) bool { return d.Device.GPU == uuid && !d.AdminAccess }
		running := c.State == journal.ClaimPrepared || c.State == journal.ClaimLost
		return c.UID == but || !running || !slices.ContainsFunc(c.Devices, uses)
	}), nil
}

// restoreTime gives back their default time slice to the GPUs of which a claim is
// the last user. The GPUs' locks are held.
func (e *Engine) restoreTime(ctx context.Context, uid string) error {
	record, err := e.journal.Claim(uid)
	if errors.Is(err, journal.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	restored := map[string]bool{}
	for _, d := range record.Devices {
		uuid, set := d.Device.GPU, d.TimeSlice.Set
		if set == "" || set == gpu.TimeSliceDefault || restored[uuid] {
			continue
		}
		restored[uuid] = true
		if err := e.restoreOn(ctx, uid, uuid); err != nil {
			return fmt.Errorf("restore the time slice of %s: %w", uuid, err)
		}
	}
	return nil
}

func (e *Engine) restoreOn(ctx context.Context, uid, uuid string) error {
	others, err := e.users(uid, uuid)
	if err != nil || len(others) > 0 {
		return err
	}
	board, err := e.hardware.GPU(ctx, uuid)
	switch {
	case errors.Is(err, gpu.ErrLost), errors.Is(err, gpu.ErrNotFound):
		// It comes back with a reset, and then with the default.
		return nil
	case err != nil:
		return err
	case board.MIG.Current:
		// In MIG mode a GPU has no time slice, and it has lost the one that it had.
		return nil
	}
	// A call that is over changes nothing more.
	if err := ctx.Err(); err != nil {
		return err
	}
	return e.hardware.SetTimeSlice(ctx, uuid, gpu.TimeSliceDefault)
}
