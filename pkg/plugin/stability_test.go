package plugin_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/structured"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
	"github.com/kerf-project/kerf/pkg/pool/pooltest"
)

var seed = flag.Uint64("seed", 0, "replay the history of this seed alone")

const (
	poolHistories = 40
	poolEvents    = 60
)

// held is a device of a claim, as it was published when the claim was allocated.
type held struct {
	device    gpu.Device
	published resourceapi.Device
	prepared  bool
}

// poolHistory is a node whose configuration, boards and processes change while
// the cluster's scheduler allocates from what it publishes.
type poolHistory struct {
	*world
	random    *rand.Rand
	publisher *plugin.Publisher
	boards    []gpu.GPU
	held      map[string]held
	sold      int
	log       []string
}

// Whatever changes on a node, no device that is in use is withdrawn or changed,
// and the cluster's scheduler sells nothing twice.
func TestPoolHistories(t *testing.T) {
	seeds := []uint64{*seed}
	if *seed == 0 {
		seeds = nil
		for n := range uint64(poolHistories) {
			seeds = append(seeds, n+1)
		}
	}
	sold := 0
	for _, s := range seeds {
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			h := &poolHistory{world: newWorld(t), random: rand.New(rand.NewPCG(s, 0)), held: map[string]held{}}
			h.boards = slices.Clone(h.node.GPUs)
			h.publisher = h.start()
			defer func() {
				if t.Failed() {
					t.Logf("replay with: go test ./pkg/plugin -run TestPoolHistories -seed %d", s)
					for _, line := range h.log {
						t.Log(line)
					}
				}
			}()
			for range poolEvents {
				h.event()
				if h.random.IntN(3) > 0 { // Not every change is seen before the next one.
					h.look()
				}
				h.check()
			}
			sold += h.sold
			h.end()
		})
	}
	t.Logf("%d histories of %d events, %d devices sold", len(seeds), poolEvents, sold)
	require.NotZero(t, sold)
}

func (h *poolHistory) note(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

func (h *poolHistory) event() {
	choices := []func(){h.allocate, h.allocate, h.allocate, h.prepare, h.prepare, h.release, h.release, h.configure, h.toggle, h.foreign, h.vanishOrReturn, h.restart}
	choices[h.random.IntN(len(choices))]()
}

func (h *poolHistory) look() {
	h.t.Helper()
	require.NoError(h.t, h.publisher.Look(h.t.Context()))
}

// allocate is what the cluster's scheduler does with a claim, from what is published.
func (h *poolHistory) allocate() {
	classes := []string{pooltest.WholeClass, pooltest.ReplicaClass, pooltest.MIGClass, pooltest.ProfileClass("1g.10gb"), pooltest.ProfileClass("3g.40gb")}
	class := classes[h.random.IntN(len(classes))]
	node := pool.Node{Name: "node", Driver: pool.DefaultDriver}
	s := pooltest.NewScheduler(node.Name, pool.Slices(node, h.publisher.Resources()))
	s.Allocated = sets.New[structured.DeviceID]()
	for name := range h.held {
		s.Allocated.Insert(structured.MakeDeviceID(node.Driver, node.Name, name))
	}
	names, ok := s.Allocate(h.t, pooltest.Claim(class))
	h.note("allocate %s: %v", class, names)
	if !ok {
		return
	}
	d, known := h.publisher.Device(names[0])
	require.True(h.t, known, names[0])
	for name, other := range h.held {
		board := h.boards[slices.IndexFunc(h.boards, func(g gpu.GPU) bool { return g.UUID == d.GPU })]
		require.False(h.t, board.Collide(d, other.device), "%s is sold although %s is in use", names[0], name)
	}
	h.sold++
	h.held[names[0]] = held{device: d, published: published(h.publisher)[names[0]]}
	h.tell()
}

// tell is what the API server and the journal say from now on.
func (h *poolHistory) tell() {
	h.allocated, h.claims = nil, nil
	for name, d := range h.held {
		h.allocated = append(h.allocated, name)
		if d.prepared {
			h.claims = append(h.claims, &journal.Claim{UID: name, State: journal.ClaimPrepared, Devices: []journal.ClaimDevice{{Device: d.device}}})
		}
	}
}

// any is one of those in use, the empty string if there is none.
func (h *poolHistory) any() string {
	names := slices.Sorted(maps.Keys(h.held))
	if len(names) == 0 {
		return ""
	}
	return names[h.random.IntN(len(names))]
}

// prepare is a pod's start: from then on the board is as the device needs it.
func (h *poolHistory) prepare() {
	name := h.any()
	if name == "" {
		return
	}
	d := h.held[name]
	for i := range h.node.GPUs {
		if g := &h.node.GPUs[i]; g.UUID == d.device.GPU && len(g.Instances) == 0 {
			g.MIG.Current = d.device.Type == gpu.TypeMIG
		}
	}
	d.prepared = true
	h.held[name] = d
	h.note("prepare %s", name)
	h.tell()
}

func (h *poolHistory) release() {
	name := h.any()
	delete(h.held, name)
	h.note("release %s", name)
	h.tell()
	h.publisher.Released()
}

// configure changes the node's configuration, which takes a new process.
func (h *poolHistory) configure() {
	modes := []configv1alpha1.MIGMode{configv1alpha1.MIGOnDemand, configv1alpha1.MIGKeepOn, configv1alpha1.MIGOff}
	p := pooltest.Policy(modes[h.random.IntN(3)], h.random.IntN(2) == 0, h.random.IntN(gpu.MaxReplicas+1))
	h.config = &configv1alpha1.NodeConfiguration{Policies: []configv1alpha1.Policy{p}}
	h.note("configure %+v", p)
	h.restart()
}

func (h *poolHistory) restart() {
	h.note("restart")
	h.publisher = h.start()
}

// toggle is an administrator's change of a MIG mode: the driver lets nobody change that of a board in use.
func (h *poolHistory) toggle() {
	if g := h.free(); g != nil {
		g.MIG.Current, g.Instances = !g.MIG.Current, nil
		h.note("MIG of %s is %t", g.UUID, g.MIG.Current)
	}
}

// foreign is an administrator's instance that comes to a board, or goes.
func (h *poolHistory) foreign() {
	g := h.free()
	if g == nil || !g.MIG.Current {
		return
	}
	if len(g.Instances) > 0 {
		g.Instances = nil
	} else {
		all := gpu.AllPlaced(g.Profiles)
		g.Instances = []gpu.Instance{pooltest.Instance(*g, all[h.random.IntN(len(all))], 1)}
	}
	h.note("foreign on %s: %v", g.UUID, g.Instances)
}

// free is a board of the node on which nothing is in use.
func (h *poolHistory) free() *gpu.GPU {
	for _, i := range h.random.Perm(len(h.node.GPUs)) {
		g := &h.node.GPUs[i]
		used := false
		for _, d := range h.held {
			used = used || d.device.GPU == g.UUID
		}
		if !used {
			return g
		}
	}
	return nil
}

func (h *poolHistory) vanishOrReturn() {
	if len(h.node.GPUs) < len(h.boards) {
		h.node.GPUs = slices.Clone(h.boards)
		h.note("all boards are there, as after a reset")
		return
	}
	i := h.random.IntN(len(h.node.GPUs))
	h.note("%s vanishes", h.node.GPUs[i].UUID)
	h.node.GPUs = slices.Delete(slices.Clone(h.node.GPUs), i, i+1)
}

// check: what is in use is published as it was when it was sold.
func (h *poolHistory) check() {
	h.t.Helper()
	now := published(h.publisher)
	for name, d := range h.held {
		require.Contains(h.t, slices.Collect(maps.Keys(now)), name, "in use, and withdrawn")
		require.Equal(h.t, d.published.ConsumesCounters, now[name].ConsumesCounters, name)
	}
}

// end: when nothing is in use, the node publishes what a new one would.
func (h *poolHistory) end() {
	h.node.GPUs, h.held = slices.Clone(h.boards), map[string]held{}
	h.tell()
	h.look()
	fresh := newWorld(h.t)
	fresh.config = h.config
	require.Equal(h.t, published(fresh.start()), published(h.publisher))
}
