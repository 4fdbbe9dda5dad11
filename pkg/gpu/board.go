package gpu

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Board is what is known of a board model without asking one. A driver always
// asks the hardware; the table is for the simulator, for what-if questions and
// for checking a real board against it.
type Board struct {
	// Name is how specifications of fleets and simulated nodes name the model.
	Name string
	// ProductName is what the driver reports.
	ProductName       string
	Brand             string
	Architecture      string
	ComputeCapability Version
	// PCIDevice is the PCI device id below NVIDIA's vendor id 0x10DE.
	PCIDevice uint16
	// MemoryMiB is the board's whole memory as the driver reports it.
	MemoryMiB       uint64
	Multiprocessors int
	// ToggleNeedsReset: see GPU.
	ToggleNeedsReset bool
	// NVSwitch is true for boards whose GPUs are joined by switches (HGX
	// baseboards) and so have a fabric state.
	NVSwitch bool
	// Profiles is empty on boards without MIG.
	Profiles []Profile
}

// profileIDs are the driver's ids, shared by A100, H100 and H200 (MIG guide, v580).
const (
	id1g       = 19
	id1gME     = 20
	id1gDouble = 15
	id2g       = 14
	id3g       = 9
	id4g       = 5
	id7g       = 0
)

func placements(size int, starts ...int) []Placement {
	all := make([]Placement, len(starts))
	for i, s := range starts {
		all[i] = Placement{Start: s, Size: size}
	}
	return all
}

// family is what the boards of one architecture share: the engines of the
// profiles, in the order 1g, 1g+me, 1g double, 2g, 3g, 4g, 7g.
type family struct {
	copyEngines, decoders, jpeg, ofa [7]int
}

var (
	// Copy engines, decoders, JPEG and OFA: MIG guide v580, A100 table.
	ampere = family{
		copyEngines: [7]int{1, 1, 1, 2, 3, 4, 7},
		decoders:    [7]int{0, 1, 1, 1, 2, 2, 5},
		jpeg:        [7]int{0, 1, 0, 0, 0, 0, 1},
		ofa:         [7]int{0, 1, 0, 0, 0, 0, 1},
	}
	// MIG guide v580, H100 and H200 tables.
	hopper = family{
		copyEngines: [7]int{1, 1, 1, 2, 3, 4, 8},
		decoders:    [7]int{1, 1, 1, 2, 3, 4, 7},
		jpeg:        [7]int{1, 1, 1, 2, 3, 4, 7},
		ofa:         [7]int{0, 1, 0, 0, 0, 0, 1},
	}
)

// profiles builds the seven profiles of a MIG board. Memory in MiB and SMs are
// in the order 1g, 1g double, 2g, 3g, 4g, 7g; gb are the sizes in the names.
func (f family) profiles(gb [6]int, memory [6]uint64, sms [6]int) []Profile {
	shape := func(row, id, slices, column int, suffix string, at []Placement) Profile {
		return Profile{
			Name: fmt.Sprintf("%dg.%dgb%s", slices, gb[column], suffix), ID: id, ComputeSlices: slices, MediaExtensions: suffix != "",
			MemoryMiB: memory[column], Multiprocessors: sms[column],
			CopyEngines: f.copyEngines[row], Decoders: f.decoders[row], JPEGEngines: f.jpeg[row], OFAEngines: f.ofa[row],
			Placements: at,
		}
	}
	// Placements: MIG guide v580, the same on all boards of eight memory slices.
	return []Profile{
		shape(0, id1g, 1, 0, "", placements(1, 0, 1, 2, 3, 4, 5, 6)),
		shape(1, id1gME, 1, 0, "+me", placements(1, 0, 1, 2, 3, 4, 5, 6)),
		shape(2, id1gDouble, 1, 1, "", placements(2, 0, 2, 4, 6)),
		shape(3, id2g, 2, 2, "", placements(2, 0, 2, 4)),
		shape(4, id3g, 3, 3, "", placements(4, 0, 4)),
		shape(5, id4g, 4, 4, "", placements(4, 0)),
		shape(6, id7g, 7, 5, "", placements(8, 0)),
	}
}

// Boards is the table of the models in scope. Profiles: MIG guide v580 and
// published listings of GPU instance profiles. PCI ids: the PCI ID repository.
// Whole-board memory: published nvidia-smi listings.
func Boards() []Board {
	return []Board{
		{
			Name: "A100-SXM4-40GB", ProductName: "NVIDIA A100-SXM4-40GB", Brand: "Nvidia", Architecture: "Ampere",
			ComputeCapability: Version{8, 0}, PCIDevice: 0x20B0, MemoryMiB: 40960, Multiprocessors: 108, ToggleNeedsReset: true, NVSwitch: true,
			Profiles: ampere.profiles([6]int{5, 10, 10, 20, 20, 40}, [6]uint64{4864, 9856, 9856, 19968, 19968, 40192}, [6]int{14, 14, 28, 42, 56, 98}),
		},
		{
			Name: "A100-SXM4-80GB", ProductName: "NVIDIA A100-SXM4-80GB", Brand: "Nvidia", Architecture: "Ampere",
			ComputeCapability: Version{8, 0}, PCIDevice: 0x20B2, MemoryMiB: 81920, Multiprocessors: 108, ToggleNeedsReset: true, NVSwitch: true,
			Profiles: ampere.profiles([6]int{10, 20, 20, 40, 40, 80}, [6]uint64{9728, 19968, 19968, 40192, 40192, 80896}, [6]int{14, 14, 28, 42, 56, 98}),
		},
		{
			Name: "H100-SXM5-80GB", ProductName: "NVIDIA H100 80GB HBM3", Brand: "Nvidia", Architecture: "Hopper",
			ComputeCapability: Version{9, 0}, PCIDevice: 0x2330, MemoryMiB: 81559, Multiprocessors: 132, NVSwitch: true,
			// 20096 is read off listings that round to GiB [inferred].
			Profiles: hopper.profiles([6]int{10, 20, 20, 40, 40, 80}, [6]uint64{9984, 20096, 20096, 40448, 40448, 81152}, [6]int{16, 26, 32, 60, 64, 132}),
		},
		{
			Name: "H100-PCIe-80GB", ProductName: "NVIDIA H100 PCIe", Brand: "Nvidia", Architecture: "Hopper",
			ComputeCapability: Version{9, 0}, PCIDevice: 0x2331, MemoryMiB: 81559, Multiprocessors: 114,
			Profiles: hopper.profiles([6]int{10, 20, 20, 40, 40, 80}, [6]uint64{9984, 20096, 20096, 40448, 40448, 81152}, [6]int{14, 14, 30, 46, 62, 114}),
		},
		{
			Name: "H100-NVL-94GB", ProductName: "NVIDIA H100 NVL", Brand: "Nvidia", Architecture: "Hopper",
			ComputeCapability: Version{9, 0}, PCIDevice: 0x2321, MemoryMiB: 95830, Multiprocessors: 132,
			// 22144 and 95360 are read off listings that round to GiB [inferred].
			Profiles: hopper.profiles([6]int{12, 24, 24, 47, 47, 94}, [6]uint64{11008, 22144, 22144, 47488, 47488, 95360}, [6]int{16, 26, 32, 60, 64, 132}),
		},
		{
			Name: "H200-SXM-141GB", ProductName: "NVIDIA H200", Brand: "Nvidia", Architecture: "Hopper",
			ComputeCapability: Version{9, 0}, PCIDevice: 0x2335, MemoryMiB: 143771, Multiprocessors: 132, NVSwitch: true,
			// 143360 is read off listings that round to GiB [inferred].
			Profiles: hopper.profiles([6]int{18, 35, 35, 71, 71, 141}, [6]uint64{16384, 33024, 33024, 71168, 71168, 143360}, [6]int{16, 26, 32, 60, 64, 132}),
		},
		{
			Name: "L40S", ProductName: "NVIDIA L40S", Brand: "Nvidia", Architecture: "Ada Lovelace",
			ComputeCapability: Version{8, 9}, PCIDevice: 0x26B9, MemoryMiB: 46068, Multiprocessors: 142,
		},
		{
			Name: "A10G", ProductName: "NVIDIA A10G", Brand: "Nvidia", Architecture: "Ampere",
			ComputeCapability: Version{8, 6}, PCIDevice: 0x2237, MemoryMiB: 23028, Multiprocessors: 80,
		},
	}
}

// BoardByName finds a model, in any case, or says which there are.
func BoardByName(name string) (Board, error) {
	boards := Boards()
	i := slices.IndexFunc(boards, func(b Board) bool { return strings.EqualFold(b.Name, name) })
	if i < 0 {
		names := make([]string, len(boards))
		for n, b := range boards {
			names[n] = b.Name
		}
		return Board{}, fmt.Errorf("unknown board %q: known are %s", name, strings.Join(names, ", "))
	}
	return boards[i], nil
}

// CapabilityMinor is the minor of the device node that admits to a compute
// instance or, with the compute instance Whole, to a GPU instance, of the board
// that is /dev/nvidia<boardMinor>. Published samples of the driver's table
// mig-minors fit it. Like the table of boards it is for simulation and for
// comparison: who works with hardware reads the driver's table.
func CapabilityMinor(boardMinor, gi, ci int) int {
	minor := 3 + boardMinor*135 + gi*9
	if ci != Whole {
		minor += 1 + ci
	}
	return minor
}

// MaxBoards is how many boards a node can have, more than any server holds.
const MaxBoards = 16

// ParseBoards reads the boards of a node: "8xH100-SXM5-80GB,2xL40S", where the
// number may be left out for one board.
func ParseBoards(text string) ([]Board, error) {
	var all []Board
	for part := range strings.SplitSeq(text, ",") {
		count, name := 1, strings.TrimSpace(part)
		if number, rest, ok := strings.Cut(name, "x"); ok {
			if n, err := strconv.Atoi(number); err == nil {
				count, name = n, rest
			}
		}
		b, err := BoardByName(name)
		if err != nil {
			return nil, err
		}
		if count < 1 || len(all)+count > MaxBoards {
			return nil, fmt.Errorf("%q: a node has 1 to %d boards", text, MaxBoards)
		}
		all = append(all, slices.Repeat([]Board{b}, count)...)
	}
	return all, nil
}
