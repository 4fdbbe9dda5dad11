package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kerf-project/kerf/test/cluster/internal/layout"
)

// errBusy says that another process starts or stops the cluster.
var errBusy = errors.New("another command is starting or stopping the cluster")

// lock takes the lock of the run directory, which it creates. The directory is the lock, so nothing is left over; a
// holder that removed it leaves a dead lock to those who wait, and they begin again.
func lock(ctx context.Context, c layout.Cluster, limit time.Duration) (*os.File, error) {
	deadline := time.Now().Add(limit)
	for {
		dir, err := tryLock(c)
		if dir != nil || (err != nil && !errors.Is(err, errBusy)) {
			return dir, err
		}
		if err != nil && time.Now().After(deadline) {
			return nil, fmt.Errorf("cluster %s: %w", c.Name, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the lock of cluster %s: %w", c.Name, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// tryLock returns nil without an error when the directory changed under it.
func tryLock(c layout.Cluster) (*os.File, error) {
	if err := os.MkdirAll(c.Dir(), 0o700); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("create the run directory: %w", err)
	}
	dir, err := os.Open(c.Dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the run directory: %w", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = dir.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errBusy
		}
		return nil, fmt.Errorf("lock the run directory: %w", err)
	}
	if !sameDir(dir, c.Dir()) {
		_ = dir.Close()
		return nil, nil
	}
	return dir, nil
}

func sameDir(opened *os.File, path string) bool {
	a, err := opened.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}
