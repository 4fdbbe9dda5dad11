package nvmlsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/kerf-project/kerf/pkg/gpu"
)

const (
	// stateVersion is the version of the file format.
	stateVersion = 1
	// keptEvents bounds the log; a session that sleeps through more has lost some, as with a real driver.
	keptEvents = 256
	// maxMinor is the last board minor that the driver's table of capabilities has.
	maxMinor = 31
)

// state is the whole simulated hardware of a node.
type state struct {
	Version int    `json:"version"`
	Seed    string `json:"seed,omitempty"`
	// Boot counts reboots: no session outlives one.
	Boot int `json:"boot"`
	// Majors are the device numbers that the simulated driver has registered.
	Majors majors  `json:"majors"`
	GPUs   []board `json:"gpus"`
	// Events are the last ones; the newest has the number NextEvent-1.
	Events    []event `json:"events,omitempty"`
	NextEvent uint64  `json:"nextEvent,omitempty"`
	// FaultCalls are the calls that each fault has counted, by its name.
	FaultCalls map[string]int `json:"faultCalls,omitempty"`
}

// majors are device majors by driver.
type majors struct {
	GPU  int `json:"nvidia"`
	Caps int `json:"nvidiaCaps"`
	UVM  int `json:"nvidiaUVM"`
}

// board is the state of one GPU.
type board struct {
	Model string `json:"model"`
	// table is the model's entry in the table of boards.
	table *gpu.Board
	UUID  string `json:"uuid"`
	Minor int    `json:"minor"`
	// Generation changes when all handles of the board become invalid.
	Generation int  `json:"generation,omitempty"`
	MIG        bool `json:"mig,omitempty"`
	Pending    bool `json:"pending,omitempty"`
	Lost       bool `json:"lost,omitempty"`
	// FabricReads is how often the fabric state is still read as being in progress.
	FabricReads int `json:"fabricReads,omitempty"`
	// UncorrectedECC counts uncorrectable memory errors since the last reset.
	UncorrectedECC uint64 `json:"uncorrectedECC,omitempty"`
	// RemapPending and RemapFailed are about broken rows of the memory.
	RemapPending bool       `json:"remapPending,omitempty"`
	RemapFailed  bool       `json:"remapFailed,omitempty"`
	Instances    []instance `json:"instances,omitempty"`
	Clients      []Client   `json:"clients,omitempty"`
	// TimeSlice and ComputeMode are what nvidia-smi has set, which writes them into
	// the file itself; empty: the default.
	TimeSlice   gpu.TimeSlice `json:"timeSlice,omitempty"`
	ComputeMode string        `json:"computeMode,omitempty"`
	Load        work          `json:"load,omitzero"`
}

type instance struct {
	ID int `json:"id"`
	// Profile is the driver's id of the GPU instance profile.
	Profile   int           `json:"profile"`
	Placement gpu.Placement `json:"placement"`
	Compute   []compute     `json:"compute,omitempty"`
	Load      work          `json:"load,omitzero"`
}

type compute struct {
	ID int `json:"id"`
	// Profile is the driver's id of the compute instance profile.
	Profile int `json:"profile"`
	// Start and Size are compute slices of the GPU instance.
	Start int `json:"start"`
	Size  int `json:"size"`
	// Index is the index of its MIG device.
	Index int `json:"index"`
}

func (c compute) place() gpu.Placement { return gpu.Placement{Start: c.Start, Size: c.Size} }

type event struct {
	GPU int `json:"gpu"`
	// Xid is 0 for a double-bit ECC error.
	Xid uint64 `json:"xid"`
	// GI and CI are unattributed where the event concerns the whole board.
	GI uint32 `json:"gi"`
	CI uint32 `json:"ci"`
}

// newState is the hardware of a node that was never used.
func newState(spec Spec, m majors) *state {
	s := &state{Version: stateVersion, Seed: spec.Seed, Majors: m}
	short := map[string]bool{}
	for i := range spec.Boards {
		b := &spec.Boards[i]
		g := board{Model: b.Name, table: b, Minor: i}
		// The first digits of a UUID name a board's devices; real ones hardly ever share them.
		for try := 0; g.UUID == "" || short[g.UUID[:12]]; try++ {
			g.UUID = "GPU-" + uuid.NewSHA1(uuid.NameSpaceOID, fmt.Appendf(nil, "kerf simulated GPU %s/%d/%d", spec.Seed, i, try)).String()
		}
		short[g.UUID[:12]] = true
		on := spec.MIG && len(b.Profiles) > 0
		g.MIG, g.Pending = on, on
		s.GPUs = append(s.GPUs, g)
	}
	return s
}

// decode reads a state file and refuses what the simulator can't have written.
func decode(data []byte) (*state, error) {
	s := &state{}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return nil, err
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("version %d is not %d", s.Version, stateVersion)
	}
	if len(s.GPUs) == 0 || len(s.GPUs) > MaxGPUs {
		return nil, fmt.Errorf("%d boards are not 1 to %d", len(s.GPUs), MaxGPUs)
	}
	minors := map[int]bool{}
	boards := gpu.Boards()
	for i := range s.GPUs {
		g := &s.GPUs[i]
		index := slices.IndexFunc(boards, func(b gpu.Board) bool { return b.Name == g.Model })
		if index < 0 {
			return nil, fmt.Errorf("GPU %d: unknown board %q", i, g.Model)
		}
		g.table = &boards[index]
		if err := g.validate(); err != nil {
			return nil, fmt.Errorf("GPU %d: %w", i, err)
		}
		if minors[g.Minor] {
			return nil, fmt.Errorf("GPU %d: minor %d is taken twice", i, g.Minor)
		}
		minors[g.Minor] = true
	}
	for _, e := range s.Events {
		if e.GPU < 0 || e.GPU >= len(s.GPUs) {
			return nil, fmt.Errorf("event of GPU %d", e.GPU)
		}
	}
	for name, calls := range s.FaultCalls {
		if name == "" || calls < 1 {
			return nil, fmt.Errorf("%d calls of fault %q", calls, name)
		}
	}
	if uint64(len(s.Events)) > s.NextEvent {
		return nil, errors.New("more events than were numbered")
	}
	return s, nil
}

func (g *board) validate() error {
	b := g.table
	if len(g.UUID) < 12 || !strings.HasPrefix(g.UUID, "GPU-") {
		return fmt.Errorf("UUID %q", g.UUID)
	}
	if g.Minor < 0 || g.Minor > maxMinor {
		return fmt.Errorf("minor %d", g.Minor)
	}
	if (g.MIG || g.Pending) && len(b.Profiles) == 0 {
		return errors.New("MIG on a board without")
	}
	if !g.MIG && len(g.Instances) > 0 {
		return errors.New("instances without MIG")
	}
	if err := g.TimeSlice.Validate(); err != nil || g.MIG && g.TimeSlice != "" {
		return errors.Join(fmt.Errorf("time slice %q", g.TimeSlice), err)
	}
	if !g.Load.valid() || g.MIG && g.Load != (work{}) {
		return errors.New("load")
	}
	for n, i := range g.Instances {
		if !i.Load.valid() {
			return fmt.Errorf("load of instance %d", i.ID)
		}
		p, ok := profileByID(b, i.Profile)
		if !ok || !slices.Contains(instanceIDs(p), i.ID) || !slices.Contains(p.Placements, i.Placement) {
			return fmt.Errorf("instance %d", i.ID)
		}
		for _, o := range g.Instances[:n] {
			other, _ := profileByID(b, o.Profile)
			if o.ID == i.ID || o.Placement.Overlaps(i.Placement) || holdsMedia(p) && holdsMedia(other) {
				return fmt.Errorf("instances %d and %d", o.ID, i.ID)
			}
		}
		for m, c := range i.Compute {
			shape, ok := computeProfileByID(b, p, c.Profile)
			if !ok || c.ID < 0 || c.Index < 0 || !slices.Contains(shape.places(p), c.place()) {
				return fmt.Errorf("compute instance %d of instance %d", c.ID, i.ID)
			}
			if slices.ContainsFunc(i.Compute[:m], func(o compute) bool { return o.ID == c.ID || o.place().Overlaps(c.place()) }) {
				return fmt.Errorf("compute instance %d of instance %d comes twice", c.ID, i.ID)
			}
		}
	}
	return nil
}

func (s *state) encode() ([]byte, error) { return json.Marshal(s) }

// clone is a deep copy.
func (s *state) clone() *state {
	c := *s
	c.GPUs = slices.Clone(s.GPUs)
	c.Events = slices.Clone(s.Events)
	c.FaultCalls = maps.Clone(s.FaultCalls)
	for i := range c.GPUs {
		g := &c.GPUs[i]
		g.Clients = slices.Clone(g.Clients)
		g.Instances = slices.Clone(g.Instances)
		for n := range g.Instances {
			g.Instances[n].Compute = slices.Clone(g.Instances[n].Compute)
		}
	}
	return &c
}

// count counts a call that concerns a fault.
func (s *state) count(fault string) {
	if s.FaultCalls == nil {
		s.FaultCalls = map[string]int{}
	}
	s.FaultCalls[fault]++
}

func (s *state) models() []string {
	all := make([]string, len(s.GPUs))
	for i, g := range s.GPUs {
		all[i] = g.Model
	}
	return all
}

func (s *state) index(g *board) int {
	return slices.IndexFunc(s.GPUs, func(o board) bool { return o.UUID == g.UUID })
}

func (g *board) instance(id int) *instance {
	for n := range g.Instances {
		if g.Instances[n].ID == id {
			return &g.Instances[n]
		}
	}
	return nil
}

func (i *instance) compute(id int) *compute {
	for n := range i.Compute {
		if i.Compute[n].ID == id {
			return &i.Compute[n]
		}
	}
	return nil
}

// migUUID depends on the board and the two ids alone, as with a real driver:
// the next instance with the same ids has the same UUID, whatever its profile.
func (g *board) migUUID(gi, ci int) string {
	return "MIG-" + uuid.NewSHA1(uuid.NameSpaceOID, fmt.Appendf(nil, "%s/%d/%d", g.UUID, gi, ci)).String()
}

// busID is as sysfs has it. Boards lie far enough apart for a root port each.
func busID(index int) string { return fmt.Sprintf("0000:%02x:00.0", bus(index)) }

func bus(index int) int { return 0x10 + 0x0d*index }

// numaNode puts the first half of the boards on one socket, the others on the second.
func numaNode(index, count int) int { return 2 * index / count }

func giMinor(gpuMinor, gi int) int { return gpu.CapabilityMinor(gpuMinor, gi, gpu.Whole) }

func ciMinor(gpuMinor, gi, ci int) int { return gpu.CapabilityMinor(gpuMinor, gi, ci) }
