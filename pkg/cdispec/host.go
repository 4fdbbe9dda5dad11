package cdispec

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"tags.cncf.io/container-device-interface/specs-go"
)

const (
	devicesFile   = "proc/devices"
	migMinorsFile = "proc/driver/nvidia-caps/mig-minors"

	// gpuMajor is the major of NVIDIA boards that is registered with the kernel
	// (admin-guide/devices.txt: 195 char, "NVIDIA graphics devices").
	gpuMajor = 195
	// controlMinor is the minor of /dev/nvidiactl (NV_CONTROL_DEVICE_MINOR of the kernel module).
	controlMinor = 255
)

// hostFiles knows the device numbers that the driver has registered with the
// kernel. Both files stay the same while the driver is loaded.
type hostFiles struct {
	root string

	mu     sync.Mutex
	majors map[string]int64
	caps   map[string]int64
}

func (h *hostFiles) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.majors, h.caps = nil, nil
}

// number looks a name up in a file's numbers, which are read again when the name
// is not among those that are kept.
func (h *hostFiles) number(kept *map[string]int64, file string, parse func(io.Reader) (map[string]int64, error), name string) (int64, bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n, ok := (*kept)[name]; ok {
		return n, true, nil
	}
	f, err := os.Open(filepath.Join(h.root, file))
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	all, err := parse(f)
	if err != nil {
		return 0, false, fmt.Errorf("%s: %w", f.Name(), err)
	}
	*kept = all
	n, ok := all[name]
	return n, ok, nil
}

func (h *hostFiles) major(name string) (int64, bool, error) {
	return h.number(&h.majors, devicesFile, parseMajors, name)
}

// boards is the major of /dev/nvidiaN and /dev/nvidiactl. Drivers before 550 registered it as nvidia-frontend.
func (h *hostFiles) boards() (int64, error) {
	for _, name := range []string{"nvidia", "nvidia-frontend"} {
		if n, ok, err := h.major(name); ok || err != nil {
			return n, err
		}
	}
	return gpuMajor, nil
}

func (h *hostFiles) gpuNode(minor int) (*specs.DeviceNode, error) {
	major, err := h.boards()
	return node(fmt.Sprintf("/dev/nvidia%d", minor), major, int64(minor), 0o666), err
}

// control are the nodes that every CUDA program opens, whatever its GPU.
func (h *hostFiles) control() ([]*specs.DeviceNode, error) {
	major, err := h.boards()
	if err != nil {
		return nil, err
	}
	uvm, ok, err := h.major("nvidia-uvm")
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("nvidia-uvm is not in %s, and no CUDA program works without: load it (modprobe nvidia-uvm)", filepath.Join(h.root, devicesFile))
	}
	return []*specs.DeviceNode{
		node("/dev/nvidiactl", major, controlMinor, 0o666),
		node("/dev/nvidia-uvm", uvm, 0, 0o666),
		node("/dev/nvidia-uvm-tools", uvm, 1, 0o666),
	}, nil
}

// capability is the node that admits to a GPU instance or compute instance, named as the driver names it: "gpu0/gi7/access".
func (h *hostFiles) capability(name string) (*specs.DeviceNode, error) {
	major, ok, err := h.major("nvidia-caps")
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("nvidia-caps is not in %s: is the NVIDIA driver loaded?", filepath.Join(h.root, devicesFile))
	}
	minor, ok, err := h.number(&h.caps, migMinorsFile, parseMIGMinors, name)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("its capability %s is not in %s", name, filepath.Join(h.root, migMinorsFile))
	}
	return node(fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor), major, minor, 0o444), nil
}

func node(path string, major, minor int64, mode os.FileMode) *specs.DeviceNode {
	return &specs.DeviceNode{Path: path, Type: "c", Major: major, Minor: minor, FileMode: &mode, Permissions: "rw"}
}

// parseMajors reads the character devices of /proc/devices: name to major. A
// name that is registered twice keeps its first major.
func parseMajors(r io.Reader) (map[string]int64, error) {
	majors := map[string]int64{}
	lines := bufio.NewScanner(r)
	characters := false
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		number, name, ok := strings.Cut(line, " ")
		switch {
		case strings.HasSuffix(line, ":"):
			characters = line == "Character devices:"
		case line != "" && characters:
			major, err := strconv.ParseUint(number, 10, 32)
			if !ok || err != nil {
				return nil, fmt.Errorf("line %q is not a major and a name", line)
			}
			if _, twice := majors[name]; !twice {
				majors[name] = int64(major)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return majors, nil
}

// parseMIGMinors reads the driver's table of capabilities: name to minor.
func parseMIGMinors(r io.Reader) (map[string]int64, error) {
	minors := map[string]int64{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("line %q is not a name and a minor", lines.Text())
		}
		minor, err := strconv.ParseUint(fields[1], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("line %q is not a name and a minor", lines.Text())
		}
		minors[fields[0]] = int64(minor)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return minors, nil
}
