package nvmlsim

import "time"

// Latency says how long the simulated driver takes for its calls.
type Latency string

// The latencies.
const (
	// LatencyNone answers at once.
	LatencyNone Latency = "none"
	// LatencyTypical takes as long as a driver is estimated to. Whatever is measured with it is an estimate too.
	LatencyTypical Latency = "typical"
)

// Lock says which calls the simulated driver serves one after the other. It
// matters with latencies and faults only: whoever is slow or hangs has the lock.
type Lock string

// The locks.
const (
	// LockPerGPU is a lock a board.
	LockPerGPU Lock = "perGPU"
	// LockGlobal is one lock for all boards.
	LockGlobal Lock = "global"
)

// estimate is how long a call takes on one board. No vendor publishes that: the
// basis says what each figure rests on.
type estimate struct {
	operation string
	took      time.Duration
	basis     string
}

const (
	// A log of a DRA driver's start on an H100 PCIe in MIG mode, which a long session was opened for.
	startLog = "timestamps in kubernetes-sigs/dra-driver-nvidia-gpu pull request 1018"
	// Several users' words, without a measurement that could be checked.
	reports = "users' reports, unchecked"
	guess   = "a guess: no report was found"
)

// estimates are the calls that are slow. All others are taken to be quick enough to be left out.
var estimates = []estimate{
	{"Init", 10 * time.Millisecond, startLog + ": 10 ms"},
	{"DeviceGetHandleByUUID", 20 * time.Millisecond, startLog + ": 24 ms until the next line; under load seconds are reported"},
	{"GetMigDeviceHandleByIndex", 20 * time.Millisecond, startLog + ": 146 ms for a walk over the seven indices of a board; under load seconds are reported"},
	{"CreateGpuInstance", 100 * time.Millisecond, reports + ": well over 100 ms with its compute instance"},
	{"CreateGpuInstanceWithPlacement", 100 * time.Millisecond, reports + ": well over 100 ms with its compute instance"},
	{"CreateComputeInstance", 50 * time.Millisecond, reports + ": well over 100 ms with its GPU instance"},
	{"CreateComputeInstanceWithPlacement", 50 * time.Millisecond, reports + ": well over 100 ms with its GPU instance"},
	{"ComputeInstanceDestroy", 50 * time.Millisecond, guess},
	{"GpuInstanceDestroy", time.Second, reports + ": about a second"},
	{"SetMigMode", 2 * time.Second, guess},
}

// typical is the estimate for an operation.
func typical(operation string) time.Duration {
	for _, e := range estimates {
		if e.operation == operation {
			return e.took
		}
	}
	return 0
}
