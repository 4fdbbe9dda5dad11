package nvmlsim

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const childSpec = "NVMLSIM_TEST_CHILD_SPEC"

// TestCrashingChild is no test of its own: it is the process that TestCrash kills.
func TestCrashingChild(t *testing.T) {
	text := os.Getenv(childSpec)
	if text == "" {
		t.Skip("it only runs as another test's child")
	}
	s, err := Parse(text)
	require.NoError(t, err)
	n := openSpec(t, s)
	require.Equal(t, nvml.SUCCESS, make1g(t, handle(t, n, 0), 3))
}

// The process is gone at once, before the effect or after it; when it comes back it is left in peace.
func TestCrash(t *testing.T) {
	for name, test := range map[string]struct {
		fault string
		made  int
	}{
		"before":        {"operation: CreateGpuInstanceWithPlacement, crash: true", 0},
		"after":         {"operation: CreateGpuInstanceWithPlacement, after: true, crash: true", 1},
		"any effect":    {"after: true, crash: true", 1},
		"any call":      {"call: 3, crash: true", 0},
		"at the lookup": {"gpu: 0, crash: true", 0},
	} {
		t.Run(name, func(t *testing.T) {
			n, spec := withFaults(t, "1xH100-SXM5-80GB,mig=on", "faults: [{name: it, "+test.fault+"}]")
			run := func() error {
				child := exec.Command(os.Args[0], "-test.run=^TestCrashingChild$")
				child.Env = append(os.Environ(), childSpec+"="+spec.String())
				return child.Run()
			}
			instances := func() int {
				boards, err := n.Boards()
				require.NoError(t, err)
				return len(boards[0].Instances)
			}
			var exit *exec.ExitError
			require.ErrorAs(t, run(), &exit)
			status, ok := exit.Sys().(syscall.WaitStatus)
			require.True(t, ok)
			require.True(t, status.Signaled())
			require.Equal(t, syscall.SIGKILL, status.Signal())
			require.Equal(t, test.made, instances())
			if test.made == 0 {
				require.NoError(t, run(), "the next process")
				require.Equal(t, 1, instances())
			}
		})
	}
}

// taken reports whether somebody has that lock of the driver.
func taken(t *testing.T, n *Node, name string) bool {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(n.kernel.dir, "locks", name), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	require.NoError(t, err)
	defer file.Close()
	return errors.Is(flock(file, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// A hang costs one board or all of them, as the driver's lock is, and ends with its fault.
func TestHang(t *testing.T) {
	for lock, name := range map[Lock]string{LockPerGPU: "0", LockGlobal: "all"} {
		t.Run(string(lock), func(t *testing.T) {
			hanging := make(chan struct{}, 1)
			n, spec := withFaults(t, "2xH100-SXM5-80GB,lock="+string(lock), "faults: [{name: it, operation: GetName, gpu: 0, hang: true}]", withSleep(func(time.Duration) {
				select {
				case hanging <- struct{}{}:
				default:
				}
			}))
			first, second := handle(t, n, 0), handle(t, n, 1)
			var removed atomic.Bool
			var calls sync.WaitGroup
			ask := func(d nvml.Device) {
				calls.Go(func() {
					_, ret := d.GetName()
					assert.Equal(t, nvml.SUCCESS, ret)
					assert.True(t, removed.Load(), "it returned too early")
				})
			}
			ask(first)
			<-hanging
			require.True(t, taken(t, n, name))
			other := openSpec(t, spec) // Another process waits as well.
			if lock == LockPerGPU {
				_, ret := second.GetName()
				require.Equal(t, nvml.SUCCESS, ret)
				_, ret = handle(t, other, 1).GetName()
				require.Equal(t, nvml.SUCCESS, ret)
			} else {
				ask(second)
				calls.Go(func() {
					assert.Equal(t, nvml.SUCCESS, other.Interface().Init())
					assert.True(t, removed.Load(), "it returned too early")
				})
			}
			removed.Store(true)
			setFaults(t, spec, "faults: []")
			calls.Wait()
			require.False(t, taken(t, n, name))
		})
	}
}

func TestDelay(t *testing.T) {
	var slept []time.Duration
	n, _ := withFaults(t, "1xH100-SXM5-80GB,mig=on", `
faults:
- {name: before, operation: CreateGpuInstanceWithPlacement, delay: 2s}
- {name: after, operation: CreateGpuInstanceWithPlacement, after: true, delay: 3s}
- {name: answer, operation: CreateGpuInstanceWithPlacement, call: 2, return: TIMEOUT}
`, withSleep(func(d time.Duration) { slept = append(slept, d) }))
	d := handle(t, n, 0)
	require.Equal(t, nvml.SUCCESS, make1g(t, d, 0))
	require.Equal(t, []time.Duration{2 * time.Second, 3 * time.Second}, slept)
	require.Equal(t, nvml.ERROR_TIMEOUT, make1g(t, d, 1))
}

func TestTypicalLatency(t *testing.T) {
	var slept []time.Duration
	record := withSleep(func(d time.Duration) { slept = append(slept, d) })
	n := openWith(t, "1xH100-SXM5-80GB,mig=on,latency=typical", record)
	gi, ci := create(t, handle(t, n, 0), g1, 0)
	require.Equal(t, nvml.SUCCESS, ci.Destroy())
	require.Equal(t, nvml.SUCCESS, gi.Destroy())
	require.Equal(t, []time.Duration{
		typical("Init"), typical("CreateGpuInstanceWithPlacement"), typical("CreateComputeInstance"), typical("ComputeInstanceDestroy"), typical("GpuInstanceDestroy"),
	}, slept)

	slept = nil
	for _, spec := range []string{"1xH100-SXM5-80GB,mig=on", "1xH100-SXM5-80GB,mig=on,latency=none"} {
		create(t, handle(t, openWith(t, spec, record), 0), g1, 0)
	}
	require.Empty(t, slept)
	for _, e := range estimates {
		require.Contains(t, Operations(), e.operation)
		require.Positive(t, e.took, e.operation)
		require.NotEmpty(t, e.basis, e.operation)
	}
}

// Boards are slow side by side with a lock each, and one after the other with one for all.
func TestLockOfTheDriver(t *testing.T) {
	t.Run("perGPU", func(t *testing.T) {
		var both sync.WaitGroup
		both.Add(2)
		n := openWith(t, "2xH100-SXM5-80GB,mig=on,latency=typical,lock=perGPU", withSleep(func(d time.Duration) {
			if d == typical("CreateGpuInstanceWithPlacement") {
				both.Done()
				both.Wait() // Neither goes on before both are in the driver.
			}
		}))
		handles := []nvml.Device{handle(t, n, 0), handle(t, n, 1)}
		var calls sync.WaitGroup
		for _, d := range handles {
			calls.Go(func() { assert.Equal(t, nvml.SUCCESS, make1g(t, d, 0)) })
		}
		calls.Wait()
	})
	for _, lock := range []string{"lock=global", "lock=perGPU"} {
		t.Run("one at a time/"+lock, func(t *testing.T) {
			var inside, most atomic.Int32
			spec, err := Parse("2xH100-SXM5-80GB,mig=on,latency=typical," + lock + ",state=" + t.TempDir())
			require.NoError(t, err)
			sleep := withSleep(func(d time.Duration) {
				if d == typical("CreateGpuInstanceWithPlacement") {
					most.Store(max(most.Load(), inside.Add(1)))
					time.Sleep(time.Millisecond)
					inside.Add(-1)
				}
			})
			// Of two processes; with a lock a board, on the same board.
			var calls sync.WaitGroup
			for process := range 2 {
				n := openSpec(t, spec, sleep)
				for start := range 3 {
					index := start % 2
					if lock == "lock=perGPU" {
						index = 0
					}
					d := handle(t, n, index)
					calls.Go(func() { assert.Equal(t, nvml.SUCCESS, make1g(t, d, uint32(3*process+start))) })
				}
			}
			calls.Wait()
			require.Equal(t, int32(1), most.Load())
		})
	}
}
