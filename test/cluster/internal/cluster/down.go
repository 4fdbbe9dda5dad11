package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/kerf-project/kerf/test/cluster/internal/layout"
)

// Down ends the cluster, in whatever state it is, and removes everything of it. It reports whether there was anything.
func Down(ctx context.Context, c layout.Cluster) (bool, error) {
	if _, err := os.Stat(c.Dir()); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	// A start that is under way holds the lock. Its guardian lets go of it when it is told to end.
	dir, err := lock(ctx, c, 0)
	if errors.Is(err, errBusy) {
		if s, err := readState(c); err == nil {
			if err := s.Guardian.end(5 * time.Second); err != nil {
				return true, err
			}
		}
		dir, err = lock(ctx, c, 20*time.Second)
	}
	if err != nil {
		return true, err
	}
	s, err := readState(c)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return true, errors.Join(err, dir.Close())
	}
	// The guardian removes everything itself; what it could not, is removed here.
	return true, errors.Join(s.Guardian.end(10*time.Second), sweep(c, s, false), dir.Close())
}

// Logs lists the components that have a log.
func Logs(c layout.Cluster) ([]string, error) {
	entries, err := os.ReadDir(c.Logs())
	if err != nil {
		return nil, fmt.Errorf("cluster %s has no logs: %w", c.Name, err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, logName(e.Name()))
	}
	return names, nil
}

// Log copies the log of one component.
func Log(c layout.Cluster, component string, out io.Writer) error {
	file, err := os.Open(c.Log(component))
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", component, err)
	}
	_, err = io.Copy(out, file)
	return errors.Join(err, file.Close())
}
