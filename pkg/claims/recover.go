package claims

import (
	"context"
	"errors"
	"fmt"

	"github.com/kerf-project/kerf/pkg/journal"
)

// Recover brings what a killed process left behind to a safe end: it undoes
// what was begun, goes on with what was being released, and restores specs that
// were lost. To be called at start and from time to time. A claim whose lock is
// held is alive and left alone. One claim's error does not keep it from the others.
func (e *Engine) Recover(ctx context.Context) error {
	claims, err := e.journal.Claims()
	errs := []error{err}
	for _, c := range claims {
		errs = append(errs, e.underLock(c.UID, func() error { return e.recoverClaim(ctx, c.UID) }))
	}
	// An instance or a spec whose claim has no record has nobody else to look after it.
	instances, err := e.journal.Instances()
	errs = append(errs, err)
	var orphans []string
	for _, i := range instances {
		if i.Claim != "" {
			orphans = append(orphans, i.Claim)
		}
	}
	specs, err := e.specs.Claims()
	errs = append(errs, err)
	for _, uid := range append(orphans, specs...) {
		errs = append(errs, e.underLock(uid, func() error {
			if _, err := e.journal.Claim(uid); !errors.Is(err, journal.ErrNotFound) {
				return err
			}
			return e.unprepare(ctx, uid)
		}))
	}
	return errors.Join(errs...)
}

func (e *Engine) underLock(uid string, do func() error) error {
	unlock, err := e.journal.TryLockClaim(uid)
	if errors.Is(err, journal.ErrLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return do()
}

func (e *Engine) recoverClaim(ctx context.Context, uid string) error {
	// Read anew: the claim can have moved on since it was listed.
	c, err := e.journal.Claim(uid)
	if errors.Is(err, journal.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
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
