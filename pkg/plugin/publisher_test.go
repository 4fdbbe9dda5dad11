package plugin_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

const (
	firstGPU  = "GPU-11111111-1"
	secondGPU = "GPU-22222222-2"
)

// world is a node with an API server, all in memory.
type world struct {
	t         *testing.T
	node      gpu.Node
	readErr   error
	mutex     sync.Mutex // of claims, which are made while a publisher runs
	claims    []*journal.Claim
	instances [][]*journal.Instance // what each reading of the records finds; the last one stays
	allocated []string
	apiErr    error
	health    []gpu.Condition
	asked     int
	server    atomic.Pointer[resourceslice.DriverResources]
	config    *configv1alpha1.NodeConfiguration
	stateDir  string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	b, err := gpu.BoardByName("H100-SXM5-80GB")
	require.NoError(t, err)
	w := &world{t: t, stateDir: t.TempDir(), node: gpu.Node{DriverVersion: "580.95.05", CUDADriverVersion: gpu.Version{Major: 13}}}
	for i, uuid := range []string{firstGPU, secondGPU} {
		w.node.GPUs = append(w.node.GPUs, gpu.GPU{
			UUID: uuid, Index: i, ProductName: "NVIDIA H100 80GB HBM3", PCIBusID: "0000:18:00.0", NUMANode: -1,
			MemoryBytes: 80 << 30, MIG: gpu.MIGMode{Capable: true}, Profiles: b.Profiles,
		})
	}
	return w
}

func (w *world) Conditions() []gpu.Condition            { return slices.Clone(w.health) }
func (w *world) Node(context.Context) (gpu.Node, error) { return w.node, w.readErr }
func (w *world) Claims() ([]*journal.Claim, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return slices.Clone(w.claims), nil
}
func (w *world) Instances() ([]*journal.Instance, error) {
	if len(w.instances) == 0 {
		return nil, nil
	}
	now := w.instances[0]
	if len(w.instances) > 1 {
		w.instances = w.instances[1:]
	}
	return now, nil
}

func (w *world) Allocated(context.Context) ([]string, error) {
	w.asked++
	return w.allocated, w.apiErr
}

// Complete holds what is wanted against what was published last.
func (w *world) Complete(_ context.Context, want resourceslice.Pool) error {
	if w.apiErr != nil {
		return w.apiErr
	}
	if now := w.server.Load(); now == nil || !reflect.DeepEqual(now.Pools["node"], want) {
		return errors.New("not there yet")
	}
	return nil
}

// start is what a new process does; the state directory stays.
func (w *world) start() *plugin.Publisher {
	w.t.Helper()
	p := plugin.NewPublisher(w.t.Context(), pool.Node{Name: "node", Driver: pool.DefaultDriver}, w, w, w, w, w.config, w.stateDir)
	require.NoError(w.t, p.Look(w.t.Context()))
	// It publishes once, and then only looks when a test wants it to.
	ctx, cancel := context.WithCancel(w.t.Context())
	require.NoError(w.t, p.Run(ctx, w, func(context.Context, resourceslice.DriverResources) error { cancel(); return nil }))
	return p
}

func (w *world) LockPublisher(context.Context) (func(), error) { return func() {}, nil }

func (w *world) share(replicas int) {
	w.config = &configv1alpha1.NodeConfiguration{Policies: []configv1alpha1.Policy{{TimeSlicing: configv1alpha1.TimeSlicing{Replicas: replicas}}}}
}

// use records a claim for a device.
func (w *world) use(d gpu.Device) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.claims = append(w.claims, &journal.Claim{UID: "uid", State: journal.ClaimPrepared, Devices: []journal.ClaimDevice{{Device: d}}})
}

func published(p *plugin.Publisher) map[string]resourceapi.Device {
	all := map[string]resourceapi.Device{}
	for _, s := range p.Resources().Pools["node"].Slices {
		for _, d := range s.Devices {
			all[d.Name] = d
		}
	}
	return all
}

func replicas(p *plugin.Publisher) []string {
	var names []string
	for name := range published(p) {
		if strings.Contains(name, "timeslice") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func replica(n int) gpu.Device {
	return gpu.Device{Type: gpu.TypeTimeSlice, GPU: firstGPU, Replica: n}
}

func TestWhatIsInUseStaysPublished(t *testing.T) {
	for name, use := range map[string]func(*world){
		"by a record":                         func(w *world) { w.use(replica(2)) },
		"by a claim that is not prepared yet": func(w *world) { w.allocated = []string{"gpu-11111111-timeslice-2", "gpu-elsewhere"} },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.share(3)
			require.Len(t, replicas(w.start()), 6)

			use(w)
			w.share(0)
			p := w.start()
			require.Equal(t, []string{"gpu-11111111-timeslice-2"}, replicas(p))

			// The next look still has it, and so has another process.
			require.NoError(t, p.Look(t.Context()))
			require.Len(t, replicas(p), 1)
			require.Len(t, replicas(w.start()), 1)

			w.claims, w.allocated = nil, nil
			require.NoError(t, p.Look(t.Context()))
			require.Empty(t, replicas(p))
		})
	}
}

func TestNothingIsWithdrawnWhileTheAPIIsAway(t *testing.T) {
	w := newWorld(t)
	w.share(2)
	w.start()
	w.share(0)
	w.apiErr = errors.New("connection refused")
	p := w.start()
	require.Len(t, replicas(p), 4)
	w.apiErr = nil
	require.NoError(t, p.Look(t.Context()))
	require.Empty(t, replicas(p))
}

func TestTheAPIIsAskedOnlyWhenItMatters(t *testing.T) {
	w := newWorld(t)
	p := w.start()
	asked := w.asked
	require.NotZero(t, asked)
	require.NoError(t, p.Look(t.Context()))
	require.Equal(t, asked, w.asked)
}

func TestReleaseEndsTheWait(t *testing.T) {
	w := newWorld(t)
	w.share(1)
	w.start()
	w.use(replica(0))
	w.share(0)
	p := w.start()

	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan int)
	done := make(chan error)
	go func() {
		done <- p.Run(ctx, w, func(_ context.Context, r resourceslice.DriverResources) error {
			n := 0
			for _, s := range r.Pools["node"].Slices {
				for _, d := range s.Devices {
					if strings.Contains(d.Name, "timeslice") {
						n++
					}
				}
			}
			seen <- n
			return nil
		})
	}()
	require.Equal(t, 1, <-seen)
	w.claims = nil
	p.Released()
	require.Zero(t, <-seen)
	cancel()
	require.NoError(t, <-done)
}

func TestALostGPUIsTaintedAndKeepsItsDevices(t *testing.T) {
	w := newWorld(t)
	p := w.start()
	before := published(p)
	w.readErr = gpu.ReadErrors{{Index: 0, UUID: firstGPU, Err: gpu.ErrLost}}
	require.NoError(t, p.Look(t.Context()))
	after := published(p)
	require.Len(t, after, len(before))
	taint := after["gpu-11111111"].Taints[0]
	require.Equal(t, "gpu.kerf.dev/GPULost", taint.Key)
	require.Equal(t, resourceapi.DeviceTaintEffectNoExecute, taint.Effect)
	require.Equal(t, taint, after["gpu-11111111-mig-1g10gb-0"].Taints[0])
	require.Empty(t, after["gpu-22222222"].Taints)

	// A restart does not make the trouble younger, and its end ends it.
	require.Equal(t, taint, published(w.start())["gpu-11111111"].Taints[0])
	w.readErr = nil
	require.NoError(t, p.Look(t.Context()))
	require.Empty(t, published(p)["gpu-11111111"].Taints)

	w.readErr = gpu.ReadErrors{{Index: 0, UUID: firstGPU, Err: gpu.ErrDeadline}}
	require.NoError(t, p.Look(t.Context()))
	require.Equal(t, "gpu.kerf.dev/GPUUnresponsive", published(p)["gpu-11111111"].Taints[0].Key)
}

func TestAGPUThatIsGone(t *testing.T) {
	w := newWorld(t)
	w.start()
	all := w.node.GPUs
	w.node.GPUs = all[1:]

	// A board that does not say who it is may be the missing one.
	w.readErr = gpu.ReadErrors{{Index: 0, Err: gpu.ErrLost}}
	require.Contains(t, published(w.start()), "gpu-11111111")
	w.readErr = nil

	w.use(gpu.Device{Type: gpu.TypeGPU, GPU: firstGPU})
	p := w.start()
	require.Equal(t, "gpu.kerf.dev/GPULost", published(p)["gpu-11111111"].Taints[0].Key)
	d, ok := p.Device("gpu-11111111")
	require.True(t, ok)
	require.Equal(t, firstGPU, d.GPU)

	w.claims = nil
	require.NoError(t, p.Look(t.Context()))
	require.NotContains(t, published(p), "gpu-11111111")

	w.node.GPUs = all
	require.NoError(t, p.Look(t.Context()))
	require.Contains(t, published(p), "gpu-11111111")
}

func TestForeignInstances(t *testing.T) {
	instance := gpu.Instance{GPU: firstGPU, Profile: "3g.40gb", Placement: gpu.Placement{Start: 4, Size: 4}, ID: 1}
	record := []*journal.Instance{{State: journal.InstanceClaimed, Instance: instance}}
	for name, c := range map[string]struct {
		records [][]*journal.Instance
		foreign int
	}{
		"without a record":                   {nil, 1},
		"ours":                               {[][]*journal.Instance{record}, 0},
		"destroyed while we looked":          {[][]*journal.Instance{record, nil}, 0},
		"created while we looked":            {[][]*journal.Instance{nil, record}, 0},
		"another's record at the same place": {[][]*journal.Instance{{{Instance: gpu.Instance{GPU: secondGPU, Profile: "3g.40gb", Placement: instance.Placement}}}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.node.GPUs[0].Instances = []gpu.Instance{instance}
			p := w.start()
			w.instances = c.records
			require.NoError(t, p.Look(t.Context()))
			require.Equal(t, c.foreign, p.Foreign())
			_, whole := published(p)["gpu-11111111"]
			require.Equal(t, c.foreign == 0, whole, "a whole GPU beside a foreign instance")
		})
	}
}

func TestAnInventoryThatCannotBeReadIsNoReasonToStop(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(w.stateDir, "inventory.json")
	for _, text := range []string{"", "{", `{"version":99}`} {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		require.Contains(t, published(w.start()), "gpu-11111111")
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Contains(t, string(data), firstGPU)
	}
}

func TestADiskThatIsFullIsNoReasonToStop(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, os.Remove(w.stateDir))
	w.share(1)
	p := w.start()
	require.Len(t, replicas(p), 2)
	require.NoError(t, os.Mkdir(w.stateDir, 0o755))
	require.NoError(t, p.Look(t.Context()))
	require.FileExists(t, filepath.Join(w.stateDir, "inventory.json"), "it is saved as soon as it can be")
}

func TestALookThatFailsLeavesAllAsItWas(t *testing.T) {
	w := newWorld(t)
	p := w.start()
	w.readErr = errors.New("NVML is gone")
	require.ErrorContains(t, p.Look(t.Context()), "NVML is gone")
	require.Contains(t, published(p), "gpu-11111111")
}

func run(t *testing.T, w *world, p *plugin.Publisher, publish plugin.Publish) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx, w, publish) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
}

// A device whose preparation fails for good sends its pod elsewhere, and is offered again when the pod has gone.
func TestAPrepareThatAlwaysFails(t *testing.T) {
	device := gpu.Device{Type: gpu.TypeMIG, GPU: firstGPU, Profile: "1g.10gb", Placement: gpu.Placement{Start: 6, Size: 1}}
	const name = "gpu-11111111-mig-1g10gb-6"
	for reason, c := range map[string]struct {
		err    error
		taints bool
	}{
		"a foreign instance in the way": {&claims.CollisionError{Wanted: device, Holder: "the foreign 3g", Foreign: true}, true},
		"a reset is needed":             {gpu.ErrResetRequired, true},
		"the GPU is lost":               {gpu.ErrLost, true},
		"another claim, which will end": {&claims.CollisionError{Wanted: device, Holder: "a claim"}, false},
		"something in use":              {gpu.ErrInUse, false},
		"bad parameters":                {errors.New("unknown field"), false},
	} {
		t.Run(reason, func(t *testing.T) {
			w := newWorld(t)
			p := w.start()
			w.allocated = []string{name}
			for n := range 5 {
				require.NoError(t, p.Look(t.Context()))
				require.Equal(t, c.taints && n >= 3, len(published(p)[name].Taints) > 0, "after %d failures", n)
				p.Failed([]gpu.Device{device}, c.err)
			}
			if c.taints {
				taint := published(p)[name].Taints[0]
				require.Equal(t, "gpu.kerf.dev/PrepareFailed", taint.Key)
				require.Equal(t, resourceapi.DeviceTaintEffectNoExecute, taint.Effect)
				require.Empty(t, published(p)["gpu-11111111-mig-1g10gb-5"].Taints, "exactly that device")
			}
			w.allocated = nil
			require.NoError(t, p.Look(t.Context()))
			require.Empty(t, published(p)[name].Taints)
		})
	}
}

func TestClaimsThatTaintTheirDevices(t *testing.T) {
	device := gpu.Device{Type: gpu.TypeMIG, GPU: firstGPU, Profile: "2g.20gb", Placement: gpu.Placement{Start: 4, Size: 2}}
	for name, c := range map[string]struct {
		claim  journal.Claim
		key    string
		effect resourceapi.DeviceTaintEffect
	}{
		"lost":    {journal.Claim{State: journal.ClaimLost}, "gpu.kerf.dev/InstanceLost", resourceapi.DeviceTaintEffectNoExecute},
		"blocked": {journal.Claim{State: journal.ClaimReleasing, Blocked: "pid 8"}, "gpu.kerf.dev/ReleaseBlocked", resourceapi.DeviceTaintEffectNoSchedule},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.claim.Devices = []journal.ClaimDevice{{Device: device}}
			w.claims = []*journal.Claim{&c.claim}
			all := published(w.start())
			for _, overlapping := range []string{"gpu-11111111", "gpu-11111111-mig-2g20gb-4", "gpu-11111111-mig-1g10gb-5", "gpu-11111111-mig-7g80gb-0"} {
				require.Equal(t, c.key, all[overlapping].Taints[0].Key, overlapping)
				require.Equal(t, c.effect, all[overlapping].Taints[0].Effect)
			}
			for _, beside := range []string{"gpu-11111111-mig-1g10gb-6", "gpu-11111111-mig-3g40gb-0", "gpu-22222222"} {
				require.Empty(t, all[beside].Taints, beside)
			}
		})
	}
}

func TestConfirmWaitsUntilTheAPIHasIt(t *testing.T) {
	w := newWorld(t)
	p := w.start()
	publishes := make(chan resourceslice.DriverResources, 9)
	run(t, w, p, func(_ context.Context, r resourceslice.DriverResources) error {
		publishes <- r
		return nil
	})
	<-publishes
	w.claims = []*journal.Claim{{State: journal.ClaimReleasing, Blocked: "pid 8", Devices: []journal.ClaimDevice{{Device: replica(0)}}}}
	confirmed := make(chan error)
	go func() { confirmed <- p.Confirm(t.Context()) }()
	w.server.Store(new(<-publishes))
	require.NoError(t, <-confirmed)

	w.apiErr = errors.New("connection refused")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, p.Confirm(ctx), "connection refused")
}

// locks is a node's publisher lock.
type locks struct{ *world }

func (l locks) LockPublisher(ctx context.Context) (func(), error) {
	j, err := journal.Open(l.stateDir)
	require.NoError(l.t, err)
	return j.LockPublisher(ctx)
}

// During an update two processes share the node: one publishes, and the other goes on from what that one has published.
func TestTheNextProcessTakesOver(t *testing.T) {
	w := newWorld(t)
	node := pool.Node{Name: "node", Driver: pool.DefaultDriver}
	w.share(1)
	first := plugin.NewPublisher(t.Context(), node, w, w, w, w, w.config, w.stateDir)
	require.NoError(t, first.Look(t.Context()))
	ctx, end := context.WithCancel(t.Context())
	started, ended := make(chan struct{}, 9), make(chan error)
	go func() {
		ended <- first.Run(ctx, locks{w}, func(context.Context, resourceslice.DriverResources) error { started <- struct{}{}; return nil })
	}()
	<-started

	w.share(0)
	second := plugin.NewPublisher(t.Context(), node, w, w, w, w, w.config, w.stateDir)
	require.NoError(t, second.Look(t.Context()))
	ctx, endSecond := context.WithCancel(t.Context())
	pools, endedSecond := make(chan resourceslice.DriverResources, 9), make(chan error)
	go func() {
		endedSecond <- second.Run(ctx, locks{w}, func(_ context.Context, r resourceslice.DriverResources) error { pools <- r; return nil })
	}()
	require.False(t, second.Publishing())
	require.ErrorContains(t, second.Confirm(t.Context()), "another process")
	// A claim that came meanwhile: the second process has looked before it, and must not withdraw its device.
	w.use(replica(0))
	require.Empty(t, pools)
	end()
	require.NoError(t, <-ended)
	<-pools
	require.Equal(t, []string{"gpu-11111111-timeslice-0"}, replicas(second))
	endSecond()
	require.NoError(t, <-endedSecond)
}
