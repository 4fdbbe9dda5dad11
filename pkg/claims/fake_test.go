package claims_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

var errInjected = errors.New("injected")

// world is what outlives a process: boards, journal and spec files, with the
// rules that matter to the engine. Every change passes through step.
type world struct {
	boards map[string]*gpu.GPU
	holder map[string][]gpu.Process
	specs  map[string][]cdispec.Device
	notes  map[string]string
	// slices are the time slices of the boards on which one was set.
	slices map[string]gpu.TimeSlice
	// lost is a board that has fallen off the bus.
	lost   string
	policy configv1alpha1.Policy
	nextID int
	dir    string

	steps []string
	// failAt fails that step, counted from 0, before it has its effect, or after it where late is set.
	// From it on all steps fail where dead is set, as if the process had been killed.
	failAt int
	// opened is true where somebody has the driver open, whom no list of processes names.
	opened bool
	// unwell is the device that something is wrong with.
	unwell     gpu.Device
	late, dead bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	h100, err := gpu.BoardByName("H100-SXM5-80GB")
	require.NoError(t, err)
	w := &world{boards: map[string]*gpu.GPU{}, holder: map[string][]gpu.Process{}, specs: map[string][]cdispec.Device{}, notes: map[string]string{}, slices: map[string]gpu.TimeSlice{}, dir: t.TempDir(), failAt: -1}
	w.policy.IdleInstances.MaxPerGPU = new(int)
	for _, uuid := range []string{"GPU-a", "GPU-b"} {
		w.boards[uuid] = &gpu.GPU{UUID: uuid, MIG: gpu.MIGMode{Capable: true}, Profiles: h100.Profiles}
	}
	return w
}

// engine is a new process on the node.
func (w *world) engine(t *testing.T) *claims.Engine {
	t.Helper()
	j, err := journal.Open(w.dir)
	require.NoError(t, err)
	return claims.New(w, stepJournal{j, w}, fakeSpecs{w}, func(string) configv1alpha1.Policy { return w.policy }, func(d gpu.Device) bool { return w.unwell == d })
}

func (w *world) step(name string, effect func() error) error {
	n := len(w.steps)
	w.steps = append(w.steps, name)
	if w.failAt < 0 || n < w.failAt || n > w.failAt && !w.dead {
		return effect()
	}
	if n == w.failAt && w.late {
		if err := effect(); err != nil {
			return err
		}
	}
	return fmt.Errorf("step %d, %s: %w", n, name, errInjected)
}

func (w *world) GPU(_ context.Context, uuid string) (gpu.GPU, error) {
	b, ok := w.boards[uuid]
	if uuid == w.lost {
		return gpu.GPU{}, gpu.ErrLost
	}
	if !ok {
		return gpu.GPU{}, fmt.Errorf("%s: %w", uuid, gpu.ErrNotFound)
	}
	c := *b
	c.Instances = slices.Clone(b.Instances)
	return c, nil
}

func (w *world) Processes(_ context.Context, uuid string) ([]gpu.Process, error) {
	if uuid == w.lost {
		return nil, gpu.ErrLost
	}
	return w.holder[uuid], nil
}

func (w *world) SetMIGMode(_ context.Context, uuid string, on bool) error {
	return w.step("SetMIGMode", func() error {
		if len(w.boards[uuid].Instances) > 0 || len(w.holder[uuid]) > 0 || w.opened {
			return gpu.ErrInUse
		}
		w.boards[uuid].MIG.Current = on
		delete(w.slices, uuid) // A GPU that changes its mode is reset.
		return nil
	})
}

func (w *world) SetTimeSlice(_ context.Context, uuid string, slice gpu.TimeSlice) error {
	return w.step("SetTimeSlice", func() error {
		if w.boards[uuid].MIG.Current {
			return gpu.ErrNotSupported
		}
		w.slices[uuid] = slice
		return nil
	})
}

func (w *world) CreateGPUInstance(_ context.Context, uuid, profile string, at gpu.Placement) (made gpu.Instance, err error) {
	return made, w.step("CreateGPUInstance", func() error {
		b := w.boards[uuid]
		if !b.MIG.Current {
			return gpu.ErrNotSupported
		}
		if _, taken := b.Blocker(gpu.Device{Type: gpu.TypeMIG, GPU: uuid, Profile: profile, Placement: at}); taken {
			return gpu.ErrInsufficientResources
		}
		w.nextID++
		made = gpu.Instance{GPU: uuid, Profile: profile, Placement: at, ID: w.nextID}
		b.Instances = append(b.Instances, made)
		return nil
	})
}

func (w *world) find(i gpu.Instance) (*gpu.Instance, error) {
	b := w.boards[i.GPU]
	for n := range b.Instances {
		if b.Instances[n].Same(i) {
			return &b.Instances[n], nil
		}
	}
	return nil, fmt.Errorf("%s: %w", &i, gpu.ErrNotFound)
}

func (w *world) CreateComputeInstance(_ context.Context, i gpu.Instance) (made gpu.Instance, err error) {
	return made, w.step("CreateComputeInstance", func() error {
		found, err := w.find(i)
		if err != nil {
			return err
		}
		found.Compute = []gpu.ComputeInstance{{UUID: fmt.Sprintf("MIG-%s-%d", i.GPU, i.ID), Whole: true}}
		made = *found
		return nil
	})
}

func (w *world) DestroyComputeInstance(_ context.Context, i gpu.Instance) (left gpu.Instance, err error) {
	return left, w.step("DestroyComputeInstance", func() error {
		found, err := w.find(i)
		if err != nil {
			return err
		}
		if len(w.holder[i.GPU]) > 0 {
			return gpu.ErrInUse
		}
		found.Compute = nil
		left = *found
		return nil
	})
}

func (w *world) DestroyGPUInstance(_ context.Context, i gpu.Instance) error {
	return w.step("DestroyGPUInstance", func() error {
		found, err := w.find(i)
		if err != nil {
			return err
		}
		if len(found.Compute) > 0 {
			return gpu.ErrInUse
		}
		b := w.boards[i.GPU]
		b.Instances = slices.DeleteFunc(b.Instances, func(o gpu.Instance) bool { return o.Same(i) })
		return nil
	})
}

// stepJournal is the real journal; its changes are steps.
type stepJournal struct {
	*journal.Journal
	w *world
}

func (j stepJournal) PutClaim(c *journal.Claim) error {
	return j.w.step("PutClaim "+string(c.State), func() error { return j.Journal.PutClaim(c) })
}

func (j stepJournal) DeleteClaim(uid string) error {
	return j.w.step("DeleteClaim", func() error { return j.Journal.DeleteClaim(uid) })
}

func (j stepJournal) PutInstance(i *journal.Instance) error {
	return j.w.step("PutInstance "+string(i.State), func() error { return j.Journal.PutInstance(i) })
}

func (j stepJournal) DeleteInstance(at gpu.Instance) error {
	return j.w.step("DeleteInstance", func() error { return j.Journal.DeleteInstance(at) })
}

type fakeSpecs struct{ w *world }

func (s fakeSpecs) Write(_ context.Context, uid, note string, devices []cdispec.Device) (map[string]string, error) {
	err := s.w.step("WriteSpec", func() error { s.w.specs[uid], s.w.notes[uid] = devices, note; return nil })
	return s.IDs(uid, devices), err
}

func (s fakeSpecs) IDs(uid string, devices []cdispec.Device) map[string]string {
	ids := map[string]string{}
	for _, d := range devices {
		ids[d.Name] = "kerf.dev/claim=" + uid + "-" + d.Name
	}
	return ids
}

func (s fakeSpecs) Note(uid string) (string, error) {
	if _, ok := s.w.specs[uid]; !ok {
		return "", fs.ErrNotExist
	}
	return s.w.notes[uid], nil
}

func (s fakeSpecs) Exists(uid string) (bool, error) { _, ok := s.w.specs[uid]; return ok, nil }

func (s fakeSpecs) Remove(uid string) error {
	return s.w.step("RemoveSpec", func() error { delete(s.w.specs, uid); return nil })
}

func (s fakeSpecs) Claims() ([]string, error) { return slices.Sorted(maps.Keys(s.w.specs)), nil }

func (s fakeSpecs) Invalidate() {}
