// Package gpu is the model that every other package speaks: boards, GPUs, MIG
// profiles, placements and instances, the devices that are made of them and the
// conditions that they can be in. It holds plain values and the arithmetic on
// them. It imports neither Kubernetes nor NVML, and it never touches a host.
package gpu

import "fmt"

// Node is what one look at a node's driver and boards found.
type Node struct {
	// DriverVersion is the NVIDIA kernel driver's version as it reports it, for example "580.95.05".
	DriverVersion string
	// NVMLVersion is that of the library which talks to the driver: a number of its own, a dot, and the driver's version
	// that it belongs to, for example "13.580.95.05".
	NVMLVersion string
	// CUDADriverVersion is the highest CUDA version that the driver serves.
	CUDADriverVersion Version
	// GPUs are in the order of their PCI bus ids, which is stable over reboots.
	GPUs []GPU
}

// Version is a major.minor pair, such as a CUDA version or a compute capability.
type Version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
}

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// GPU is one board of a node at one moment.
type GPU struct {
	// UUID is "GPU-" and a UUID: the board's identity, stable over reboots and moves.
	UUID string
	// Index is NVML's index. It can change with a reboot and is only for people and handles.
	Index int
	// Minor is the N of /dev/nvidiaN. A change of the MIG mode can change it.
	Minor int
	// PCIBusID is lower case with a four digit domain, as sysfs has it: "0000:18:00.0".
	PCIBusID string
	// NUMANode is -1 where the platform does not say.
	NUMANode int
	// PCIeRoot is the root complex above the board, "pci0000:17", empty where
	// the platform does not say. Devices of other drivers name theirs likewise.
	PCIeRoot string

	ProductName       string
	Brand             string
	Architecture      string
	ComputeCapability Version
	// MemoryBytes is the board's whole memory.
	MemoryBytes uint64

	MIG MIGMode
	// ToggleNeedsReset is true where a change of the MIG mode takes effect only
	// with a GPU reset (A100), false where it takes effect at once (Hopper and later).
	ToggleNeedsReset bool
	// Profiles are the GPU instance profiles that the board can make. NVML lists
	// them whether MIG is on or off. Empty on boards without MIG.
	Profiles []Profile
	// Instances are the GPU instances that exist now, whoever made them, also
	// those without a compute instance. Ordered by placement.
	Instances []Instance
}

// MIGMode is the state of a GPU's MIG switch.
type MIGMode struct {
	// Capable is false on boards without MIG (L40S, A10G).
	Capable bool
	Current bool
	// Pending differs from Current where a change waits for a reset.
	Pending bool
}

// Profile returns the profile of that name.
func (g *GPU) Profile(name string) (Profile, bool) {
	for _, p := range g.Profiles {
		if p.Name == name {
			return p, true
		}
	}
	return Profile{}, false
}

// InstanceAt returns the instance that has exactly this profile and placement.
func (g *GPU) InstanceAt(profile string, at Placement) (Instance, bool) {
	for _, i := range g.Instances {
		if i.Profile == profile && i.Placement == at {
			return i, true
		}
	}
	return Instance{}, false
}

// Collide reports whether two devices cannot be in use at once: they overlap, or
// both take the GPU's one set of media engines, wherever they lie. (A profile of
// the whole board takes it too, and overlaps everything anyway.)
func (g *GPU) Collide(a, b Device) bool {
	if a.Overlaps(b) || a.GPU != g.UUID || b.GPU != g.UUID || a.Type != TypeMIG || b.Type != TypeMIG {
		return a.Overlaps(b)
	}
	p, _ := g.Profile(a.Profile)
	q, _ := g.Profile(b.Profile)
	return p.MediaExtensions && q.MediaExtensions
}

// Blocker returns the first of the GPU's instances that collides with a device.
func (g *GPU) Blocker(d Device) (Instance, bool) {
	for _, i := range g.Instances {
		if g.Collide(d, i.Device()) {
			return i, true
		}
	}
	return Instance{}, false
}

// Profile is a shape of GPU instance that a board can make.
type Profile struct {
	// Name is canonical: "1g.10gb", "1g.10gb+me". It is unique on a board.
	Name string `json:"name"`
	// ID is the driver's id of the profile. It differs between boards: never compare it with a constant.
	ID int `json:"id"`
	// ComputeSlices is the number in front of the "g".
	ComputeSlices int `json:"computeSlices"`
	// MediaExtensions is true for a profile that takes the board's one set of
	// media engines although it is smaller than the board ("+me").
	MediaExtensions bool   `json:"mediaExtensions,omitempty"`
	MemoryMiB       uint64 `json:"memoryMiB"`
	Multiprocessors int    `json:"multiprocessors"`
	CopyEngines     int    `json:"copyEngines"`
	Decoders        int    `json:"decoders"`
	Encoders        int    `json:"encoders"`
	JPEGEngines     int    `json:"jpegEngines"`
	OFAEngines      int    `json:"ofaEngines"`
	// Placements are all the places where the board can put it, by start.
	Placements []Placement `json:"placements"`
}

// Placement is a run of memory slices that an instance covers.
type Placement struct {
	Start int `json:"start"`
	Size  int `json:"size"`
}

func (p Placement) String() string { return fmt.Sprintf("%d:%d", p.Start, p.Size) }

// Overlaps reports whether the two share a memory slice.
func (p Placement) Overlaps(o Placement) bool {
	return p.Start < o.Start+o.Size && o.Start < p.Start+p.Size
}

// Instance is a GPU instance with its compute instances.
type Instance struct {
	GPU string `json:"gpu"`
	// Profile is the canonical name of the GPU instance's profile.
	Profile   string    `json:"profile"`
	Placement Placement `json:"placement"`
	// ID is the driver's id of the GPU instance. It is no function of the
	// placement, and the driver gives it again after a destroy.
	ID int `json:"id"`
	// Compute are its compute instances: one in all that kerf makes, none after
	// a creation that was cut off, several where an administrator split it.
	Compute []ComputeInstance `json:"compute,omitempty"`
}

// ComputeInstance is the part of a GPU instance that programs run on.
type ComputeInstance struct {
	ID int `json:"id"`
	// UUID is "MIG-" and a UUID. It depends on GPU, GPU instance id and compute
	// instance id alone, so another profile can bear it later: it is no identity.
	UUID string `json:"uuid"`
	// Whole is true where it spans all compute slices of its GPU instance.
	Whole bool `json:"whole,omitempty"`
}

// Usable reports whether a container can be given the instance as one device:
// exactly one compute instance, over all of its compute slices.
func (i *Instance) Usable() bool { return len(i.Compute) == 1 && i.Compute[0].Whole }

// Device is the device that the instance realizes.
func (i *Instance) Device() Device {
	return Device{Type: TypeMIG, GPU: i.GPU, Profile: i.Profile, Placement: i.Placement}
}

// Same reports whether both are the same instance: GPU, profile, placement and
// every id. A UUID alone would not do, because the driver reuses it.
func (i *Instance) Same(o Instance) bool {
	if i.GPU != o.GPU || i.Profile != o.Profile || i.Placement != o.Placement || i.ID != o.ID || len(i.Compute) != len(o.Compute) {
		return false
	}
	for n := range i.Compute {
		if i.Compute[n].ID != o.Compute[n].ID || i.Compute[n].UUID != o.Compute[n].UUID {
			return false
		}
	}
	return true
}

func (i *Instance) String() string {
	return fmt.Sprintf("%s at %s (GPU instance %d) on %s", i.Profile, i.Placement, i.ID, i.GPU)
}

// Process is a process that holds a GPU or an instance open.
type Process struct {
	PID int
	// Command is the executable's name, empty where /proc does not say.
	Command string
	// GPUInstance is the id of the GPU instance that it is on, -1 where it is on
	// the board itself or the driver does not say.
	GPUInstance int
	// InPod is true where the process belongs to a pod of the kubelet.
	InPod bool
}

func (p Process) String() string {
	if p.Command == "" {
		return fmt.Sprintf("pid %d", p.PID)
	}
	return fmt.Sprintf("pid %d (%s)", p.PID, p.Command)
}
