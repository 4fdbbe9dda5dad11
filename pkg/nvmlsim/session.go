package nvmlsim

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"k8s.io/klog/v2"
)

// What the simulated driver says of itself.
const (
	DriverVersion = "580.95.05"
	nvmlVersion   = "13.580.95.05"
	// cudaVersion is 13.0 as cuda.h packs it.
	cudaVersion = 13000
)

// session is one process' use of the driver: NVML keeps one for all users of
// the library in a process. It dies with the process; the kernel does not.
type session struct {
	// unset answers all that is not simulated.
	*mock.Interface
	unset struct {
		device   *mock.Device
		instance *mock.GpuInstance
		compute  *mock.ComputeInstance
		events   *mock.EventSet
	}
	kernel     *kernel
	experiment *experiment
	logger     klog.Logger
	now        func() time.Time

	mu sync.Mutex
	// users counts Init and Shutdown.
	users int
	boot  int
	holds map[int]*hold
	// events are the sets that are not freed yet.
	events map[*eventSet]bool
}

var _ nvml.Interface = (*session)(nil)

func newSession(k *kernel, e *experiment, o options) *session {
	s := &session{
		Interface: refuseUnset(&mock.Interface{}), kernel: k, experiment: e, logger: o.logger, now: o.now,
		holds: map[int]*hold{}, events: map[*eventSet]bool{},
	}
	s.unset.device = refuseUnset(&mock.Device{})
	s.unset.instance = refuseUnset(&mock.GpuInstance{})
	s.unset.compute = refuseUnset(&mock.ComputeInstance{})
	s.unset.events = refuseUnset(&mock.EventSet{})
	return s
}

// enter begins every call that needs the driver, and gives the state as it is
// then. op is the name of the call, one of Operations, gpu the board's index, if
// there is such a board.
func (s *session) enter(op string, gpu int) (*state, nvml.Return) {
	st, o := s.begin(op, gpu)
	return st, o.ret
}

// begin is enter with all that a fault can have as its outcome.
func (s *session) begin(op string, gpu int) (*state, outcome) {
	st, ret := s.view(op, gpu)
	if ret != nvml.SUCCESS {
		return nil, outcome{ret: ret}
	}
	if gpu < 0 || gpu >= len(st.GPUs) {
		gpu = -1
	}
	o, err := s.experiment.before(op, gpu)
	if err != nil {
		o.ret = s.broken(op, gpu, err)
	}
	if o.ret != nvml.SUCCESS || s.experiment.idle() {
		return st, o
	}
	// Time has passed.
	st, o.ret = s.view(op, gpu)
	return st, o
}

// done ends a call that changed a board, if ret says so.
func (s *session) done(op string, gpu int, ret nvml.Return) nvml.Return {
	if ret != nvml.SUCCESS {
		return ret
	}
	o, err := s.experiment.after(op, gpu)
	if err != nil {
		return s.broken(op, gpu, err)
	}
	return o.ret
}

// view gives the state as it is now to a call of an initialized session.
func (s *session) view(op string, gpu int) (*state, nvml.Return) {
	st, err := s.kernel.view()
	if err != nil {
		return nil, s.broken(op, gpu, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// No process outlives a reboot. One that does all the same has to begin anew.
	if s.users == 0 || s.boot != st.Boot {
		return nil, nvml.ERROR_UNINITIALIZED
	}
	return st, nvml.SUCCESS
}

// broken is the answer where the simulation itself fails.
func (s *session) broken(op string, gpu int, err error) nvml.Return {
	s.logger.Error(err, "The simulated driver failed", "call", op, "gpu", gpu)
	return nvml.ERROR_UNKNOWN
}

func (s *session) Init() nvml.Return {
	o, err := s.experiment.before("Init", -1)
	if err != nil {
		return s.broken("Init", -1, err)
	}
	if o.ret != nvml.SUCCESS {
		return o.ret
	}
	st, err := s.kernel.view()
	if err != nil {
		return s.broken("Init", -1, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.boot != st.Boot {
		s.end()
		s.boot = st.Boot
	}
	s.users++
	return nvml.SUCCESS
}

func (s *session) InitWithFlags(uint32) nvml.Return { return s.Init() }

func (s *session) Shutdown() nvml.Return {
	if _, ret := s.enter("Shutdown", -1); ret != nvml.SUCCESS && ret != nvml.ERROR_UNINITIALIZED {
		return ret
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 {
		return nvml.ERROR_UNINITIALIZED
	}
	if s.users--; s.users == 0 {
		s.end()
	}
	return nvml.SUCCESS
}

// end lets go of all that the process held. The caller has the mutex.
func (s *session) end() {
	for _, h := range s.holds {
		h.release()
	}
	clear(s.holds)
	for set := range s.events {
		set.release()
	}
	clear(s.events)
	s.users = 0
}

// attach remembers that this process has the board open.
func (s *session) attach(index int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds[index] != nil || s.users == 0 {
		return nil
	}
	h, err := newHold(s.kernel.dir, index)
	if err == nil {
		s.holds[index] = h
	}
	return err
}

// heldByOthers reports whether a handle of another process or events, of this
// process too, stand in the way of a toggle. That another session's bare handle
// does is [inferred] from what NVIDIA's reconfiguration script stops.
func (s *session) heldByOthers(index int) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return heldByOthers(s.kernel.dir, index, s.holds[index])
}

func (s *session) SystemGetDriverVersion() (string, nvml.Return) {
	_, ret := s.enter("SystemGetDriverVersion", -1)
	return ifOK(DriverVersion, ret)
}

func (s *session) SystemGetNVMLVersion() (string, nvml.Return) {
	_, ret := s.enter("SystemGetNVMLVersion", -1)
	return ifOK(nvmlVersion, ret)
}

func (s *session) SystemGetCudaDriverVersion() (int, nvml.Return) {
	_, ret := s.enter("SystemGetCudaDriverVersion", -1)
	return ifOK(cudaVersion, ret)
}

func (s *session) SystemGetCudaDriverVersion_v2() (int, nvml.Return) { //nolint:revive // NVML's name
	return s.SystemGetCudaDriverVersion()
}

func (s *session) SystemGetProcessName(pid int) (string, nvml.Return) {
	st, ret := s.enter("SystemGetProcessName", -1)
	if ret != nvml.SUCCESS {
		return "", ret
	}
	for _, g := range st.GPUs {
		for _, c := range g.Clients {
			if c.PID == pid {
				return c.Command, nvml.SUCCESS
			}
		}
	}
	return "", nvml.ERROR_NOT_FOUND
}

func (s *session) ErrorString(ret nvml.Return) string { return ret.Error() }

func (s *session) DeviceGetCount() (int, nvml.Return) {
	st, ret := s.enter("DeviceGetCount", -1)
	if ret != nvml.SUCCESS {
		return 0, ret
	}
	return len(st.GPUs), nvml.SUCCESS
}

func (s *session) DeviceGetHandleByIndex(index int) (nvml.Device, nvml.Return) {
	st, ret := s.enter("DeviceGetHandleByIndex", index)
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	if index < 0 || index >= len(st.GPUs) {
		return nil, nvml.ERROR_INVALID_ARGUMENT
	}
	return s.handle(st, index)
}

func (s *session) DeviceGetHandleByPciBusId(id string) (nvml.Device, nvml.Return) { //nolint:revive // NVML's name
	index, valid := boardAt(id)
	st, ret := s.enter("DeviceGetHandleByPciBusId", index)
	switch {
	case ret != nvml.SUCCESS:
		return nil, ret
	case !valid:
		return nil, nvml.ERROR_INVALID_ARGUMENT
	case index < 0 || index >= len(st.GPUs):
		return nil, nvml.ERROR_NOT_FOUND
	}
	return s.handle(st, index)
}

// boardAt is the index of the board that lies there on any node, -1 where none ever does.
func boardAt(id string) (index int, valid bool) {
	// nvml.h: all numbers are hexadecimal, the domain and the function can be left out.
	var domain, bus, slot, function uint32
	switch strings.Count(id, ":") {
	case 2:
		if n, _ := fmt.Sscanf(id, "%x:%x:%x.%x", &domain, &bus, &slot, &function); n < 3 {
			return -1, false
		}
	case 1:
		if n, _ := fmt.Sscanf(id, "%x:%x.%x", &bus, &slot, &function); n < 2 {
			return -1, false
		}
	default:
		return -1, false
	}
	for index := range MaxGPUs {
		if fmt.Sprintf("%04x:%02x:%02x.%x", domain, bus, slot, function) == busID(index) {
			return index, true
		}
	}
	return -1, true
}

func (s *session) DeviceGetHandleBySerial(serial string) (nvml.Device, nvml.Return) {
	return s.search("DeviceGetHandleBySerial", func(st *state, index int) (nvml.Device, nvml.Return) {
		if st.GPUs[index].serial() != serial {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return s.handle(st, index)
	})
}

func (s *session) DeviceGetHandleByUUID(uuid string) (nvml.Device, nvml.Return) {
	return s.search("DeviceGetHandleByUUID", func(st *state, index int) (nvml.Device, nvml.Return) {
		g := &st.GPUs[index]
		if g.UUID == uuid {
			return s.handle(st, index)
		}
		for _, i := range g.Instances {
			for _, c := range i.Compute {
				if g.migUUID(i.ID, c.ID) == uuid {
					return &migDevice{Device: s.unset.device, parent: s.device(index, g.Generation), gi: i.ID, ci: c.ID}, nvml.SUCCESS
				}
			}
		}
		return nil, nvml.ERROR_NOT_FOUND
	})
}

// search walks the boards. nvml.h: it may have to initialize other boards than
// the one that it looks for, and fails if any is lost; that it does so in order is [inferred].
func (s *session) search(op string, match func(*state, int) (nvml.Device, nvml.Return)) (nvml.Device, nvml.Return) {
	st, ret := s.enter(op, -1)
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	for index := range st.GPUs {
		if st.GPUs[index].Lost {
			return nil, nvml.ERROR_GPU_IS_LOST
		}
		if d, ret := match(st, index); ret != nvml.ERROR_NOT_FOUND {
			return d, ret
		}
	}
	return nil, nvml.ERROR_NOT_FOUND
}

// handle opens a board.
func (s *session) handle(st *state, index int) (nvml.Device, nvml.Return) {
	if st.GPUs[index].Lost {
		return nil, nvml.ERROR_GPU_IS_LOST
	}
	if err := s.attach(index); err != nil {
		return nil, s.broken("attach", index, err)
	}
	return s.device(index, st.GPUs[index].Generation), nvml.SUCCESS
}

func (s *session) device(index, generation int) *device {
	return &device{Device: s.unset.device, session: s, index: index, generation: generation}
}

// Extensions tells which symbols the driver has. Those of versioned calls are
// missing, as in an old driver: their results are structs that only the real library can make.
func (s *session) Extensions() nvml.ExtendedInterface {
	return &mock.ExtendedInterface{LookupSymbolFunc: func(symbol string) error {
		name := strings.TrimPrefix(symbol, "nvml")
		for version := 2; version <= 4; version++ {
			name = strings.TrimSuffix(name, fmt.Sprintf("_v%d", version))
		}
		method, ok := reflect.TypeFor[nvml.Interface]().MethodByName(name)
		if !ok || name == symbol || method.Type.NumOut() == 1 && method.Type.Out(0).Kind() == reflect.Struct {
			return fmt.Errorf("symbol %q not found", symbol)
		}
		return nil
	}}
}

func ifOK[T any](value T, ret nvml.Return) (T, nvml.Return) {
	if ret != nvml.SUCCESS {
		var zero T
		return zero, ret
	}
	return value, nvml.SUCCESS
}
