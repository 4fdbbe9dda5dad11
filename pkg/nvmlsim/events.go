package nvmlsim

import (
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
)

const (
	// unattributed stands for the GPU or compute instance of what concerns the whole board (nvml.h).
	unattributed = 0xFFFFFFFF
	// eventPoll is how often a waiting set looks for news.
	eventPoll = 10 * time.Millisecond
	// supportedEvents are those that the simulated boards can have.
	supportedEvents = nvml.EventTypeXidCriticalError | nvml.EventTypeDoubleBitEccError
)

// eventSet follows the log of events for the boards registered with it.
type eventSet struct {
	*mock.EventSet
	session *session
	// boards are registered; all below is guarded by the session's mutex.
	boards map[int]registration
	// next is the number of the first event that was not looked at.
	next uint64
}

type registration struct {
	*hold
	types uint64
	since uint64
}

func (s *session) EventSetCreate() (nvml.EventSet, nvml.Return) {
	st, ret := s.enter("EventSetCreate", -1)
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	set := &eventSet{EventSet: s.unset.events, session: s, boards: map[int]registration{}, next: st.NextEvent}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events[set] = true
	return set, nvml.SUCCESS
}

func (d *device) GetSupportedEventTypes() (uint64, nvml.Return) {
	return read(d, "GetSupportedEventTypes", func(*board) uint64 { return supportedEvents })
}

// RegisterEvents begins to record what happens from now on. The registration holds the board until the set is freed.
func (d *device) RegisterEvents(types uint64, set nvml.EventSet) nvml.Return {
	st, _, ret := d.look("RegisterEvents")
	if ret != nvml.SUCCESS {
		return ret
	}
	e, ok := set.(*eventSet)
	if !ok {
		return nvml.ERROR_INVALID_ARGUMENT
	}
	if types&^supportedEvents != 0 {
		return nvml.ERROR_NOT_SUPPORTED
	}
	s := d.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.events[e] {
		return nvml.ERROR_INVALID_ARGUMENT
	}
	if _, ok := e.boards[d.index]; ok {
		return nvml.SUCCESS
	}
	h, err := newHold(s.kernel.dir, d.index)
	if err != nil {
		return s.broken("RegisterEvents", d.index, err)
	}
	e.boards[d.index] = registration{h, types, st.NextEvent}
	return nvml.SUCCESS
}

// Wait blocks its caller, as NVML does, until there is an event or the time is over.
func (e *eventSet) Wait(timeoutMillis uint32) (nvml.EventData, nvml.Return) {
	if _, ret := e.session.enter("EventSetWait", -1); ret != nvml.SUCCESS {
		return nvml.EventData{}, ret
	}
	deadline := time.Now().Add(time.Duration(timeoutMillis) * time.Millisecond)
	for {
		data, ret := e.poll()
		if ret != nvml.ERROR_TIMEOUT || !time.Now().Before(deadline) {
			return data, ret
		}
		time.Sleep(min(eventPoll, time.Until(deadline)))
	}
}

func (e *eventSet) poll() (nvml.EventData, nvml.Return) {
	s := e.session
	st, ret := s.view("EventSetWait", -1)
	if ret != nvml.SUCCESS {
		return nvml.EventData{}, ret
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.events[e] {
		return nvml.EventData{}, nvml.ERROR_INVALID_ARGUMENT
	}
	oldest := st.NextEvent - uint64(len(st.Events))
	for e.next = max(e.next, oldest); e.next < st.NextEvent; {
		number, event := e.next, st.Events[e.next-oldest]
		e.next++
		kind := uint64(nvml.EventTypeXidCriticalError)
		if event.Xid == 0 {
			kind = nvml.EventTypeDoubleBitEccError
		}
		if r, ok := e.boards[event.GPU]; ok && number >= r.since && r.types&kind != 0 {
			return nvml.EventData{
				Device:    s.device(event.GPU, st.GPUs[event.GPU].Generation),
				EventType: kind, EventData: event.Xid,
				GpuInstanceId: event.GI, ComputeInstanceId: event.CI,
			}, nvml.SUCCESS
		}
	}
	for index := range e.boards {
		if st.GPUs[index].Lost {
			// Which one, it does not say.
			return nvml.EventData{}, nvml.ERROR_GPU_IS_LOST
		}
	}
	return nvml.EventData{}, nvml.ERROR_TIMEOUT
}

func (e *eventSet) Free() nvml.Return {
	s := e.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 {
		return nvml.ERROR_UNINITIALIZED
	}
	e.release()
	delete(s.events, e)
	return nvml.SUCCESS
}

// release lets go of the boards. The caller has the session's mutex.
func (e *eventSet) release() {
	for _, h := range e.boards {
		h.release()
	}
	clear(e.boards)
}
