package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked is returned by the Try functions for a lock that somebody holds.
var ErrLocked = errors.New("locked")

// retry is how often a lock that another process holds is tried again. Two
// processes share a node only during an update, so polling costs next to nothing.
const retry = 5 * time.Millisecond

// LockClaim waits for the lock of a claim, until the context ends. Take it before the locks of GPUs.
func (j *Journal) LockClaim(ctx context.Context, uid string) (unlock func(), err error) {
	return j.locks.lock(ctx, "claim-"+uid, true)
}

// TryLockClaim is LockClaim without waiting: ErrLocked says that a call on the claim is under way.
func (j *Journal) TryLockClaim(uid string) (unlock func(), err error) {
	return j.locks.tryLock("claim-"+uid, true)
}

// LockGPUs waits for the locks of GPUs, always in the order of their UUIDs, so
// that two callers cannot wait for each other.
func (j *Journal) LockGPUs(ctx context.Context, uuids ...string) (unlock func(), err error) {
	ordered := slices.Compact(slices.Sorted(slices.Values(uuids)))
	var held []func()
	unlock = func() {
		for _, u := range slices.Backward(held) {
			u()
		}
	}
	for _, uuid := range ordered {
		u, err := j.locks.lock(ctx, "gpu-"+uuid, false)
		if err != nil {
			unlock()
			return nil, err
		}
		held = append(held, u)
	}
	return unlock, nil
}

// locks are named; each is a mutex within the process and a flock between processes.
type locks struct {
	dir string
	mu  sync.Mutex
	// inProcess has an entry for every lock that is held or waited for.
	inProcess map[string]*mutex
}

type mutex struct {
	held  chan struct{}
	users int
}

func (l *locks) lock(ctx context.Context, name string, temporary bool) (func(), error) {
	m := l.enter(name)
	select {
	case m.held <- struct{}{}:
	case <-ctx.Done():
		l.leave(name, m)
		return nil, fmt.Errorf("waiting for the lock of %s: %w", name, context.Cause(ctx))
	}
	for {
		f, err := l.flock(name)
		if err == nil {
			return l.unlocker(name, m, f, temporary), nil
		}
		if errors.Is(err, ErrLocked) {
			select {
			case <-time.After(retry):
				continue
			case <-ctx.Done():
				err = fmt.Errorf("waiting for the lock of %s, which another process holds: %w", name, context.Cause(ctx))
			}
		}
		<-m.held
		l.leave(name, m)
		return nil, err
	}
}

func (l *locks) tryLock(name string, temporary bool) (func(), error) {
	m := l.enter(name)
	select {
	case m.held <- struct{}{}:
	default:
		l.leave(name, m)
		return nil, ErrLocked
	}
	f, err := l.flock(name)
	if err != nil {
		<-m.held
		l.leave(name, m)
		return nil, err
	}
	return l.unlocker(name, m, f, temporary), nil
}

func (l *locks) unlocker(name string, m *mutex, f *os.File, temporary bool) func() {
	return func() {
		if temporary {
			// Removed while it is held: whoever has opened it meanwhile finds that
			// the name no longer leads to it and starts again. A file left behind is harmless.
			_ = os.Remove(f.Name())
		}
		_ = f.Close() // Closing gives the flock back.
		<-m.held
		l.leave(name, m)
	}
}

func (l *locks) enter(name string) *mutex {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inProcess == nil {
		l.inProcess = map[string]*mutex{}
	}
	m, ok := l.inProcess[name]
	if !ok {
		m = &mutex{held: make(chan struct{}, 1)}
		l.inProcess[name] = m
	}
	m.users++
	return m
}

func (l *locks) leave(name string, m *mutex) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.users--; m.users == 0 {
		delete(l.inProcess, name)
	}
}

// flock opens and locks the file of that name, or returns ErrLocked.
func (l *locks) flock(name string) (*os.File, error) {
	if name != filepath.Base(name) {
		return nil, fmt.Errorf("%q cannot name a lock", name)
	}
	path := filepath.Join(l.dir, name)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open a lock: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, ErrLocked
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		same, err := stillThere(f, path)
		if err == nil && same {
			return f, nil
		}
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// stillThere reports whether the path leads to the open file.
func stillThere(f *os.File, path string) (bool, error) {
	opened, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(opened, named), err
}
