package nvml

import (
	"errors"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// The operations that an Observer hears of.
const (
	opIdentify       = "identify"
	opRead           = "read GPU"
	opCreateGPU      = "create GPU instance"
	opCreateCompute  = "create compute instance"
	opDestroyCompute = "destroy compute instance"
	opDestroyGPU     = "destroy GPU instance"
	opSetMIGMode     = "set MIG mode"
	opSetTimeSlice   = "set time slice"
	opFabricState    = "read fabric state"
	opProcesses      = "list processes"
	opRegisterEvents = "register events"
	opProbe          = "read health"
	opVitals         = "read vitals"
	opUsage          = "read usage"
)

// kind says in kerf's words what NVML refused, nil where none fits.
func kind(ret nvml.Return) error {
	switch ret {
	case nvml.ERROR_IN_USE:
		return gpu.ErrInUse
	case nvml.ERROR_INSUFFICIENT_RESOURCES:
		return gpu.ErrInsufficientResources
	case nvml.ERROR_RESET_REQUIRED:
		return gpu.ErrResetRequired
	case nvml.ERROR_GPU_IS_LOST, nvml.ERROR_GPU_NOT_FOUND:
		return gpu.ErrLost
	case nvml.ERROR_NOT_FOUND:
		return gpu.ErrNotFound
	case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_FUNCTION_NOT_FOUND:
		return gpu.ErrNotSupported
	case nvml.ERROR_TIMEOUT:
		return gpu.ErrDeadline
	default:
		return nil
	}
}

// failed is the error of a call that NVML answered with ret: the operation, the
// board, kerf's sentinel and NVML's own text. It can be asked for both with errors.Is.
func failed(op string, b *board, ret nvml.Return) error {
	if k := kind(ret); k != nil {
		return fmt.Errorf("%s on %s: %w (NVML: %w)", op, b, k, ret)
	}
	return fmt.Errorf("%s on %s: NVML: %w", op, b, ret)
}

// questions asks a board several things and keeps the first refusal.
type questions struct {
	board *board
	err   error
}

func ask[T any](q *questions, what string, question func() (T, nvml.Return)) T {
	var zero T
	if q.err != nil {
		return zero
	}
	answer, ret := question()
	if ret != nvml.SUCCESS {
		q.err = failed("read the "+what, q.board, ret)
		return zero
	}
	return answer
}

// returned finds NVML's answer in an error of go-nvlib, so that it can be mapped.
func returned(err error) nvml.Return {
	var ret nvml.Return
	if errors.As(err, &ret) {
		return ret
	}
	return nvml.ERROR_UNKNOWN
}
