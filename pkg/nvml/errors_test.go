package nvml

import (
	"errors"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

func TestErrorsOfNVML(t *testing.T) {
	sentinels := []error{gpu.ErrInUse, gpu.ErrInsufficientResources, gpu.ErrResetRequired, gpu.ErrLost, gpu.ErrNotFound, gpu.ErrNotSupported, gpu.ErrDeadline}
	b := &board{index: 3}
	for ret, want := range map[nvml.Return]error{
		nvml.ERROR_IN_USE:                 gpu.ErrInUse,
		nvml.ERROR_INSUFFICIENT_RESOURCES: gpu.ErrInsufficientResources,
		nvml.ERROR_RESET_REQUIRED:         gpu.ErrResetRequired,
		nvml.ERROR_GPU_IS_LOST:            gpu.ErrLost,
		nvml.ERROR_GPU_NOT_FOUND:          gpu.ErrLost,
		nvml.ERROR_NOT_FOUND:              gpu.ErrNotFound,
		nvml.ERROR_NOT_SUPPORTED:          gpu.ErrNotSupported,
		nvml.ERROR_FUNCTION_NOT_FOUND:     gpu.ErrNotSupported,
		nvml.ERROR_TIMEOUT:                gpu.ErrDeadline,
		nvml.ERROR_INVALID_ARGUMENT:       nil,
		nvml.ERROR_NO_PERMISSION:          nil,
		nvml.ERROR_UNKNOWN:                nil,
	} {
		err := failed("saw the board in two", b, ret)
		require.ErrorIs(t, err, ret)
		for _, s := range sentinels {
			require.Equal(t, s == want, errors.Is(err, s), "%v is %v", ret, s) //nolint:errorlint // which sentinel it is
		}
		for _, part := range []string{"saw the board in two", "the GPU with index 3", ret.Error()} {
			require.ErrorContains(t, err, part)
		}
	}
}

func TestNoLibrary(t *testing.T) {
	a := New(nvml.New(nvml.WithLibraryPath("/nonexistent/libnvidia-ml.so.1")))
	err := a.Open(t.Context())
	require.ErrorIs(t, err, nvml.ERROR_LIBRARY_NOT_FOUND)
	require.ErrorContains(t, err, "libnvidia-ml.so.1")
	require.ErrorContains(t, err, "--nvml=sim:")
	require.NotContains(t, strings.TrimSpace(err.Error()), "\n")
}
