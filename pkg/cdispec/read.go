package cdispec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/specs-go"
)

// File is the spec file of a claim, as somebody sees it who only looks.
type File struct {
	ClaimUID, Path string
	// Note is what Write was given to keep in it.
	Note string
	// Nodes are the device nodes of the claim's devices, by the published names of the devices.
	Nodes map[string][]*specs.DeviceNode
	// Err is why the file cannot be read; Note and Nodes are empty then.
	Err error
}

// Read reads the spec files of all claims in a CDI directory and changes
// nothing. A directory that is not there has none.
func Read(cdiRoot string) ([]File, error) {
	uids, err := claimsIn(cdiRoot)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, uid := range uids {
		f := File{ClaimUID: uid, Path: filepath.Join(cdiRoot, fileName(uid)), Nodes: map[string][]*specs.DeviceNode{}}
		spec, err := cdi.ReadSpec(f.Path, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // Removed between the listing and the reading.
		}
		if f.Err = err; err == nil {
			f.Note = spec.Annotations[noteAnnotation]
			for _, d := range spec.Devices {
				f.Nodes[strings.TrimPrefix(d.Name, uid+"-")] = d.ContainerEdits.DeviceNodes
			}
		}
		files = append(files, f)
	}
	return files, nil
}

// claimsIn are the UIDs of the claims that have a spec file in a directory.
func claimsIn(cdiRoot string) ([]string, error) {
	entries, err := os.ReadDir(cdiRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the CDI specs: %w", err)
	}
	var uids []string
	prefix := strings.TrimSuffix(fileName(""), extension)
	for _, e := range entries {
		uid, whole := strings.CutSuffix(e.Name(), extension)
		uid, ours := strings.CutPrefix(uid, prefix)
		if whole && ours {
			uids = append(uids, uid)
		}
	}
	return uids, nil
}

// Host is what a host says of the device nodes of its driver, for who only looks. It is read once.
type Host struct{ files hostFiles }

// NewHost makes the host that is seen below a root.
func NewHost(root string) *Host { return &Host{hostFiles{root: root}} }

// Nodes are the device nodes that a device's containers need, from what the host
// says now: the board's, and for a MIG instance its two capabilities.
func (h *Host) Nodes(d Device) ([]*specs.DeviceNode, error) {
	if d.Instance != nil {
		return h.files.instanceNodes(d)
	}
	node, err := h.files.gpuNode(d.GPU.Minor)
	return []*specs.DeviceNode{node}, err
}

// Check returns what the host lacks for any device at all: the driver's control nodes.
func (h *Host) Check() error {
	_, err := h.files.control()
	return err
}

// MIGMinors is the driver's table of capabilities: the minors of
// /dev/nvidia-caps/nvidia-cap<minor> by names such as "gpu0/gi7/ci0/access".
func (h *Host) MIGMinors() (map[string]int64, error) {
	f, err := os.Open(filepath.Join(h.files.root, migMinorsFile))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return parseMIGMinors(f)
}
