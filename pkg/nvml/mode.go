package nvml

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// fabricPoll is how often the fabric state is asked for; fabric managers take seconds.
const fabricPoll = 100 * time.Millisecond

// SetMIGMode switches the MIG mode and returns when it is in effect. Switching
// to what is does nothing. ErrInUse means that somebody holds the board,
// ErrResetRequired that the mode is pending until a GPU reset, ErrNotSupported
// that the board has no MIG.
//
// Handles, minor and PCI bus id are read anew afterwards. On boards with
// NVSwitches, switching off also waits for the fabric state, because a whole GPU
// is of no use to NCCL without; ErrDeadline then means that MIG is off already.
func (a *Adapter) SetMIGMode(ctx context.Context, uuid string, on bool) error {
	changed, err := onGPU(ctx, a, uuid, opSetMIGMode, func(b *board, h nvml.Device) (bool, error) {
		return a.setMIGMode(b, h, on)
	})
	if err != nil || on || !changed {
		return err
	}
	return a.awaitFabric(ctx, uuid)
}

func (a *Adapter) setMIGMode(b *board, h nvml.Device, on bool) (changed bool, err error) {
	op, want, back := opSetMIGMode+" off", nvml.DEVICE_MIG_DISABLE, nvml.DEVICE_MIG_ENABLE
	if on {
		op, want, back = opSetMIGMode+" on", back, want
	}
	mode, err := migMode(b, h)
	if err != nil {
		return false, err
	}
	if !mode.Capable {
		return false, failed(op, b, nvml.ERROR_NOT_SUPPORTED)
	}
	if mode.Current == on && mode.Pending == on {
		return false, nil
	}
	// The driver counts whoever listens among those who use the board.
	b.ear.close()
	b.forgetSamples(gpu.Whole)
	// Two answers: whether the request was taken, and whether it is in effect.
	ret, activation := h.SetMigMode(want)
	b.forget()
	if ret != nvml.SUCCESS {
		return false, failed(op, b, ret)
	}
	if h, err = a.device(b); err != nil {
		return false, fmt.Errorf("%s: %w", op, err)
	}
	// Neither answer is proof: only the mode itself is.
	if mode, err = migMode(b, h); err != nil {
		return false, err
	}
	switch {
	case mode.Current == on:
		return true, nil
	case activation == nvml.ERROR_IN_USE && mode.Pending == on:
		// Left alone, the request would come true with some later reset, when nobody expects it.
		refused := failed(op, b, activation)
		if ret, _ := h.SetMigMode(back); ret != nvml.SUCCESS {
			refused = errors.Join(refused, failed("cancel to "+op, b, ret))
		}
		return false, refused
	case activation != nvml.SUCCESS:
		return false, failed(op, b, activation)
	case mode.Pending == on:
		return false, failed(op, b, nvml.ERROR_RESET_REQUIRED)
	default:
		return false, fmt.Errorf("%s on %s: the driver reports success and the mode is unchanged: %w", op, b, gpu.ErrInUse)
	}
}

// awaitFabric waits until a board that hangs on NVSwitches is part of the fabric again [inferred].
func (a *Adapter) awaitFabric(ctx context.Context, uuid string) error {
	// Calling a function that an old driver lacks ends the process.
	if a.lib.Extensions().LookupSymbol("nvmlDeviceGetGpuFabricInfo") != nil {
		return nil
	}
	tick := time.NewTicker(fabricPoll)
	defer tick.Stop()
	for {
		state, err := onGPU(ctx, a, uuid, opFabricState, fabricState)
		if err != nil {
			return err
		}
		if state == nvml.GPU_FABRIC_STATE_COMPLETED || state == nvml.GPU_FABRIC_STATE_NOT_SUPPORTED {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("join the fabric on %s: MIG is off, but the fabric state is still %d: %w: look at nvidia-fabricmanager", uuid, state, gpu.ErrDeadline)
		case <-tick.C:
		}
	}
}

func fabricState(b *board, h nvml.Device) (uint8, error) {
	info, ret := h.GetGpuFabricInfo()
	if ret == nvml.ERROR_NOT_SUPPORTED {
		return nvml.GPU_FABRIC_STATE_NOT_SUPPORTED, nil
	}
	if ret == nvml.SUCCESS && info.State == nvml.GPU_FABRIC_STATE_COMPLETED {
		// Completed says that the attempt has ended, the status how.
		ret = nvml.Return(info.Status)
	}
	if ret != nvml.SUCCESS {
		return 0, failed(opFabricState, b, ret)
	}
	return info.State, nil
}

// Processes lists the processes that the driver knows to hold the board or one
// of its instances, ordered by id. An empty list proves nothing: outside the
// host's pid namespace NVML sees none, and a handle is no process.
func (a *Adapter) Processes(ctx context.Context, uuid string) ([]gpu.Process, error) {
	return onGPU(ctx, a, uuid, opProcesses, func(b *board, h nvml.Device) ([]gpu.Process, error) {
		return steady(a, b, h, opProcesses, func(h nvml.Device) ([]gpu.Process, error) { return a.processes(b, h) })
	})
}

func (a *Adapter) processes(b *board, h nvml.Device) ([]gpu.Process, error) {
	found := map[gpu.Process]bool{}
	// The board's lists have the processes of its instances too, for who has the privileges that kerf needs anyway
	// (nvml.h): to ask every MIG device would take a walk over all their handles, which is slow.
	for _, list := range []func() ([]nvml.ProcessInfo, nvml.Return){h.GetComputeRunningProcesses, h.GetGraphicsRunningProcesses} {
		processes, ret := list()
		if ret != nvml.SUCCESS && ret != nvml.ERROR_NOT_SUPPORTED {
			return nil, failed(opProcesses, b, ret)
		}
		for _, p := range processes {
			// NVML says -1 for a process that is on no instance.
			found[gpu.Process{PID: int(p.Pid), GPUInstance: int(int32(p.GpuInstanceId))}] = true
		}
	}
	all := []gpu.Process{}
	for p := range found {
		p.Command, p.InPod = a.command(p.PID), a.inPod(p.PID)
		all = append(all, p)
	}
	slices.SortFunc(all, func(x, y gpu.Process) int {
		return cmp.Or(cmp.Compare(x.PID, y.PID), cmp.Compare(x.GPUInstance, y.GPUInstance))
	})
	return all, nil
}

func (a *Adapter) command(pid int) string { return strings.TrimSpace(a.proc(pid, "comm")) }

// inPod looks for the parent cgroup that the kubelet gives all pods, with either cgroup driver.
func (a *Adapter) inPod(pid int) bool { return strings.Contains(a.proc(pid, "cgroup"), "kubepods") }

// proc reads a file of a process, empty where the process has ended.
func (a *Adapter) proc(pid int, file string) string {
	text, err := os.ReadFile(filepath.Join(a.hostRoot, "proc", strconv.Itoa(pid), file))
	if err != nil {
		return ""
	}
	return string(text)
}
