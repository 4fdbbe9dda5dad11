package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/atomicwriter"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

const (
	inventoryFile    = "inventory.json"
	inventoryVersion = 1
)

// inventory is what was last published. It outlives the process and a reboot, so
// that a device in use stays published though the configuration, the MIG mode or
// the GPU itself has changed meanwhile.
type inventory struct {
	Version int `json:"version"`
	// GPUs are without their instances.
	GPUs       []gpu.GPU             `json:"gpus"`
	Offers     map[string]pool.Offer `json:"offers"`
	Conditions []gpu.Condition       `json:"conditions,omitempty"`
}

// loadInventory returns an empty one where there is none. It also returns one
// with the error of a file that cannot be read: what is in use is known from the
// journal and the API as well.
func loadInventory(dir string) (inventory, error) {
	none := inventory{Offers: map[string]pool.Offer{}}
	path := filepath.Join(dir, inventoryFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	i := none
	if err := json.Unmarshal(data, &i); err != nil {
		return none, fmt.Errorf("%s: %w", path, err)
	}
	if i.Version != inventoryVersion {
		return none, fmt.Errorf("%s: version %d is not known here", path, i.Version)
	}
	return i, nil
}

// save replaces the file whole, and only then returns.
func (i inventory) save(dir string) error {
	i.Version = inventoryVersion
	data, err := json.Marshal(i)
	if err != nil {
		return err
	}
	if err := atomicwriter.WriteFile(filepath.Join(dir, inventoryFile), data, 0o600); err != nil {
		return fmt.Errorf("save the inventory: %w", err)
	}
	return nil
}

// LastPublished are the GPUs, without their instances, and the conditions that
// were published last according to a state directory, for somebody who only looks.
func LastPublished(stateDir string) ([]gpu.GPU, []gpu.Condition, error) {
	i, err := loadInventory(stateDir)
	return i.GPUs, i.Conditions, err
}
