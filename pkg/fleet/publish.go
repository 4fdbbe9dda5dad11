package fleet

import (
	"fmt"

	"github.com/google/uuid"
	resourceapi "k8s.io/api/resource/v1"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

// The NVIDIA driver of nodes that do not exist: what the simulated one reports.
const driverVersion = "580.95.05"

var cudaVersion = gpu.Version{Major: 13}

// Publish makes the slices that a node with these boards would publish if nobody
// used it yet. A nil configuration has the defaults. UUIDs and PCI addresses are made up
// from the node's name and the order of the boards; the first half of the boards
// is on one socket, the others are on the second.
func Publish(node, driver string, boards []gpu.Board, config *configv1alpha1.NodeConfiguration) ([]*resourceapi.ResourceSlice, error) {
	n := pool.Node{Name: node, Driver: driver, Node: gpu.Node{DriverVersion: driverVersion, CUDADriverVersion: cudaVersion}}
	offers := map[string]pool.Offer{}
	for i, b := range boards {
		bus := 0x10 + 0x0d*i
		policy := config.For(b.ProductName)
		// Where only a reset changes the mode, kerf is taken to have had it.
		on := len(b.Profiles) > 0 && b.ToggleNeedsReset && policy.MIG.Mode == configv1alpha1.MIGKeepOn
		g := gpu.GPU{
			UUID:  "GPU-" + uuid.NewSHA1(uuid.NameSpaceOID, fmt.Appendf(nil, "kerf board %s/%d", node, i)).String(),
			Index: i, Minor: i, PCIBusID: fmt.Sprintf("0000:%02x:00.0", bus), PCIeRoot: fmt.Sprintf("pci0000:%02x", bus-1), NUMANode: 2 * i / len(boards),
			ProductName: b.ProductName, Brand: b.Brand, Architecture: b.Architecture, ComputeCapability: b.ComputeCapability, MemoryBytes: b.MemoryMiB << 20,
			MIG: gpu.MIGMode{Capable: len(b.Profiles) > 0, Current: on, Pending: on}, ToggleNeedsReset: b.ToggleNeedsReset, Profiles: b.Profiles,
		}
		n.GPUs = append(n.GPUs, g)
		offers[g.UUID] = pool.Desired(g, policy, nil)
	}
	resources, err := pool.Build(n, offers, nil)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	made := pool.Slices(n, resources)
	all := make([]*resourceapi.ResourceSlice, len(made))
	for i := range made {
		all[i] = &made[i]
	}
	return all, nil
}
