package gpu

import (
	"errors"
	"strings"
)

// What can be wrong with a request to the hardware, whatever library made it.
// Errors of the adapter wrap one of these; callers use errors.Is.
var (
	// ErrInUse: a process, a compute instance or another client's handle is in the way. Worth another try.
	ErrInUse = errors.New("in use")
	// ErrInsufficientResources: the placement is taken. NVML says the same for an overlap and for an instance that exists already.
	ErrInsufficientResources = errors.New("insufficient resources")
	// ErrResetRequired: the change waits for a GPU reset, which kerf never does itself.
	ErrResetRequired = errors.New("GPU reset required")
	// ErrLost: the GPU has fallen off the bus or is otherwise inaccessible.
	ErrLost = errors.New("GPU is lost")
	// ErrNotFound: no such GPU, profile or instance now.
	ErrNotFound = errors.New("not found")
	// ErrNotSupported: this board or driver can't do it.
	ErrNotSupported = errors.New("not supported")
	// ErrDeadline: the driver did not answer in time. The call goes on and can still have its effect.
	ErrDeadline = errors.New("the driver did not answer in time")
)

// ReadError is what one board answered instead of its state.
type ReadError struct {
	// Index is NVML's index. UUID is empty where the board never told it.
	Index int
	UUID  string
	Err   error
}

func (e ReadError) Error() string { return e.Err.Error() }

func (e ReadError) Unwrap() error { return e.Err }

// ReadErrors are the boards of a node that could not be read. The Node that
// comes with them is good for all others.
type ReadErrors []ReadError

func (e ReadErrors) Error() string {
	texts := make([]string, len(e))
	for i, one := range e {
		texts[i] = one.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap makes errors.Is and errors.As see every board's error.
func (e ReadErrors) Unwrap() []error {
	all := make([]error, len(e))
	for i, one := range e {
		all[i] = one
	}
	return all
}
