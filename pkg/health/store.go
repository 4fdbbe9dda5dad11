package health

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/sys/atomicwriter"

	"github.com/kerf-project/kerf/pkg/gpu"
)

const (
	stateFile    = "health.json"
	stateVersion = 1
)

// saved is what outlives the process and a reboot.
type saved struct {
	Version int `json:"version"`
	// Boot is the id of the node's boot in which it was saved, empty where that is not known.
	Boot string `json:"boot,omitempty"`
	// At is when.
	At       time.Time `json:"at"`
	Problems []problem `json:"problems"`
}

// load returns nothing where there is no file, and also with its error.
func load(dir string) (saved, error) {
	path := filepath.Join(dir, stateFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return saved{}, nil
	}
	if err != nil {
		return saved{}, err
	}
	var s saved
	if err := json.Unmarshal(data, &s); err != nil {
		return saved{}, fmt.Errorf("%s: %w", path, err)
	}
	if s.Version != stateVersion {
		return saved{}, fmt.Errorf("%s: version %d is not known here", path, s.Version)
	}
	return s, nil
}

// save replaces the file whole, and only then returns.
func (s saved) save(dir string) error {
	s.Version = stateVersion
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := atomicwriter.WriteFile(filepath.Join(dir, stateFile), data, 0o600); err != nil {
		return fmt.Errorf("save the conditions: %w", err)
	}
	return nil
}

// Saved are the conditions that a monitor has saved in a state directory, for
// somebody who only looks.
func Saved(stateDir string) ([]gpu.Condition, error) {
	s, err := load(stateDir)
	if err != nil {
		return nil, err
	}
	return (&tracker{problems: s.Problems}).conditions(), nil
}
