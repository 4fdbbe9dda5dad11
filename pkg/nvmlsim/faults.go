package nvmlsim

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"sigs.k8s.io/yaml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// fault is one rule of a faults file: which calls it concerns and what happens
// to them. The package comment says what the fields mean.
type fault struct {
	Name string `json:"name"`

	Operation string `json:"operation,omitempty"`
	GPU       *int   `json:"gpu,omitempty"`
	Call      int    `json:"call,omitempty"`
	Times     int    `json:"times,omitempty"`
	Forever   bool   `json:"forever,omitempty"`
	After     bool   `json:"after,omitempty"`

	Return     string           `json:"return,omitempty"`
	Activation string           `json:"activation,omitempty"`
	Delay      string           `json:"delay,omitempty"`
	Hang       bool             `json:"hang,omitempty"`
	Crash      bool             `json:"crash,omitempty"`
	Lose       bool             `json:"lose,omitempty"`
	Client     *Client          `json:"client,omitempty"`
	Instance   *foreignInstance `json:"instance,omitempty"`
	Xid        *xid             `json:"xid,omitempty"`

	// These are the texts above, parsed.
	ret, activation nvml.Return
	delay           time.Duration
}

// foreignInstance is an instance that somebody else makes.
type foreignInstance struct {
	Profile string `json:"profile"`
	// Placement is the driver's choice where it is not given.
	Placement *gpu.Placement `json:"placement,omitempty"`
	// NoComputeInstance leaves it without.
	NoComputeInstance bool `json:"noComputeInstance,omitempty"`
}

// xid is an error event, of the whole board where no instance is named.
type xid struct {
	Code uint64 `json:"code"`
	GI   *int   `json:"gpuInstance,omitempty"`
	CI   *int   `json:"computeInstance,omitempty"`
}

// changing are the operations that have an effect on a board.
var changing = []string{
	"ComputeInstanceDestroy", "CreateComputeInstance", "CreateComputeInstanceWithPlacement",
	"CreateGpuInstance", "CreateGpuInstanceWithPlacement", "GpuInstanceDestroy", "SetMigMode",
}

// reading are the other operations.
var reading = []string{
	"ComputeInstanceGetInfo", "DeviceGetCount", "DeviceGetHandleByIndex", "DeviceGetHandleByPciBusId", "DeviceGetHandleBySerial",
	"DeviceGetHandleByUUID", "EventSetCreate", "EventSetWait", "GetArchitecture", "GetAttributes", "GetBoardPartNumber", "GetBrand",
	"GetComputeInstanceById", "GetComputeInstanceId", "GetComputeInstancePossiblePlacements", "GetComputeInstanceProfileInfo",
	"GetComputeInstanceRemainingCapacity", "GetComputeInstances", "GetComputeMode", "GetComputeRunningProcesses", "GetCudaComputeCapability",
	"GetDeviceHandleFromMigDeviceHandle", "GetEccMode", "GetGpuFabricInfo", "GetGpuInstanceById", "GetGpuInstanceId",
	"GetGpuInstancePossiblePlacements", "GetGpuInstanceProfileInfo", "GetGpuInstanceRemainingCapacity", "GetGpuInstances",
	"GetGraphicsRunningProcesses", "GetIndex", "GetMaxMigDeviceCount", "GetMemoryInfo", "GetMigDeviceHandleByIndex", "GetMigMode",
	"GetMinorNumber", "GetName", "GetNumGpuCores", "GetPciInfo", "GetPersistenceMode", "GetPowerUsage", "GetRemappedRows", "GetSerial",
	"GetSupportedEventTypes", "GetTemperature", "GetTotalEccErrors", "GetUUID", "GetUtilizationRates", "GetVbiosVersion",
	"GpmMetricsGet", "GpmMigSampleGet", "GpmQueryDeviceSupport", "GpmSampleAlloc", "GpuInstanceGetInfo", "Init", "IsMigDeviceHandle", "RegisterEvents", "Shutdown", "SystemGetCudaDriverVersion",
	"SystemGetDriverVersion", "SystemGetNVMLVersion", "SystemGetProcessName",
}

// Operations are the names of the calls that faults can be keyed by, those that
// have an effect first. They are the methods of go-nvml, with the handle's kind
// before the name where handles of several kinds have a method of that name.
func Operations() []string { return slices.Concat(changing, reading) }

// parseFaults reads a faults file for a node of so many boards.
func parseFaults(data []byte, boards int) ([]fault, error) {
	var file struct {
		Faults []fault `json:"faults"`
	}
	if err := yaml.UnmarshalStrict(data, &file); err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for i := range file.Faults {
		f := &file.Faults[i]
		if f.Name == "" {
			return nil, fmt.Errorf("faults[%d]: a fault needs a name", i)
		}
		if names[f.Name] {
			return nil, fmt.Errorf("fault %q: the name is given twice", f.Name)
		}
		names[f.Name] = true
		if err := f.complete(boards); err != nil {
			return nil, fmt.Errorf("fault %q: %w", f.Name, err)
		}
	}
	return file.Faults, nil
}

// complete checks a fault, sets its defaults and parses its texts.
func (f *fault) complete(boards int) (err error) {
	switch {
	case f.Operation != "" && !slices.Contains(Operations(), f.Operation):
		return fmt.Errorf("operation %q is unknown: known are %s", f.Operation, strings.Join(Operations(), ", "))
	case f.GPU != nil && (*f.GPU < 0 || *f.GPU >= boards):
		return fmt.Errorf("gpu %d is not among the %d of the node", *f.GPU, boards)
	case f.Call < 0 || f.Times < 0:
		return errors.New("call and times are counted from 1")
	case f.Forever && f.Times != 0:
		return errors.New("it has times and is forever")
	case f.After && f.Operation != "" && !slices.Contains(changing, f.Operation):
		return fmt.Errorf("%s has no effect for it to come after: only %s have", f.Operation, strings.Join(changing, ", "))
	}
	f.Call, f.Times = max(f.Call, 1), max(f.Times, 1)
	if f.kinds() > 1 {
		return errors.New("it is of several kinds: give each a fault of its own")
	}
	switch {
	case f.Return != "":
		f.ret, err = parseReturn(f.Return)
	case f.Activation != "" && (f.Operation != "SetMigMode" || f.After):
		err = errors.New("activation is the second answer of the operation SetMigMode, and not after it")
	case f.Activation != "":
		f.activation, err = parseReturn(f.Activation)
	case f.Delay != "":
		if f.delay, err = time.ParseDuration(f.Delay); err == nil && f.delay <= 0 {
			err = fmt.Errorf("delay %s is not positive", f.Delay)
		}
	case f.Instance != nil && f.Instance.Profile == "":
		err = errors.New("the instance has no profile")
	}
	return err
}

// kinds is how many things are to happen: one, or none where the fault only counts.
func (f *fault) kinds() (n int) {
	for _, given := range []bool{
		f.Return != "", f.Activation != "", f.Delay != "", f.Hang, f.Crash, f.Lose, f.Client != nil, f.Instance != nil, f.Xid != nil,
	} {
		if given {
			n++
		}
	}
	return n
}

// parseReturn reads an error of NVML by its name in nvml.h, with or without NVML_ERROR_ or ERROR_ before it.
func parseReturn(text string) (nvml.Return, error) {
	name := strings.TrimPrefix(strings.TrimPrefix(text, "NVML_"), "ERROR_")
	for ret, known := range returns {
		if name == known {
			return ret, nil
		}
	}
	return nvml.SUCCESS, fmt.Errorf("%q is no error of NVML such as IN_USE", text)
}

// returns are the errors that nvml.h knows. go-nvml has their names only while no library is loaded.
var returns = map[nvml.Return]string{
	nvml.ERROR_UNINITIALIZED: "UNINITIALIZED", nvml.ERROR_INVALID_ARGUMENT: "INVALID_ARGUMENT", nvml.ERROR_NOT_SUPPORTED: "NOT_SUPPORTED",
	nvml.ERROR_NO_PERMISSION: "NO_PERMISSION", nvml.ERROR_ALREADY_INITIALIZED: "ALREADY_INITIALIZED", nvml.ERROR_NOT_FOUND: "NOT_FOUND",
	nvml.ERROR_INSUFFICIENT_SIZE: "INSUFFICIENT_SIZE", nvml.ERROR_INSUFFICIENT_POWER: "INSUFFICIENT_POWER", nvml.ERROR_DRIVER_NOT_LOADED: "DRIVER_NOT_LOADED",
	nvml.ERROR_TIMEOUT: "TIMEOUT", nvml.ERROR_IRQ_ISSUE: "IRQ_ISSUE", nvml.ERROR_LIBRARY_NOT_FOUND: "LIBRARY_NOT_FOUND",
	nvml.ERROR_FUNCTION_NOT_FOUND: "FUNCTION_NOT_FOUND", nvml.ERROR_CORRUPTED_INFOROM: "CORRUPTED_INFOROM", nvml.ERROR_GPU_IS_LOST: "GPU_IS_LOST",
	nvml.ERROR_RESET_REQUIRED: "RESET_REQUIRED", nvml.ERROR_OPERATING_SYSTEM: "OPERATING_SYSTEM", nvml.ERROR_LIB_RM_VERSION_MISMATCH: "LIB_RM_VERSION_MISMATCH",
	nvml.ERROR_IN_USE: "IN_USE", nvml.ERROR_MEMORY: "MEMORY", nvml.ERROR_NO_DATA: "NO_DATA", nvml.ERROR_VGPU_ECC_NOT_SUPPORTED: "VGPU_ECC_NOT_SUPPORTED",
	nvml.ERROR_INSUFFICIENT_RESOURCES: "INSUFFICIENT_RESOURCES", nvml.ERROR_FREQ_NOT_SUPPORTED: "FREQ_NOT_SUPPORTED",
	nvml.ERROR_ARGUMENT_VERSION_MISMATCH: "ARGUMENT_VERSION_MISMATCH", nvml.ERROR_DEPRECATED: "DEPRECATED", nvml.ERROR_NOT_READY: "NOT_READY",
	nvml.ERROR_GPU_NOT_FOUND: "GPU_NOT_FOUND", nvml.ERROR_INVALID_STATE: "INVALID_STATE", nvml.ERROR_RESET_TYPE_NOT_SUPPORTED: "RESET_TYPE_NOT_SUPPORTED",
	nvml.ERROR_UNKNOWN: "UNKNOWN",
}

// matches reports whether a call is one of those that the fault counts. What
// happens to a board happens to that of the call, so a call without one does not count there.
func (f *fault) matches(op string, index int, after bool) bool {
	switch {
	case f.After != after || after && !slices.Contains(changing, op) || f.Operation != "" && f.Operation != op || f.GPU != nil && *f.GPU != index:
		return false
	case f.Lose || f.Client != nil || f.Instance != nil || f.Xid != nil:
		return index >= 0
	default:
		return true
	}
}

// due reports whether it is the turn of that call among those that match.
func (f *fault) due(call int) bool {
	return call >= f.Call && (f.Forever || call-f.Call < f.Times)
}

// happen changes the board as the fault says, if that is what it does.
func (f *fault) happen(s *state, g *board) nvml.Return {
	switch {
	case f.Lose:
		g.Lost = true
	case f.Client != nil:
		return g.addClient(*f.Client)
	case f.Instance != nil:
		_, ret := g.createForeign(f.Instance.Profile, f.Instance.Placement, !f.Instance.NoComputeInstance)
		return ret
	case f.Xid != nil:
		s.report(s.index(g), f.Xid.Code, f.Xid.GI, f.Xid.CI)
	}
	return nvml.SUCCESS
}

// faultsFile is a faults file as it was last read.
type faultsFile struct {
	path   string
	boards int
	info   os.FileInfo
	faults []fault
}

// read gives the faults as they are now, none where the file is gone.
func (f *faultsFile) read() ([]fault, error) {
	info, err := os.Stat(f.path)
	if errors.Is(err, os.ErrNotExist) {
		f.info, f.faults = nil, nil
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if f.info != nil && os.SameFile(info, f.info) && info.ModTime().Equal(f.info.ModTime()) && info.Size() == f.info.Size() {
		return f.faults, nil
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		return nil, err
	}
	faults, err := parseFaults(data, f.boards)
	if err != nil {
		return nil, fmt.Errorf("faults in %s: %w", f.path, err)
	}
	f.info, f.faults = info, faults
	return faults, nil
}
