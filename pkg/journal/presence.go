package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// takeOver is how often a process asks whether another has stopped publishing.
const takeOver = 250 * time.Millisecond

// LockPublisher waits until this process is the one of the node that publishes,
// or the context ends.
func (j *Journal) LockPublisher(ctx context.Context) (unlock func(), err error) {
	for {
		unlock, err := j.locks.tryLock("publisher", false)
		if !errors.Is(err, ErrLocked) {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another process to stop publishing: %w", context.Cause(ctx))
		case <-time.After(takeOver):
		}
	}
}

// Presence is the sign of a process that it serves the node. It ends with the process at the latest.
type Presence struct{ file *os.File }

// Enter makes this process one of those that serve the node.
func (j *Journal) Enter() (*Presence, error) {
	f, err := os.OpenFile(filepath.Join(j.locks.dir, "presence"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("enter the node: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		return nil, errors.Join(fmt.Errorf("enter the node: %w", err), f.Close())
	}
	return &Presence{file: f}, nil
}

// Leave ends the presence and reports whether no other process serves the node.
func (p *Presence) Leave() (last bool, err error) {
	defer func() { err = errors.Join(err, p.file.Close()) }()
	err = unix.Flock(int(p.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
