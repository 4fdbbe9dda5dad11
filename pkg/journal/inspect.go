package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Contents is what a journal holds, as somebody sees it who only looks.
type Contents struct {
	Claims    []*Claim
	Instances []*Instance
	// Written is when the record of a claim was written, by the claim's UID.
	Written map[string]time.Time
	// Corrupt are the records that cannot be read and are still in their place: MovedTo is empty.
	Corrupt []*CorruptError
	// MovedAside are the paths of the records that a plugin has moved aside, oldest first.
	MovedAside []string
}

// Inspect reads a journal without a lock and without changing anything, so also
// beside plugins that work on it: a record that is replaced meanwhile is read as
// it was or as it is, whole. A directory that is not there holds nothing.
func Inspect(dir string) (Contents, error) {
	c := Contents{Written: map[string]time.Time{}}
	written := func(uid string, at time.Time) { c.Written[uid] = at }
	if err := inspect(&c, filepath.Join(dir, claimsDir), &c.Claims, written); err != nil {
		return c, err
	}
	if err := inspect(&c, filepath.Join(dir, instancesDir), &c.Instances, func(string, time.Time) {}); err != nil {
		return c, err
	}
	aside, err := os.ReadDir(filepath.Join(dir, corruptDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("inspect the journal: %w", err)
	}
	for _, e := range aside {
		c.MovedAside = append(c.MovedAside, filepath.Join(dir, corruptDir, e.Name()))
	}
	return c, nil
}

func inspect[T any, R interface {
	*T
	record
}](c *Contents, dir string, into *[]R, written func(key string, at time.Time)) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("inspect the journal: %w", err)
	}
	for _, e := range entries {
		key, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		path := filepath.Join(dir, e.Name())
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // Deleted between the listing and the reading.
		}
		if err != nil {
			return fmt.Errorf("inspect the journal: %w", err)
		}
		var r R = new(T)
		if err := decode(data, key, r); err != nil {
			c.Corrupt = append(c.Corrupt, &CorruptError{Path: path, Err: err})
			continue
		}
		*into = append(*into, r)
		if info, err := e.Info(); err == nil {
			written(key, info.ModTime())
		}
	}
	return nil
}
