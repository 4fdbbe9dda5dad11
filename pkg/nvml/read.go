package nvml

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Node reads all boards at once. Where some could not be read, the error is a
// gpu.ReadErrors and the node is still good: such a board appears as it was when last
// read, and is absent only if it never was. It waits for the slowest board, so
// ctx should have a deadline.
func (a *Adapter) Node(ctx context.Context) (gpu.Node, error) {
	node := gpu.Node{DriverVersion: a.session.driver, NVMLVersion: a.session.nvml, CUDADriverVersion: a.session.cuda}
	boards := a.session.boards
	found := make([]gpu.GPU, len(boards))
	errs := make([]error, len(boards))
	var reads sync.WaitGroup
	for i, b := range boards {
		reads.Go(func() { found[i], errs[i] = a.read(ctx, b) })
	}
	reads.Wait()

	var bad gpu.ReadErrors
	for i, b := range boards {
		if errs[i] == nil {
			node.GPUs = append(node.GPUs, found[i])
			continue
		}
		bad = append(bad, gpu.ReadError{Index: b.index, UUID: b.id(), Err: errs[i]})
		if g := b.last.Load(); g != nil {
			node.GPUs = append(node.GPUs, *g)
		}
	}
	slices.SortFunc(node.GPUs, func(x, y gpu.GPU) int { return strings.Compare(x.PCIBusID, y.PCIBusID) })
	if bad != nil {
		return node, bad
	}
	return node, nil
}

// GPU reads one board: its mode, its minor and its instances as they are now.
// ErrNotFound means that the node has no such board.
func (a *Adapter) GPU(ctx context.Context, uuid string) (gpu.GPU, error) {
	b, err := a.find(ctx, uuid)
	if err != nil {
		return gpu.GPU{}, fmt.Errorf("%s: %w", opRead, err)
	}
	return a.read(ctx, b)
}

func (a *Adapter) read(ctx context.Context, b *board) (gpu.GPU, error) {
	return call(ctx, a, b, opRead, func(h nvml.Device) (gpu.GPU, error) {
		g, err := steady(a, b, h, opRead, func(h nvml.Device) (gpu.GPU, error) { return a.look(b, h) })
		if err != nil {
			return gpu.GPU{}, err
		}
		b.last.Store(&g)
		return g, nil
	})
}

// look reads the board once.
func (a *Adapter) look(b *board, h nvml.Device) (gpu.GPU, error) {
	c, err := a.constantOf(b, h)
	if err != nil {
		return gpu.GPU{}, err
	}
	g := c.gpu
	if g.PCIBusID, err = a.busID(b, h); err != nil {
		return gpu.GPU{}, err
	}
	g.NUMANode, g.PCIeRoot = a.topology(g.PCIBusID)
	q := &questions{board: b}
	g.Index = ask(q, "index", h.GetIndex)
	g.Minor = ask(q, "minor number", h.GetMinorNumber)
	if q.err != nil {
		return gpu.GPU{}, q.err
	}
	if g.MIG, err = migMode(b, h); err != nil {
		return gpu.GPU{}, err
	}
	if g.MIG.Current {
		g.Instances, err = b.instances(h)
	}
	return g, err
}

// migMode reads the mode; a board that does not support it is not an error.
func migMode(b *board, h nvml.Device) (gpu.MIGMode, error) {
	current, pending, ret := h.GetMigMode()
	switch ret {
	case nvml.SUCCESS:
		return gpu.MIGMode{Capable: true, Current: current == nvml.DEVICE_MIG_ENABLE, Pending: pending == nvml.DEVICE_MIG_ENABLE}, nil
	case nvml.ERROR_NOT_SUPPORTED:
		return gpu.MIGMode{}, nil
	default:
		return gpu.MIGMode{}, failed("read the MIG mode", b, ret)
	}
}

func (a *Adapter) busID(b *board, h nvml.Device) (string, error) {
	d, err := a.lookup.NewDevice(h)
	if err != nil {
		return "", err
	}
	id, err := d.GetPCIBusID()
	if err != nil {
		return "", failed("read the PCI bus id", b, returned(err))
	}
	return id, nil
}

// topology asks sysfs where the board sits: its NUMA node, -1 if there is none,
// and its root complex. NVML's own NUMA call is about boards whose memory is a
// NUMA node by itself.
func (a *Adapter) topology(busID string) (numaNode int, root string) {
	dir := filepath.Join(a.hostRoot, "sys/bus/pci/devices", busID)
	numaNode = -1
	if text, err := os.ReadFile(filepath.Join(dir, "numa_node")); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			numaNode = n
		}
	}
	// A link such as ../../../devices/pci0000:17/0000:17:01.0/0000:18:00.0.
	if link, err := os.Readlink(dir); err == nil {
		for part := range strings.SplitSeq(link, "/") {
			if strings.HasPrefix(part, "pci") && strings.Contains(part, ":") {
				return numaNode, part
			}
		}
	}
	return numaNode, ""
}

// constant is what a board never changes while the driver is loaded.
type constant struct {
	gpu      gpu.GPU
	profiles []profile
}

func (a *Adapter) constantOf(b *board, h nvml.Device) (*constant, error) {
	if b.constant != nil {
		return b.constant, nil
	}
	q := &questions{board: b}
	g := gpu.GPU{UUID: b.id(), ProductName: ask(q, "product name", h.GetName)}
	g.MemoryBytes = ask(q, "memory size", h.GetMemoryInfo).Total
	g.ComputeCapability = ask(q, "compute capability", func() (gpu.Version, nvml.Return) {
		major, minor, ret := h.GetCudaComputeCapability()
		return gpu.Version{Major: major, Minor: minor}, ret
	})
	architecture := ask(q, "architecture", h.GetArchitecture)
	if q.err != nil {
		return nil, q.err
	}
	d, err := a.lookup.NewDevice(h)
	if err != nil {
		return nil, err
	}
	// A board newer than the library's tables has no name there. It is a good board all the same.
	if g.Architecture, err = d.GetArchitectureAsString(); err != nil {
		g.Architecture = "Unknown"
	}
	if g.Brand, err = d.GetBrandAsString(); err != nil {
		g.Brand = "Unknown"
	}
	c := &constant{gpu: g}
	mode, err := migMode(b, h)
	if err != nil {
		return nil, err
	}
	if mode.Capable {
		// MIG guide: on Ampere the mode takes effect with a GPU reset, from Hopper on at once.
		c.gpu.ToggleNeedsReset = architecture < nvml.DEVICE_ARCH_HOPPER
		if c.profiles, err = a.profiles(b, h, g.MemoryBytes); err != nil {
			return nil, err
		}
		for _, p := range c.profiles {
			c.gpu.Profiles = append(c.gpu.Profiles, p.Profile)
		}
	}
	// With a handle that went stale meanwhile, profiles look as if the board had none.
	if _, ret := h.GetUUID(); ret != nvml.SUCCESS {
		return nil, failed("read the profiles", b, ret)
	}
	b.constant = c
	return c, nil
}
