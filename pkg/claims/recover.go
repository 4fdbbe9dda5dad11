package claims

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/kerf-project/kerf/pkg/journal"
)

// Recover brings what a killed process left behind to a safe end: it undoes
// what was begun, goes on with what was being released, restores specs that were
// lost, and lets idle instances expire. To be called at start and from time to
// time. A claim whose lock is held is alive and left alone. One claim's error does
// not keep it from the others.
func (e *Engine) Recover(ctx context.Context) error {
	uids := map[string]bool{}
	claims, err := e.journal.Claims()
	errs := []error{err}
	for _, c := range claims {
		uids[c.UID] = true
	}
	instances, err := e.journal.Instances()
	errs = append(errs, err)
	for _, i := range instances {
		if i.Claim != "" {
			uids[i.Claim] = true
		}
	}
	specs, err := e.specs.Claims()
	errs = append(errs, err)
	for _, uid := range specs {
		uids[uid] = true
	}
	for _, uid := range slices.Sorted(maps.Keys(uids)) {
		errs = append(errs, e.underLock(ctx, uid, func(ctx context.Context) error { return e.recoverClaim(ctx, uid) }))
	}
	return errors.Join(append(errs, e.expire(ctx, false))...)
}

// record reads a claim's record, or nil where there is none. One that was lost
// or damaged is written again from the copy in the claim's CDI spec, which is
// there from the moment when the claim is prepared until it is released; so are
// the records of the instances that were made for it.
func (e *Engine) record(uid string) (*journal.Claim, error) {
	c, err := e.journal.Claim(uid)
	var corrupt *journal.CorruptError
	if errors.Is(err, journal.ErrNotFound) || errors.As(err, &corrupt) {
		c, err = e.rewrite(uid)
	}
	if err != nil || c == nil || c.State != journal.ClaimPrepared {
		return c, err
	}
	for _, d := range c.Devices {
		if !d.Made {
			continue
		}
		if _, err := e.journal.Instance(*d.Instance); err == nil {
			continue
		} else if !errors.Is(err, journal.ErrNotFound) && !errors.As(err, &corrupt) {
			return nil, err
		}
		again := &journal.Instance{State: journal.InstanceClaimed, Claim: uid, Identified: true, Instance: *d.Instance}
		if err := e.journal.PutInstance(again); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (e *Engine) rewrite(uid string) (*journal.Claim, error) {
	note, err := e.specs.Note(uid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c, err := journal.ParseClaim(uid, []byte(note))
	if err != nil {
		// Not ours, or damaged as well: what is known of the claim is gone.
		return nil, nil //nolint:nilerr // the caller goes on without a record
	}
	return c, e.journal.PutClaim(c)
}

// bounded gives one claim or board its share of patience.
func (e *Engine) bounded(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	return do(ctx)
}

func (e *Engine) underLock(ctx context.Context, uid string, do func(context.Context) error) error {
	unlock, err := e.journal.TryLockClaim(uid)
	if errors.Is(err, journal.ErrLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return e.bounded(ctx, do)
}

func (e *Engine) recoverClaim(ctx context.Context, uid string) error {
	// Read anew: the claim can have moved on since it was listed.
	c, err := e.record(uid)
	if err != nil {
		return err
	}
	if c == nil {
		// An instance or a spec whose claim has no record has nobody else to look after it.
		return e.unprepare(ctx, uid)
	}
	switch c.State {
	case journal.ClaimIntent, journal.ClaimReleasing:
		return e.unprepare(ctx, uid)
	case journal.ClaimLost:
		return nil
	}
	unlock, err := e.lockGPUs(ctx, c.Devices, nil)
	if err != nil {
		return err
	}
	defer unlock()
	exists, err := e.specs.Exists(uid)
	if err != nil {
		return err
	}
	err = e.verify(ctx, c)
	switch {
	case errors.Is(err, errMissing):
		// Another one is never made behind the back of a running container.
		c.State = journal.ClaimLost
		return errors.Join(fmt.Errorf("claim %s/%s is lost: %w", c.Namespace, c.Name, err), e.journal.PutClaim(c), e.specs.Remove(uid))
	case err != nil || exists:
		return err
	}
	_, err = e.again(ctx, c)
	return err
}
