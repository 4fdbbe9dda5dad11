package nvmlsim

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Client is somebody outside who has a board or an instance open.
type Client struct {
	PID int `json:"pid"`
	// Command is the name of its program.
	Command string `json:"command,omitempty"`
	// GI and CI narrow it to a GPU instance and a compute instance; nil is the
	// whole board. With GI alone it is a leaked handle: it keeps the GPU instance
	// from being destroyed, and no process list knows it.
	GI *int `json:"gpuInstance,omitempty"`
	CI *int `json:"computeInstance,omitempty"`
	// Process is true for a program that runs CUDA and false for one that only holds a handle, as DCGM does.
	Process bool `json:"process,omitempty"`
	// InPod is true for a program in a container of a pod: its cgroup says so.
	InPod bool `json:"inPod,omitempty"`
}

// Board is one GPU as the outside world sees it.
type Board struct {
	Index    int    `json:"index"`
	UUID     string `json:"uuid"`
	Model    string `json:"model"`
	PCIBusID string `json:"pciBusID"`
	Minor    int    `json:"minor"`
	// MIGCapable is false on boards without MIG.
	MIGCapable bool `json:"migCapable"`
	MIG        bool `json:"mig"`
	MIGPending bool `json:"migPending"`
	Lost       bool `json:"lost,omitempty"`
	// TimeSlice and ComputeMode are what nvidia-smi has set, or the defaults.
	TimeSlice   gpu.TimeSlice  `json:"timeSlice"`
	ComputeMode string         `json:"computeMode"`
	Instances   []gpu.Instance `json:"instances,omitempty"`
	Clients     []Client       `json:"clients,omitempty"`
}

// Boards lists the GPUs, by index.
func (n *Node) Boards() ([]Board, error) {
	s, err := n.kernel.view()
	if err != nil {
		return nil, err
	}
	var all []Board
	for index := range s.GPUs {
		g := &s.GPUs[index]
		b := Board{
			Index: index, UUID: g.UUID, Model: g.Model, PCIBusID: busID(index), Minor: g.Minor, MIGCapable: len(g.table.Profiles) > 0,
			MIG: g.MIG, MIGPending: g.Pending, Lost: g.Lost, Clients: slices.Clone(g.Clients),
			TimeSlice: cmp.Or(g.TimeSlice, gpu.TimeSliceDefault), ComputeMode: cmp.Or(g.ComputeMode, "DEFAULT"),
		}
		for i := range g.Instances {
			b.Instances = append(b.Instances, g.describe(&g.Instances[i]))
		}
		slices.SortFunc(b.Instances, func(x, y gpu.Instance) int { return x.Placement.Start - y.Placement.Start })
		all = append(all, b)
	}
	return all, nil
}

func (g *board) describe(i *instance) gpu.Instance {
	p, _ := profileByID(g.table, i.Profile)
	d := gpu.Instance{GPU: g.UUID, Profile: p.Name, Placement: i.Placement, ID: i.ID}
	for _, c := range i.Compute {
		d.Compute = append(d.Compute, gpu.ComputeInstance{ID: c.ID, UUID: g.migUUID(i.ID, c.ID), Whole: c.Size == p.ComputeSlices})
	}
	slices.SortFunc(d.Compute, func(x, y gpu.ComputeInstance) int { return x.ID - y.ID })
	return d
}

// act changes a board, named by its UUID or index. The errors wrap an nvml.Return.
func (n *Node) act(what, name string, f func(*state, *board) nvml.Return) error {
	var unknown error
	ret, err := n.kernel.update(func(s *state) nvml.Return {
		index := slices.IndexFunc(s.GPUs, func(g board) bool { return g.UUID == name })
		if i, err := strconv.Atoi(name); err == nil && index < 0 && i >= 0 && i < len(s.GPUs) {
			index = i
		}
		if index < 0 {
			unknown = fmt.Errorf("no GPU %q among the %d of this node", name, len(s.GPUs))
			return nvml.ERROR_NOT_FOUND
		}
		return f(s, &s.GPUs[index])
	})
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case unknown != nil:
		return fmt.Errorf("%s: %w: %w", what, unknown, ret)
	case ret != nvml.SUCCESS:
		return fmt.Errorf("%s on GPU %s: %w", what, name, ret)
	}
	return nil
}

// CreateInstance makes an instance as an administrator would, where at is nil at
// the driver's choice, and with compute a compute instance over all of it.
func (n *Node) CreateInstance(name, profile string, at *gpu.Placement, compute bool) (gpu.Instance, error) {
	var made gpu.Instance
	err := n.act("create an instance of "+profile, name, func(_ *state, g *board) nvml.Return {
		id, ret := g.createForeign(profile, at, compute)
		if ret == nvml.SUCCESS {
			made = g.describe(g.instance(id))
		}
		return ret
	})
	return made, err
}

// createForeign makes a GPU instance by the name of its profile and, with compute, a compute instance over all of it.
func (g *board) createForeign(profile string, at *gpu.Placement, compute bool) (int, nvml.Return) {
	index := slices.IndexFunc(g.table.Profiles, func(p gpu.Profile) bool { return p.Name == profile })
	if index < 0 {
		return 0, nvml.ERROR_INVALID_ARGUMENT
	}
	p := g.table.Profiles[index]
	id, ret := g.createInstance(p.ID, at)
	if ret == nvml.SUCCESS && compute {
		whole := slices.IndexFunc(computeProfiles(g.table, p), func(c computeProfile) bool { return c.slices == p.ComputeSlices })
		_, ret = g.createCompute(id, computeProfiles(g.table, p)[whole].id, nil)
	}
	return id, ret
}

// DestroyInstance destroys a GPU instance with its compute instances. It fails
// with nvml.ERROR_IN_USE, and changes nothing, where anybody has it open.
func (n *Node) DestroyInstance(name string, id int) error {
	return n.act(fmt.Sprintf("destroy GPU instance %d", id), name, func(_ *state, g *board) nvml.Return {
		if i := g.instance(id); i != nil {
			for _, c := range slices.Clone(i.Compute) {
				if ret := g.destroyCompute(id, c.ID); ret != nvml.SUCCESS {
					return ret
				}
			}
		}
		return g.destroyInstance(id)
	})
}

// SetMIGMode asks for a MIG mode as another agent would. The error wraps
// nvml.ERROR_IN_USE where the board is held, be it by a session of kerf's, and
// nvml.ERROR_RESET_REQUIRED where the mode is pending until a reset. The request stands in both cases.
func (n *Node) SetMIGMode(name string, on bool) error {
	activation := nvml.SUCCESS
	err := n.act("set the MIG mode", name, func(s *state, g *board) nvml.Return {
		index := s.index(g)
		held, err := heldByOthers(n.kernel.dir, index, nil)
		if err != nil {
			return n.session.broken("SetMIGMode", index, err)
		}
		var ret nvml.Return
		ret, activation = s.setMIGMode(index, on, held, nvml.SUCCESS)
		return ret
	})
	if err == nil && activation != nvml.SUCCESS {
		return fmt.Errorf("set the MIG mode on GPU %s: not in effect: %w", name, activation)
	}
	return err
}

// SetTimeSlice sets a board's time slice and its compute mode to the default, as
// nvidia-smi does, where that program is not there. It fails with nvml.ERROR_NOT_SUPPORTED in MIG mode.
func (n *Node) SetTimeSlice(name string, slice gpu.TimeSlice) error {
	return n.act("set the time slice", name, func(_ *state, g *board) nvml.Return {
		switch {
		case g.Lost:
			return nvml.ERROR_GPU_IS_LOST
		case g.MIG:
			return nvml.ERROR_NOT_SUPPORTED
		case slice.Validate() != nil:
			return nvml.ERROR_INVALID_ARGUMENT
		}
		g.TimeSlice, g.ComputeMode = slice, ""
		return nvml.SUCCESS
	})
}

// AddClient makes somebody open a board or an instance. One PID is one client of a board.
func (n *Node) AddClient(name string, c Client) error {
	return n.act(fmt.Sprintf("add client %d", c.PID), name, func(_ *state, g *board) nvml.Return { return g.addClient(c) })
}

func (g *board) addClient(c Client) nvml.Return {
	switch {
	case g.Lost:
		return nvml.ERROR_GPU_IS_LOST
	case c.PID <= 0 || slices.ContainsFunc(g.Clients, func(o Client) bool { return o.PID == c.PID }):
		return nvml.ERROR_INVALID_ARGUMENT
	case c.GI == nil && c.CI != nil:
		return nvml.ERROR_INVALID_ARGUMENT
	case c.GI != nil && (g.instance(*c.GI) == nil || c.CI != nil && g.instance(*c.GI).compute(*c.CI) == nil):
		return nvml.ERROR_NOT_FOUND
	case c.Process && c.CI == nil && (g.MIG || c.GI != nil):
		// MIG guide: a board in MIG mode runs no CUDA but on a compute instance.
		return nvml.ERROR_INVALID_ARGUMENT
	}
	g.Clients = append(g.Clients, c)
	return nvml.SUCCESS
}

// RemoveClient makes it go away.
func (n *Node) RemoveClient(name string, pid int) error {
	return n.act(fmt.Sprintf("remove client %d", pid), name, func(_ *state, g *board) nvml.Return {
		before := len(g.Clients)
		g.Clients = slices.DeleteFunc(g.Clients, func(c Client) bool { return c.PID == pid })
		if len(g.Clients) == before {
			return nvml.ERROR_NOT_FOUND
		}
		return nvml.SUCCESS
	})
}

// Xid reports an error event of a board, attributed to an instance or, with nil, to the whole board.
func (n *Node) Xid(name string, code uint64, gi, ci *int) error {
	return n.act(fmt.Sprintf("report Xid %d", code), name, func(s *state, g *board) nvml.Return {
		s.report(s.index(g), code, gi, ci)
		return nvml.SUCCESS
	})
}

// report logs an Xid, or a double-bit ECC error with the code 0.
func (s *state) report(index int, code uint64, gi, ci *int) {
	e := event{GPU: index, Xid: code, GI: unattributed, CI: unattributed}
	if gi != nil {
		e.GI = uint32(*gi)
	}
	if ci != nil {
		e.CI = uint32(*ci)
	}
	s.Events = append(s.Events, e)
	s.Events = s.Events[max(len(s.Events)-keptEvents, 0):]
	s.NextEvent++
}

// ECCErrors makes a board count that many more uncorrectable memory errors, and report a double-bit error.
func (n *Node) ECCErrors(name string, errors uint64) error {
	return n.act("count ECC errors", name, func(s *state, g *board) nvml.Return {
		g.UncorrectedECC += errors
		s.report(s.index(g), 0, nil, nil)
		return nvml.SUCCESS
	})
}

// RemapRows says whether rows of a board's memory wait for a reset to be remapped, and whether that has ever failed.
func (n *Node) RemapRows(name string, pending, failed bool) error {
	return n.act("remap rows", name, func(_ *state, g *board) nvml.Return {
		g.RemapPending, g.RemapFailed = pending, failed
		return nvml.SUCCESS
	})
}

// Lose makes a board fall off the bus: every call on it fails until Restore or Reboot.
func (n *Node) Lose(name string) error { return n.setLost(name, true) }

// Restore brings a lost board back, which hardware does with a reboot only. Its instances are as they were.
func (n *Node) Restore(name string) error { return n.setLost(name, false) }

func (n *Node) setLost(name string, lost bool) error {
	return n.act("lose or restore", name, func(_ *state, g *board) nvml.Return {
		g.Lost = lost
		g.TimeSlice, g.ComputeMode = "", ""
		return nvml.SUCCESS
	})
}

// Reset resets a board, as an administrator does. It fails with
// nvml.ERROR_IN_USE while there are clients; sessions of kerf it does not see,
// and their handles become invalid.
func (n *Node) Reset(name string) error {
	return n.act("reset", name, func(_ *state, g *board) nvml.Return {
		switch {
		case g.Lost:
			return nvml.ERROR_GPU_IS_LOST
		case len(g.Clients) > 0:
			return nvml.ERROR_IN_USE
		}
		g.reset()
		return nvml.SUCCESS
	})
}

// Reboot ends all sessions and clients and resets all boards. What real
// processes hold in memory is theirs to lose.
func (n *Node) Reboot() error {
	_, err := n.kernel.update(func(s *state) nvml.Return {
		s.reboot()
		return nvml.SUCCESS
	})
	return err
}
