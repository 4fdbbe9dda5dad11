package nvml

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// smiDirs are where distributions and driver containers put nvidia-smi.
var smiDirs = []string{"usr/bin", "bin", "opt/bin"}

// smiPipeDelay bounds the wait for the output of an nvidia-smi that was killed.
const smiPipeDelay = time.Second

// smi is the driver's nvidia-smi: the one program that kerf executes, for the
// time slice, for which NVML has no call.
type smi struct {
	driverRoot, library string
}

// WithDriver sets below which directory the driver's nvidia-smi is looked for, "/"
// by default, and which NVML library it loads, where that is not the dynamic
// linker's to find.
func WithDriver(root, library string) Option {
	return func(a *Adapter) { a.smi = smi{driverRoot: root, library: library} }
}

// SetTimeSlice sets for how long a process may compute before it is the next
// one's turn, and the compute mode in which there can be more than one. A GPU in
// MIG mode refuses. It lasts until the GPU is reset.
func (a *Adapter) SetTimeSlice(ctx context.Context, uuid string, slice gpu.TimeSlice) error {
	number := slices.Index(gpu.TimeSlices(), slice)
	if number < 0 {
		return fmt.Errorf("%s on %s: %w", opSetTimeSlice, uuid, slice.Validate())
	}
	_, err := onGPU(ctx, a, uuid, opSetTimeSlice, func(b *board, _ nvml.Device) (struct{}, error) {
		for _, args := range [][]string{
			{"-i", uuid, "-c", "DEFAULT"},
			{"compute-policy", "-i", uuid, "--set-timeslice=" + strconv.Itoa(number)},
		} {
			if err := a.smi.run(ctx, args...); err != nil {
				return struct{}{}, fmt.Errorf("%s %s on %s: %w", opSetTimeSlice, slice, b, err)
			}
		}
		return struct{}{}, nil
	})
	return err
}

func (s smi) path() (string, error) {
	for _, dir := range smiDirs {
		path := filepath.Join(s.driverRoot, dir, "nvidia-smi")
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("no nvidia-smi in %s below %s, where the driver is said to be: without it no GPU can be shared in time: %w", strings.Join(smiDirs, ", "), s.driverRoot, gpu.ErrNotSupported)
}

// run runs nvidia-smi. Like a call into NVML it can hang in the driver and then
// outlive its context.
func (s smi) run(ctx context.Context, args ...string) error {
	path, err := s.path()
	if err != nil {
		return err
	}
	// The kernel kills it with the thread that started it, so that a killed plugin
	// leaves none behind that changes a GPU which is somebody else's by then.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = smiPipeDelay
	if filepath.IsAbs(s.library) {
		// Not LD_LIBRARY_PATH: with the host's libraries beside it, the C library of
		// the host would meet the dynamic linker of the plugin's image.
		cmd.Env = append(os.Environ(), "LD_PRELOAD="+s.library)
	}
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = errors.Join(gpu.ErrDeadline, context.Cause(ctx))
	}
	return fmt.Errorf("nvidia-smi %s: %w: %s", strings.Join(args, " "), err, strings.Join(strings.Fields(string(out)), " "))
}
