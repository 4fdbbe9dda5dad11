package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kerf-project/kerf/pkg/nvmlsim/identity"
)

// devices answers whether this process may use a device node.
type devices interface {
	// usable reports whether the node is there, is that very device, and may be opened.
	usable(name string, major, minor uint32) bool
}

// visible keeps of a node's boards and instances those whose device nodes are
// usable: a board by its own, an instance by the board's and both capabilities'.
func visible(n identity.Node, d devices) []identity.GPU {
	capability := func(minor uint32) bool {
		return d.usable(fmt.Sprintf("nvidia-caps/nvidia-cap%d", minor), n.CapsMajor, minor)
	}
	var gpus []identity.GPU
	for _, g := range n.GPUs {
		if !d.usable(fmt.Sprintf("nvidia%d", g.Minor), n.GPUMajor, g.Minor) {
			continue
		}
		all := g.Instances
		g.Instances = nil
		for _, i := range all {
			if capability(i.GPUInstanceCapMinor) && capability(i.ComputeInstanceCapMinor) {
				g.Instances = append(g.Instances, i)
			}
		}
		gpus = append(gpus, g)
	}
	return gpus
}

// nodes are device nodes of a file system.
type nodes struct{ root string }

func (n nodes) usable(name string, major, minor uint32) bool {
	path := filepath.Join(n.root, name)
	info, err := os.Stat(path)
	if err != nil || info.Mode()&fs.ModeCharDevice == 0 {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	if gotMajor, gotMinor := numbers(uint64(stat.Rdev)); gotMajor != major || gotMinor != minor { //nolint:unconvert // its type differs between architectures
		return false
	}
	return admitted(open(path))
}

func open(path string) error {
	f, err := os.Open(path)
	if err == nil {
		err = f.Close()
	}
	return err
}

// admitted reads the answer to an open. The device cgroup is asked before the
// driver: EPERM comes from it, while "no such device" means that it let us pass
// and that, on a simulated node, nobody serves the device.
func admitted(err error) bool {
	return err == nil || errors.Is(err, syscall.ENXIO) || errors.Is(err, syscall.ENODEV)
}

// numbers takes a device number apart as the kernel puts it together (new_encode_dev, with glibc's wide majors).
func numbers(dev uint64) (major, minor uint32) {
	return uint32(dev>>8)&0xfff | uint32(dev>>32)&^uint32(0xfff), uint32(dev)&0xff | uint32(dev>>12)&^uint32(0xff)
}
