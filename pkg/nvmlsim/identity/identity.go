// Package identity is the file by which programs in containers of a simulated
// node learn what a device node stands for: real ones ask the driver, and there
// is none. It is plain data in the standard library's JSON, because the static
// nvidia-smi reads it.
package identity

import (
	"encoding/json"
	"fmt"
	"os"
)

// Dir is where the file lies, below the driver's root and in containers. The
// directory is mounted rather than the file, so a container sees later changes.
const Dir = "/usr/share/kerf-sim"

// File is the file's name in Dir.
const File = "identity.json"

// Node is what the file holds.
type Node struct {
	DriverVersion string `json:"driverVersion"`
	CUDAVersion   string `json:"cudaVersion"`
	// GPUMajor and CapsMajor are the majors of /dev/nvidiaN and /dev/nvidia-caps/nvidia-capM.
	GPUMajor  uint32 `json:"gpuMajor"`
	CapsMajor uint32 `json:"capsMajor"`
	// GPUs are in the order of their PCI bus ids.
	GPUs []GPU `json:"gpus"`
}

// GPU is one board.
type GPU struct {
	Minor     uint32 `json:"minor"`
	Name      string `json:"name"`
	UUID      string `json:"uuid"`
	PCIBusID  string `json:"pciBusID"`
	MemoryMiB uint64 `json:"memoryMiB"`
	// MIGMode is "Enabled", "Disabled", or empty on a board without.
	MIGMode string `json:"migMode,omitempty"`
	// Instances are the MIG devices, in the order of their indices.
	Instances []Instance `json:"instances,omitempty"`
}

// Instance is a MIG device: a container that may use it holds the nodes of both minors.
type Instance struct {
	Profile                 string `json:"profile"`
	UUID                    string `json:"uuid"`
	GPUInstanceID           int    `json:"gpuInstanceID"`
	ComputeInstanceID       int    `json:"computeInstanceID"`
	GPUInstanceCapMinor     uint32 `json:"gpuInstanceCapMinor"`
	ComputeInstanceCapMinor uint32 `json:"computeInstanceCapMinor"`
}

// Read reads a file.
func Read(path string) (Node, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Node{}, err
	}
	var n Node
	if err := json.Unmarshal(data, &n); err != nil {
		return Node{}, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}
