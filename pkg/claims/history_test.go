package claims_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/nvml"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

var seed = flag.Uint64("seed", 0, "replay the history of this seed alone")

// The histories that a plain run looks at, and how long each is.
const (
	histories = 12
	events    = 60
)

// node is the real journal, adapter and spec writer on simulated boards.
type node struct {
	t    *testing.T
	dir  string
	sim  *nvmlsim.Node
	fail *failing
	// The process that lives now.
	adapter *nvml.Adapter
	engine  *claims.Engine
	journal *journal.Journal
	specs   *cdispec.Writer
	boards  []gpu.GPU
	// sick is the board on which something is wrong, if any.
	sick string
}

func newNode(t *testing.T, seed uint64) *node {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "kerf-history-") // Fast, as on a node.
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	n := &node{t: t, dir: dir, fail: &failing{}}
	spec, err := nvmlsim.Parse(fmt.Sprintf("2xH100-SXM5-80GB,1xA100-SXM4-40GB,1xL40S,seed=%d,state=%s", seed%1000, filepath.Join(dir, "sim")))
	require.NoError(t, err)
	n.sim, err = nvmlsim.Open(spec)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.sim.Close()) })
	require.ErrorContains(t, n.sim.SetMIGMode("2", true), "RESET_REQUIRED")
	require.NoError(t, n.sim.Reset("2"))
	n.start()
	t.Cleanup(func() { require.NoError(t, n.adapter.Close()) })
	return n
}

// start is a new process on the node, with its recovery.
func (n *node) start() {
	n.t.Helper()
	n.fail.dead = false
	n.fail.left = -1
	n.adapter = nvml.New(n.sim.Interface(), nvml.WithHostRoot(n.sim.HostRoot()))
	require.NoError(n.t, n.adapter.Open(n.t.Context()))
	var err error
	n.journal, err = journal.Open(filepath.Join(n.dir, "run"))
	require.NoError(n.t, err)
	n.specs, err = cdispec.New(cdispec.Options{
		Lib: n.sim.Interface(), CDIRoot: filepath.Join(n.dir, "cdi"), HostRoot: n.sim.HostRoot(),
		DriverRoot: n.sim.DriverRoot(), HostDriverRoot: n.sim.DriverRoot(), Logger: klog.Background(),
	})
	require.NoError(n.t, err)
	bound := 2
	idle := configv1alpha1.IdleInstances{MaxPerGPU: &bound, MaxAge: metav1.Duration{Duration: time.Hour}, Scope: configv1alpha1.IdleScopeNamespace}
	n.engine = claims.New(failingHardware{n.adapter, n.sim, n.fail}, failingJournal{n.journal, n.fail}, n.specs, func(string) configv1alpha1.Policy { return configv1alpha1.Policy{IdleInstances: idle} }, func(d gpu.Device) bool { return d.GPU == n.sick })
	found, _ := n.adapter.Node(n.t.Context())
	for _, g := range found.GPUs {
		if !slices.ContainsFunc(n.boards, func(b gpu.GPU) bool { return b.UUID == g.UUID }) {
			n.boards = append(n.boards, g)
		}
	}
	_ = n.engine.Recover(n.t.Context()) // A lost board keeps it from its claims; the next recovery goes on.
}

// kill ends the process that lives now, as it is.
func (n *node) kill() {
	n.t.Helper()
	require.NoError(n.t, n.adapter.Close())
}

// failing lets so many changes pass and then fails all, as for a process that is killed.
type failing struct {
	mu   sync.Mutex
	left int
	dead bool
}

var errDead = errors.New("the process is dead")

func (f *failing) change() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left == 0 {
		f.dead = true
	}
	if f.left > 0 {
		f.left--
	}
	if f.dead {
		return errDead
	}
	return nil
}

type failingHardware struct {
	*nvml.Adapter
	sim *nvmlsim.Node
	f   *failing
}

// SetTimeSlice is the adapter's without the execution of nvidia-smi.
func (h failingHardware) SetTimeSlice(_ context.Context, uuid string, slice gpu.TimeSlice) error {
	if err := h.f.change(); err != nil {
		return err
	}
	return h.sim.SetTimeSlice(uuid, slice)
}

func (h failingHardware) CreateGPUInstance(ctx context.Context, uuid, profile string, at gpu.Placement) (gpu.Instance, error) {
	if err := h.f.change(); err != nil {
		return gpu.Instance{}, err
	}
	return h.Adapter.CreateGPUInstance(ctx, uuid, profile, at)
}

func (h failingHardware) CreateComputeInstance(ctx context.Context, i gpu.Instance) (gpu.Instance, error) {
	if err := h.f.change(); err != nil {
		return gpu.Instance{}, err
	}
	return h.Adapter.CreateComputeInstance(ctx, i)
}

func (h failingHardware) DestroyComputeInstance(ctx context.Context, i gpu.Instance) (gpu.Instance, error) {
	if err := h.f.change(); err != nil {
		return gpu.Instance{}, err
	}
	return h.Adapter.DestroyComputeInstance(ctx, i)
}

func (h failingHardware) DestroyGPUInstance(ctx context.Context, i gpu.Instance) error {
	if err := h.f.change(); err != nil {
		return err
	}
	return h.Adapter.DestroyGPUInstance(ctx, i)
}

func (h failingHardware) SetMIGMode(ctx context.Context, uuid string, on bool) error {
	if err := h.f.change(); err != nil {
		return err
	}
	return h.Adapter.SetMIGMode(ctx, uuid, on)
}

type failingJournal struct {
	*journal.Journal
	f *failing
}

func (j failingJournal) PutClaim(c *journal.Claim) error {
	if err := j.f.change(); err != nil {
		return err
	}
	return j.Journal.PutClaim(c)
}

func (j failingJournal) DeleteClaim(uid string) error {
	if err := j.f.change(); err != nil {
		return err
	}
	return j.Journal.DeleteClaim(uid)
}

func (j failingJournal) PutInstance(i *journal.Instance) error {
	if err := j.f.change(); err != nil {
		return err
	}
	return j.Journal.PutInstance(i)
}

func (j failingJournal) DeleteInstance(at gpu.Instance) error {
	if err := j.f.change(); err != nil {
		return err
	}
	return j.Journal.DeleteInstance(at)
}

// history is a random course of events and the model that it is held against.
type history struct {
	*node
	random *rand.Rand
	// held are the devices of the claims that were prepared and not released, by
	// UID; of those that are in pending it is not known whether they are prepared.
	held    map[string][]gpu.Device
	pending map[string][]gpu.Device
	// foreign are the administrator's instances.
	foreign map[string]gpu.Instance
	lost    map[string]bool
	// unsliced are boards that have lost their time slice under their users.
	unsliced map[string]bool
	next     int
	log      []string
}

// Whatever happens, in whatever order, no device is given twice, no foreign
// instance is touched, and nothing is left when all claims have ended.
func TestRandomHistories(t *testing.T) {
	seeds := []uint64{*seed}
	if *seed == 0 {
		seeds = nil
		for n := range uint64(histories) {
			seeds = append(seeds, n+1)
		}
	}
	for _, s := range seeds {
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			h := &history{
				node: newNode(t, s), random: rand.New(rand.NewPCG(s, 0)),
				held: map[string][]gpu.Device{}, pending: map[string][]gpu.Device{}, foreign: map[string]gpu.Instance{}, lost: map[string]bool{}, unsliced: map[string]bool{},
			}
			defer func() {
				if t.Failed() {
					t.Logf("replay with: go test ./pkg/claims -run TestRandomHistories -seed %d", s)
					for _, line := range h.log {
						t.Log(line)
					}
				}
			}()
			for range events {
				h.event()
				h.check()
			}
			h.end()
		})
	}
}

func (h *history) event() {
	choices := []struct {
		weight int
		do     func()
	}{
		{10, h.prepare}, {7, h.unprepare}, {3, h.crash}, {2, h.adminCreates}, {1, h.adminDestroys},
		{2, h.adminToggles}, {1, h.loseOrRestore}, {1, h.sickenOrHeal}, {1, h.reboot}, {1, func() { h.note("recover"); _ = h.engine.Recover(h.t.Context()) }},
	}
	total := 0
	for _, c := range choices {
		total += c.weight
	}
	for n := h.random.IntN(total); ; choices = choices[1:] {
		if n -= choices[0].weight; n < 0 {
			choices[0].do()
			return
		}
	}
}

func (h *history) note(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

func (h *history) device() gpu.Device {
	board := h.boards[h.random.IntN(len(h.boards))]
	devices := slices.SortedFunc(maps.Values(gpu.Catalogue([]gpu.GPU{board})), func(a, b gpu.Device) int {
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	})
	return devices[h.random.IntN(len(devices))]
}

func (h *history) prepare() {
	uid := fmt.Sprintf("claim-%d", h.next)
	h.next++
	devices := []gpu.Device{h.device()}
	if h.random.IntN(4) == 0 {
		devices = append(devices, h.device())
	}
	h.prepareAs(uid, devices)
}

func (h *history) prepareAs(uid string, devices []gpu.Device) {
	wish := append(gpu.TimeSlices(), "")[h.random.IntN(5)]
	_, err := h.engine.Prepare(h.t.Context(), slicing(uid, wish, devices...))
	h.note("prepare %s %v with time slice %q: %v", uid, devices, wish, err)
	switch {
	case err == nil:
		h.held[uid] = devices
	case errors.Is(err, errDead), len(h.pending[uid]) > 0:
		h.pending[uid] = devices
	}
}

func (h *history) unprepare() {
	uids := slices.Sorted(maps.Keys(h.held))
	uids = append(uids, slices.Sorted(maps.Keys(h.pending))...)
	if len(uids) == 0 {
		return
	}
	uid := uids[h.random.IntN(len(uids))]
	err := h.engine.Unprepare(h.t.Context(), uid)
	h.note("unprepare %s: %v", uid, err)
	if err == nil {
		h.checkNoneKeptOnSick(uid)
		delete(h.held, uid)
		delete(h.pending, uid)
		return
	}
	h.pending[uid] = append(h.held[uid], h.pending[uid]...)
	delete(h.held, uid)
}

// crash lets the process die in the middle of a call and starts another.
func (h *history) crash() {
	h.fail.left = h.random.IntN(8)
	h.note("the process dies after %d changes of:", h.fail.left)
	if h.random.IntN(2) == 0 {
		h.prepare()
	} else {
		h.unprepare()
	}
	h.kill()
	h.start()
}

func (h *history) board() string { return fmt.Sprint(h.random.IntN(len(h.boards))) }

func (h *history) adminCreates() {
	profiles := []string{"1g.10gb", "2g.20gb", "3g.40gb", "1g.5gb", "3g.20gb"}
	profile := profiles[h.random.IntN(len(profiles))]
	made, err := h.sim.CreateInstance(h.board(), profile, nil, h.random.IntN(4) > 0)
	h.note("the administrator makes %s: %v", &made, err)
	if err == nil {
		h.foreign[made.String()] = made
	}
}

func (h *history) adminDestroys() {
	names := slices.Sorted(maps.Keys(h.foreign))
	if len(names) == 0 {
		return
	}
	i := h.foreign[names[h.random.IntN(len(names))]]
	// Not one that a claim uses: that would be the administrator's fault, and is tested elsewhere.
	for _, devices := range []map[string][]gpu.Device{h.held, h.pending} {
		for _, all := range devices {
			if slices.Contains(all, i.Device()) {
				return
			}
		}
	}
	err := h.sim.DestroyInstance(i.GPU, i.ID)
	h.note("the administrator destroys %s: %v", &i, err)
	if err == nil {
		delete(h.foreign, i.String())
	}
}

func (h *history) adminToggles() {
	board, on := h.board(), h.random.IntN(2) == 0
	h.note("the administrator turns MIG of %s to %t: %v", board, on, h.sim.SetMIGMode(board, on))
}

func (h *history) loseOrRestore() {
	board := h.boards[h.random.IntN(len(h.boards))].UUID
	if h.lost[board] {
		h.note("%s is back: %v", board, h.sim.Restore(board))
		delete(h.lost, board)
		return
	}
	h.note("%s is lost: %v", board, h.sim.Lose(board))
	h.lost[board], h.unsliced[board] = true, true
}

func (h *history) sickenOrHeal() {
	if h.sick != "" {
		h.note("%s is well again", h.sick)
		h.sick = ""
		return
	}
	h.sick = h.boards[h.random.IntN(len(h.boards))].UUID
	h.note("%s is not well", h.sick)
}

// checkNoneKeptOnSick: what a released claim had on a board that is not well is not kept for the next.
func (h *history) checkNoneKeptOnSick(uid string) {
	h.t.Helper()
	records, err := h.journal.InstancesOn(h.sick)
	require.NoError(h.t, err)
	for _, r := range records {
		require.False(h.t, slices.Contains(h.held[uid], r.Instance.Device()) && r.State == journal.InstanceIdle, "%s is kept", &r.Instance)
	}
}

// reboot ends all instances, and with the tmpfs the journal and the specs; the kubelet asks again for its claims.
func (h *history) reboot() {
	h.note("reboot")
	h.kill()
	require.NoError(h.t, h.sim.Reboot())
	for _, dir := range []string{"run", "cdi"} {
		require.NoError(h.t, os.RemoveAll(filepath.Join(h.dir, dir)))
	}
	h.foreign, h.lost, h.unsliced = map[string]gpu.Instance{}, map[string]bool{}, map[string]bool{}
	asked := maps.Clone(h.held)
	h.held, h.pending = map[string][]gpu.Device{}, map[string][]gpu.Device{}
	h.start()
	for _, uid := range slices.Sorted(maps.Keys(asked)) {
		h.prepareAs(uid, asked[uid])
	}
}

// check holds hardware, records and specs against the model.
func (h *history) check() {
	t := h.t
	t.Helper()
	boards, err := h.sim.Boards()
	require.NoError(t, err)
	present := map[gpu.Device]gpu.Instance{}
	for _, b := range boards {
		for _, i := range b.Instances {
			present[i.Device()] = i
		}
	}
	for _, i := range h.foreign {
		found, ok := present[i.Device()]
		require.True(t, ok && found.Same(i), "the foreign %s was touched", &i)
	}
	records, err := h.journal.Instances()
	require.NoError(t, err)
	recorded := map[gpu.Device]*journal.Instance{}
	for _, r := range records {
		recorded[r.Instance.Device()] = r
	}
	for d, i := range present {
		_, foreign := h.foreign[i.String()]
		require.True(t, foreign || recorded[d] != nil, "%s is nobody's", &i)
		require.False(t, foreign && recorded[d] != nil, "the foreign %s has a record", &i)
	}
	var users []gpu.Device
	for _, uid := range slices.Sorted(maps.Keys(h.held)) {
		c, err := h.journal.Claim(uid)
		require.NoError(t, err)
		require.Equal(t, journal.ClaimPrepared, c.State, uid)
		exists, err := h.specs.Exists(uid)
		require.NoError(t, err)
		require.True(t, exists, "claim %s has no CDI spec", uid)
		for _, d := range c.Devices {
			for _, o := range users {
				require.False(t, o.Overlaps(d.Device), "%s and %s are both given out", o, d.Device)
			}
			users = append(users, d.Device)
			if d.Device.Type == gpu.TypeMIG {
				found, ok := present[d.Device]
				require.True(t, ok && found.Same(*d.Instance), "claim %s does not have %s", uid, d.Instance)
			}
		}
	}
	for _, b := range boards {
		h.checkTimeSlice(b)
	}
	withSpec, err := h.specs.Claims()
	require.NoError(t, err)
	for _, uid := range withSpec {
		_, err := h.journal.Claim(uid)
		require.NoError(t, err, "a CDI spec without a record")
	}
}

// checkTimeSlice: all users of a board have the time slice that it has, and a
// board that nobody uses has the default.
func (h *history) checkTimeSlice(b nvmlsim.Board) {
	t := h.t
	t.Helper()
	on := func(d gpu.Device) bool { return d.GPU == b.UUID && d.Type != gpu.TypeMIG }
	used := false
	for _, uid := range slices.Sorted(maps.Keys(h.held)) {
		c, err := h.journal.Claim(uid)
		require.NoError(t, err)
		for _, d := range c.Devices {
			if !on(d.Device) {
				continue
			}
			used = true
			if set := d.TimeSlice.Set; !h.unsliced[b.UUID] && set != "" {
				require.Equal(t, set, b.TimeSlice, "%s of claim %s", b.UUID, uid)
			}
		}
	}
	if used {
		return
	}
	for _, devices := range h.pending {
		if slices.ContainsFunc(devices, on) {
			return // Who knows.
		}
	}
	delete(h.unsliced, b.UUID)
	require.Equal(t, gpu.TimeSliceDefault, b.TimeSlice, "nobody uses %s", b.UUID)
}

// end lets all claims end and every board come back.
func (h *history) end() {
	t := h.t
	for uuid := range h.lost {
		require.NoError(t, h.sim.Restore(uuid))
	}
	for _, claims := range []map[string][]gpu.Device{h.held, h.pending} {
		for uid := range claims {
			require.NoError(t, h.engine.Unprepare(t.Context(), uid))
		}
	}
	h.held, h.pending = map[string][]gpu.Device{}, map[string][]gpu.Device{}
	require.NoError(t, h.engine.Cleanup(t.Context()))
	h.check()
	for kind, list := range map[string]func() (int, error){
		"claim records":    func() (int, error) { all, err := h.journal.Claims(); return len(all), err },
		"instance records": func() (int, error) { all, err := h.journal.Instances(); return len(all), err },
		"CDI specs":        func() (int, error) { all, err := h.specs.Claims(); return len(all), err },
	} {
		n, err := list()
		require.NoError(t, err)
		require.Zero(t, n, kind)
	}
}
