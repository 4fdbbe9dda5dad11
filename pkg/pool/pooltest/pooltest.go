// Package pooltest has the nodes on which what kerf publishes is tested: every
// board, in every mode, alone and in numbers. It is for tests only.
package pooltest

import (
	"fmt"
	"strings"
	"time"

	resourceapi "k8s.io/api/resource/v1"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

// Case is a node and how it is configured.
type Case struct {
	Name       string
	Node       pool.Node
	Policy     configv1alpha1.Policy
	Foreign    map[string][]gpu.Instance
	Conditions []gpu.Condition
}

// Slices publishes the case.
func (c Case) Slices() ([]resourceapi.ResourceSlice, error) {
	offers := map[string]pool.Offer{}
	for _, g := range c.Node.GPUs {
		offers[g.UUID], _ = pool.Settle(nil, pool.Desired(g, c.Policy, c.Foreign[g.UUID]), nil)
	}
	resources, err := pool.Build(c.Node, offers, c.Conditions)
	if err != nil {
		return nil, err
	}
	return pool.Slices(c.Node, resources), nil
}

// GPU is the n-th board of a node, in the state that it has after a reset.
func GPU(b gpu.Board, n int) gpu.GPU {
	return gpu.GPU{
		UUID:  fmt.Sprintf("GPU-%08x-7d1f-4c52-9a60-%012x", 0x3f2a91c4+n*0x01010101, n),
		Index: n, Minor: n, PCIBusID: fmt.Sprintf("0000:%02x:00.0", 0x10+n), PCIeRoot: fmt.Sprintf("pci0000:%02x", 0x0f+n/2*2), NUMANode: n % 2,
		ProductName: b.ProductName, Brand: b.Brand, Architecture: b.Architecture, ComputeCapability: b.ComputeCapability,
		MemoryBytes: b.MemoryMiB << 20, MIG: gpu.MIGMode{Capable: len(b.Profiles) > 0}, ToggleNeedsReset: b.ToggleNeedsReset, Profiles: b.Profiles,
	}
}

// Node has the boards given, in that order.
func Node(boards ...gpu.Board) pool.Node {
	n := pool.Node{Name: "node-a", Driver: pool.DefaultDriver, Node: gpu.Node{
		DriverVersion: "580.95.05", CUDADriverVersion: gpu.Version{Major: 13},
	}}
	for i, b := range boards {
		n.GPUs = append(n.GPUs, GPU(b, i))
	}
	return n
}

// Policy is shorthand for a policy.
func Policy(mode configv1alpha1.MIGMode, mediaExtensions bool, replicas int) configv1alpha1.Policy {
	return configv1alpha1.Policy{
		MIG:         configv1alpha1.MIG{Mode: mode, MediaExtensions: mediaExtensions},
		TimeSlicing: configv1alpha1.TimeSlicing{Replicas: replicas},
	}
}

// mode is a way to run the boards of a node.
type mode struct {
	name   string
	policy configv1alpha1.Policy
	// current is the MIG mode that the boards are found in.
	current bool
	// foreign are placements of instances on the first board: their profiles and starts.
	foreign map[string]int
	// conditions are made on the first board.
	conditions bool
}

// Cases are one, eight, nine and sixteen of every board in every mode, some
// mixed nodes, and one without a GPU.
func Cases() []Case {
	cases := []Case{newCase("empty", mode{})}
	for _, b := range gpu.Boards() {
		for _, m := range modes(b) {
			for _, n := range []int{1, 8, 9, 16} {
				cases = append(cases, newCase(fmt.Sprintf("%s/%s/%d", strings.ToLower(b.Name), m.name, n), m, times(n, b)...))
			}
		}
	}
	mixed := append(times(4, board("H200-SXM-141GB")), times(2, board("L40S"))...)
	m := mode{policy: Policy(configv1alpha1.MIGOnDemand, false, 4)}
	cases = append(cases, newCase("mixed/on-demand-replicas", m, mixed...))
	renamed := newCase("mixed/other-driver", m, mixed...)
	renamed.Node.Driver = "gpu.kerf.dev"
	return append(cases, renamed)
}

func modes(b gpu.Board) []mode {
	const onDemand, keepOn, off = configv1alpha1.MIGOnDemand, configv1alpha1.MIGKeepOn, configv1alpha1.MIGOff
	all := []mode{
		{name: "on-demand", policy: Policy(onDemand, false, 0)},
		{name: "on-demand-replicas", policy: Policy(onDemand, false, 4)},
		{name: "conditions", policy: Policy(onDemand, false, 4), conditions: true},
	}
	if len(b.Profiles) == 0 {
		return all
	}
	first, third := b.Profiles[0].Name, b.Profiles[4].Name
	all = append(all,
		mode{name: "on-demand-all", policy: Policy(onDemand, true, gpu.MaxReplicas)},
		mode{name: "keep-on", policy: Policy(keepOn, false, 4)},
		mode{name: "off", policy: Policy(off, false, 4)},
		mode{name: "foreign", policy: Policy(onDemand, true, 4), current: true, foreign: map[string]int{first: 2, third: 4}},
		mode{name: "foreign-media", policy: Policy(onDemand, true, 4), current: true, foreign: map[string]int{b.Profiles[1].Name: 0}},
		mode{name: "foreign-off", policy: Policy(off, true, 4), current: true, foreign: map[string]int{first: 2}},
	)
	if b.ToggleNeedsReset {
		all = append(all,
			mode{name: "current-on", policy: Policy(onDemand, false, 4), current: true},
			mode{name: "current-on-off", policy: Policy(off, false, 4), current: true},
		)
	}
	return all
}

func newCase(name string, m mode, boards ...gpu.Board) Case {
	c := Case{Name: name, Node: Node(boards...), Policy: m.policy, Foreign: map[string][]gpu.Instance{}}
	for i := range c.Node.GPUs {
		if g := &c.Node.GPUs[i]; g.MIG.Capable {
			g.MIG.Current, g.MIG.Pending = m.current, m.current
		}
	}
	if len(boards) == 0 {
		return c
	}
	g := &c.Node.GPUs[0]
	for _, p := range gpu.AllPlaced(g.Profiles) {
		if start, ok := m.foreign[p.Profile.Name]; ok && start == p.Placement.Start {
			g.Instances = append(g.Instances, Instance(*g, p, len(g.Instances)+1))
		}
	}
	c.Foreign[g.UUID] = g.Instances
	if m.conditions {
		since := time.Date(2026, 11, 20, 8, 30, 0, 5, time.UTC)
		c.Conditions = []gpu.Condition{
			{Device: gpu.Device{GPU: g.UUID}, Reason: "Xid48", Effect: gpu.EffectNoSchedule, Since: since},
			{Device: gpu.Device{GPU: g.UUID}, Reason: "ClockThrottled", Effect: gpu.EffectNone, Since: since},
			{Device: gpu.Device{Type: gpu.TypeMIG, GPU: g.UUID, Placement: gpu.Placement{Start: 4, Size: 2}}, Reason: "Releasing", Effect: gpu.EffectNoExecute, Since: since},
			{Device: gpu.Device{GPU: "GPU-elsewhere"}, Reason: "GPULost", Effect: gpu.EffectNoExecute, Since: since},
		}
	}
	return c
}

// Instance is an instance that a container can be given.
func Instance(g gpu.GPU, p gpu.Placed, id int) gpu.Instance {
	return gpu.Instance{
		GPU: g.UUID, Profile: p.Profile.Name, Placement: p.Placement, ID: id,
		Compute: []gpu.ComputeInstance{{UUID: fmt.Sprintf("MIG-%08x-0000-5000-8000-%012x", g.Index, id), Whole: true}},
	}
}

func times(n int, b gpu.Board) []gpu.Board {
	boards := make([]gpu.Board, n)
	for i := range boards {
		boards[i] = b
	}
	return boards
}

func board(name string) gpu.Board {
	for _, b := range gpu.Boards() {
		if b.Name == name {
			return b
		}
	}
	return gpu.Board{}
}
