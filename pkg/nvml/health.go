package nvml

import (
	"context"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Health asks all boards at once how they are. Where some did not answer, the
// error is a gpu.ReadErrors and the others are there. It waits for the slowest
// board, so ctx should have a deadline.
func (a *Adapter) Health(ctx context.Context) ([]gpu.Health, error) {
	// Calling a function that an old driver lacks ends the process.
	remapping := a.lib.Extensions().LookupSymbol("nvmlDeviceGetRemappedRows") == nil
	return askAll(ctx, a, opProbe, func(b *board, h nvml.Device) (gpu.Health, error) { return probe(b, h, remapping) })
}

// Vitals asks all boards at once for their temperature and memory, as Health does.
func (a *Adapter) Vitals(ctx context.Context) ([]gpu.Vitals, error) {
	return askAll(ctx, a, opVitals, vitals)
}

func askAll[T any](ctx context.Context, a *Adapter, op string, question func(*board, nvml.Device) (T, error)) ([]T, error) {
	boards := a.session.boards
	found := make([]T, len(boards))
	errs := make([]error, len(boards))
	var asking sync.WaitGroup
	for i, b := range boards {
		asking.Go(func() {
			found[i], errs[i] = call(ctx, a, b, op, func(h nvml.Device) (T, error) { return question(b, h) })
		})
	}
	asking.Wait()
	var all []T
	var bad gpu.ReadErrors
	for i, b := range boards {
		if errs[i] == nil {
			all = append(all, found[i])
		} else {
			bad = append(bad, gpu.ReadError{Index: b.index, UUID: b.id(), Err: errs[i]})
		}
	}
	if bad != nil {
		return all, bad
	}
	return all, nil
}

func probe(b *board, h nvml.Device, remapping bool) (gpu.Health, error) {
	health := gpu.Health{GPU: b.id(), Resets: b.resets}
	switch errors, ret := h.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); ret {
	case nvml.SUCCESS:
		health.UncorrectedECC = &errors
	case nvml.ERROR_NOT_SUPPORTED:
	default:
		return health, failed("read the ECC errors", b, ret)
	}
	if !remapping {
		return health, nil
	}
	switch _, _, pending, failure, ret := h.GetRemappedRows(); ret {
	case nvml.SUCCESS:
		health.Remapping = &gpu.RowRemapping{Pending: pending, Failed: failure}
	case nvml.ERROR_NOT_SUPPORTED:
	default:
		return health, failed("read the remapped rows", b, ret)
	}
	return health, nil
}

func vitals(b *board, h nvml.Device) (gpu.Vitals, error) {
	v := gpu.Vitals{GPU: b.id()}
	switch celsius, ret := h.GetTemperature(nvml.TEMPERATURE_GPU); ret {
	case nvml.SUCCESS:
		degrees := int(celsius)
		v.Celsius = &degrees
	case nvml.ERROR_NOT_SUPPORTED:
	default:
		return v, failed("read the temperature", b, ret)
	}
	switch memory, ret := h.GetMemoryInfo(); ret {
	case nvml.SUCCESS:
		v.UsedBytes = &memory.Used
	case nvml.ERROR_NOT_SUPPORTED:
	default:
		return v, failed("read the memory in use", b, ret)
	}
	return v, nil
}
