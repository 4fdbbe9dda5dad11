package diagnose

import (
	"fmt"
	"time"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// reportVersion is that of the report's JSON form, which docs/diagnose.schema.json describes.
const reportVersion = 1

// Status is how a check ended.
type Status string

// The statuses, from good to bad. Warn is what works now and will not always, or
// what somebody should know; Fail is what keeps claims from working.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Report is what one look at a node found.
type Report struct {
	Version int `json:"version"`
	// Kerf is the version of the program that looked, At when.
	Kerf string    `json:"kerf"`
	At   time.Time `json:"at"`
	// Status is the worst of the checks.
	Status Status `json:"status"`
	Node   Node   `json:"node"`
	GPUs   []GPU  `json:"gpus"`
	// Claims are those that have a record on the node, or a device of it in the API.
	Claims []Claim   `json:"claims"`
	Checks []Finding `json:"checks"`
	// NotLookedAt says what could not be looked at, and why.
	NotLookedAt []string   `json:"notLookedAt,omitempty"`
	SelfCheck   *SelfCheck `json:"selfCheck,omitempty"`
}

// Looked reports whether the GPUs were seen at all.
func (r *Report) Looked() bool { return r.Node.DriverVersion != "" }

// Node is whose GPUs they are, and the versions of what serves them. What is not known is empty.
type Node struct {
	Name string `json:"name,omitempty"`
	// Simulated is true where the GPUs are.
	Simulated     bool   `json:"simulated,omitempty"`
	DriverVersion string `json:"driverVersion,omitempty"`
	NVMLVersion   string `json:"nvmlVersion,omitempty"`
	CUDAVersion   string `json:"cudaVersion,omitempty"`
	// Server, Kubelet and Runtime are versions that the API tells.
	Server  string `json:"server,omitempty"`
	Kubelet string `json:"kubelet,omitempty"`
	Runtime string `json:"runtime,omitempty"`
}

// GPU is the picture of one board.
type GPU struct {
	// Name is the first part of the names of its devices.
	Name        string `json:"name"`
	UUID        string `json:"uuid,omitempty"`
	Index       int    `json:"index"`
	PCIBusID    string `json:"pciBusID,omitempty"`
	ProductName string `json:"productName,omitempty"`
	MIG         MIG    `json:"mig"`
	// Unread is why it could not be read; what is told then is what was published last.
	Unread      string `json:"unread,omitempty"`
	Celsius     *int   `json:"celsius,omitempty"`
	MemoryBytes uint64 `json:"memoryBytes,omitempty"`
	// UsedBytes counts all memory in use, MIG instances' too.
	UsedBytes  *uint64     `json:"usedBytes,omitempty"`
	Conditions []Condition `json:"conditions,omitempty"`
	// Slices is the number of memory slices, 1 on boards without MIG.
	Slices int `json:"slices"`
	// Rows are what is on the board: one row, or where it is shared in time one for each share. The spans of a row
	// cover all slices, from the first to the last.
	Rows [][]Span `json:"rows"`
}

// MIG is the state of a board's MIG mode.
type MIG struct {
	Capable bool `json:"capable"`
	Current bool `json:"current"`
	Pending bool `json:"pending"`
}

func (m MIG) String() string {
	onOff := map[bool]string{true: "on", false: "off"}
	switch {
	case !m.Capable:
		return "no MIG"
	case m.Current != m.Pending:
		return fmt.Sprintf("MIG %s, %s pending", onOff[m.Current], onOff[m.Pending])
	default:
		return "MIG " + onOff[m.Current]
	}
}

// Condition is something that is wrong with a board or with a part of it.
type Condition struct {
	Device  string     `json:"device"`
	Reason  string     `json:"reason"`
	Effect  gpu.Effect `json:"effect"`
	Message string     `json:"message,omitempty"`
	Since   time.Time  `json:"since,omitzero"`
}

// Use is what a span is used for.
type Use string

// The uses.
const (
	// Free: nothing is there.
	Free Use = "free"
	// Unknown: the board could not be read, and no record says that anything is there.
	Unknown Use = "unknown"
	// Claimed: a claim has it.
	Claimed Use = "claim"
	// Allocated: a claim in the API is allocated it, and it is not prepared on the node.
	Allocated Use = "allocated"
	// Idle: an instance that is kept for the next claim of its shape.
	Idle Use = "idle"
	// Foreign: an instance that kerf did not make and no claim has.
	Foreign Use = "foreign"
	// Releasing: it is being given back.
	Releasing Use = "releasing"
)

// Span is a run of memory slices with one use.
type Span struct {
	Start int `json:"start"`
	Size  int `json:"size"`
	Use   Use `json:"use"`
	// Type and Profile are empty where nothing is there, Profile also on what is no MIG instance.
	Type    gpu.DeviceType `json:"type,omitempty"`
	Profile string         `json:"profile,omitempty"`
	// Device is the published name.
	Device string `json:"device,omitempty"`
	// Claim is namespace/name of who has it, ClaimState as in Claim.
	Claim      string `json:"claim,omitempty"`
	ClaimState string `json:"claimState,omitempty"`
	// GPUInstance and MIG are the id and the UUID of an instance that exists.
	GPUInstance *int   `json:"gpuInstance,omitempty"`
	MIG         string `json:"migUUID,omitempty"`
}

// empty reports whether nothing is known to be there.
func (s Span) empty() bool { return s.Use == Free || s.Use == Unknown }

// what names the span's device for people.
func (s Span) what() string {
	switch s.Type {
	case gpu.TypeGPU:
		return "whole GPU"
	case gpu.TypeTimeSlice:
		return "time-slice"
	default:
		return s.Profile
	}
}

// who names the span's holder for people.
func (s Span) who() string {
	switch {
	case s.empty():
		return ""
	case s.Use == Releasing && s.Claim != "":
		return s.Claim + " (releasing)"
	case s.Claim != "":
		return s.Claim
	default:
		return string(s.Use)
	}
}

// The states of a claim in the API, after the status of resource.k8s.io/v1.
const (
	// statePending: it has no allocation.
	statePending = "Pending"
	// stateAllocated: it has one, and no pod may use it.
	stateAllocated = "Allocated"
	// stateReserved: a pod may use it.
	stateReserved = "Reserved"
	// stateInUse: a pod may, and this node has prepared its devices.
	stateInUse = "InUse"
	// stateGone: the API has no such claim, or another of that name.
	stateGone = "Gone"
)

// Claim is a claim with devices of the node.
type Claim struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	// State is Pending, Allocated, Reserved, InUse or Gone; empty where the API was not looked at.
	State string `json:"state,omitempty"`
	// Record is the state of its record on the node, empty where it has none.
	Record  journal.ClaimState `json:"record,omitempty"`
	Devices []string           `json:"devices"`
	// Pods are those that may use it.
	Pods []string `json:"pods,omitempty"`
}

// shown is the state for people: that of the API, or else that of the record.
func (c Claim) shown() string {
	if c.State != "" {
		return c.State
	}
	return string(c.Record)
}

// Finding is the outcome of a check, or one of several.
type Finding struct {
	// Check is the name of the check.
	Check  string `json:"check"`
	Status Status `json:"status"`
	// About is what it is about, where there are several of its kind: a GPU, a claim, a file.
	About string `json:"about,omitempty"`
	// Cause is what was found: of a fault, why it is one.
	Cause string `json:"cause"`
	// Cure is what to do; empty where nothing is wrong.
	Cure string `json:"cure,omitempty"`
}

func fail(about, cure, cause string, args ...any) Finding {
	return Finding{Status: Fail, About: about, Cause: fmt.Sprintf(cause, args...), Cure: cure}
}

func warn(about, cure, cause string, args ...any) Finding {
	return Finding{Status: Warn, About: about, Cause: fmt.Sprintf(cause, args...), Cure: cure}
}
