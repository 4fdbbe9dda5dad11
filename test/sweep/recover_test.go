//go:build sweep

package sweep

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/claims/crash"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// These are the rows of the table of states in docs/reliability.md: what a process
// finds, and what it makes of it by itself. They rely on nothing but its start,
// unless they say so.

var small = mig(0, "1g.10gb", 6, 1)

// oneClaim is a node with a claim that a process has prepared.
func oneClaim(t *testing.T, idle int) (*node, *claim, *process) {
	n := newNode(t, []int{0}, idle)
	c := &claim{uid: "claim", devices: []device{small}}
	n.allocate(c)
	p := n.start("a", crash.Options{})
	require.NoError(t, prepare(t.Context(), p, c.uid))
	require.Empty(t, n.observe(c).violations())
	return n, c, p
}

// restart starts a plugin again and waits until it serves, which is after its recovery.
func (n *node) restart(flags ...string) *process {
	n.t.Helper()
	p := n.start("a", crash.Options{}, flags...)
	require.NoError(n.t, ready(n.t.Context(), p))
	return p
}

// finish releases a claim, after which nothing is left but what was foreign.
func (n *node) finish(p *process, c *claim) {
	n.t.Helper()
	require.NoError(n.t, unprepare(n.t.Context(), p, c.uid))
	n.api.forget(c.uid)
	require.Empty(n.t, n.observe().violations())
}

func TestRecoverUndoesAnIntent(t *testing.T) {
	n := newNode(t, []int{0}, 0)
	s := shape{devices: []device{small}, inMIG: []int{0}}
	o := enumerate(t, s, "")
	at := index(t, o, "CreateComputeInstance")
	c := &claim{uid: "claim", devices: s.devices}
	n.allocate(c)
	p := n.start("a", crash.Options{At: fmt.Sprintf("after:%d", at)})
	require.Error(t, prepare(t.Context(), p, c.uid))
	require.NoError(t, p.died())
	_, there := n.find(small)
	require.True(t, there)

	n.restart()
	require.Empty(t, n.observe().violations())
	_, there = n.find(small)
	require.False(t, there)
}

func TestRecoverGoesOnWithARelease(t *testing.T) {
	n := newNode(t, []int{0}, 0)
	s := shape{devices: []device{small}, inMIG: []int{0}}
	o := enumerate(t, s, "")
	c := &claim{uid: "claim", devices: s.devices}
	n.allocate(c)
	p := n.start("a", crash.Options{At: fmt.Sprintf("after:%d", index(t, o, "DestroyComputeInstance"))})
	require.NoError(t, prepare(t.Context(), p, c.uid))
	require.Error(t, unprepare(t.Context(), p, c.uid))
	require.NoError(t, p.died())

	n.restart()
	require.Empty(t, n.observe().violations())
	_, there := n.find(small)
	require.False(t, there)
}

// index is where the operation is that has this name.
func index(t *testing.T, o operations, name string) int {
	t.Helper()
	for i, full := range o.all {
		if strings.HasPrefix(full, name+" ") {
			return i
		}
	}
	require.FailNow(t, "there is no such operation", name)
	return 0
}

func TestRecoverWritesALostSpecAgain(t *testing.T) {
	n, c, p := oneClaim(t, 0)
	before, err := os.ReadFile(n.specPath(c.uid))
	require.NoError(t, err)
	p.kill()
	require.NoError(t, os.Remove(n.specPath(c.uid)))

	p = n.restart()
	require.Empty(t, n.observe(c).violations())
	after, err := os.ReadFile(n.specPath(c.uid))
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
	n.finish(p, c)
}

// An instance that vanishes under its user is never made again, and its user is sent away.
func TestRecoverReportsALostInstance(t *testing.T) {
	n, c, p := oneClaim(t, 0)
	ours, _ := n.find(small)
	p.kill()
	require.NoError(t, n.sim.DestroyInstance(n.uuids[0], ours.ID))

	p = n.restart()
	record, err := n.journal().Claim(c.uid)
	require.NoError(t, err)
	require.Equal(t, journal.ClaimLost, record.State)
	require.NoFileExists(t, n.specPath(c.uid), "nobody can start with it")
	require.ErrorContains(t, prepare(t.Context(), p, c.uid), "vanished")
	_, there := n.find(small)
	require.False(t, there)
	n.eventually("the device to be tainted", func() bool {
		return slices.Contains(n.api.taints(n.name(small)), "gpu.kerf.dev/InstanceLost:NoExecute")
	})
	n.finish(p, c)
}

// Nobody's instance stays, over a crash as well, until somebody has it.
func TestRecoverKeepsIdleInstances(t *testing.T) {
	n, c, p := oneClaim(t, 4)
	before, _ := n.find(small)
	n.finish(p, c)
	p.kill()

	p = n.restart()
	require.Empty(t, n.observe().violations())
	next := &claim{uid: "next", devices: c.devices}
	n.allocate(next)
	require.NoError(t, prepare(t.Context(), p, next.uid))
	require.Empty(t, n.observe(next).violations())
	after, _ := n.find(small)
	require.Equal(t, before, after)
	n.finish(p, next)
}

// What kerf did not make it does not touch, be it in use, in the way or without a compute instance.
func TestRecoverLeavesForeignInstances(t *testing.T) {
	n, c, p := oneClaim(t, 0)
	p.kill()
	n.intrude(mig(0, "3g.40gb", 0, 4))
	bare, err := n.sim.CreateInstance(n.uuids[0], "1g.10gb", &gpu.Placement{Start: 4, Size: 1}, false)
	require.NoError(t, err)
	n.foreign = append(n.foreign, bare)

	p = n.restart()
	require.Empty(t, n.observe(c).violations())
	blocked := &claim{uid: "blocked", devices: []device{mig(0, "2g.20gb", 4, 2)}}
	n.allocate(blocked)
	require.ErrorContains(t, prepare(t.Context(), p, blocked.uid), "foreign")
	n.api.forget(blocked.uid)
	n.finish(p, c)
}

// A record that cannot be read is put aside and made anew from the CDI spec.
func TestRecoverRebuildsADamagedRecord(t *testing.T) {
	for name, damage := range map[string]string{"cut off": `{"version": 1, "uid": "cl`, "empty": "", "of a later version": `{"version": 99}`} {
		t.Run(name, func(t *testing.T) {
			n, c, p := oneClaim(t, 0)
			p.kill()
			n.write("run/claims/"+c.uid+".json", damage)
			instances, err := filepath.Glob(n.path("run/instances/*.json"))
			require.NoError(t, err)
			require.Len(t, instances, 1)
			require.NoError(t, os.WriteFile(instances[0], []byte(damage), 0o600))

			p = n.restart()
			require.Empty(t, n.observe(c).violations())
			aside, err := filepath.Glob(n.path("run/corrupt/*"))
			require.NoError(t, err)
			require.Len(t, aside, 2)
			n.finish(p, c)
		})
	}
}

// A damaged record that nothing else tells of keeps nobody from working.
func TestRecoverGoesOnWithoutADamagedRecord(t *testing.T) {
	n := newNode(t, []int{0}, 0)
	require.NoError(t, os.MkdirAll(n.path("run/claims"), 0o700))
	require.NoError(t, os.MkdirAll(n.path("run/instances"), 0o700))
	n.write("run/claims/unknown.json", "not JSON")
	n.write("run/instances/unknown.json", "\x00")
	p := n.restart()
	require.Empty(t, n.observe().violations())
	c := &claim{uid: "claim", devices: []device{small}}
	n.allocate(c)
	require.NoError(t, prepare(t.Context(), p, c.uid))
	n.finish(p, c)
}

// quickly looks for stale claims all the time.
var quickly = []string{"--recover-every=50ms", "--stale-after=100ms"}

// A claim that is gone is released by itself, and not while a pod of the node has it.
func TestRecoverReleasesAStaleClaimThatNoPodHas(t *testing.T) {
	n, c, p := oneClaim(t, 0)
	p.kill()
	n.kubelet.give("kerf.dev/claim=" + c.uid + "-" + n.name(small))
	n.api.forget(c.uid)
	n.restart(quickly...)
	// It asks the kubelet only about claims that are to be released.
	n.eventually("the kubelet to be asked again and again", func() bool { return n.kubelet.times() > 5 })
	_, there := n.find(small)
	require.True(t, there)
	require.FileExists(t, n.specPath(c.uid))

	n.kubelet.give()
	n.eventually("the claim to be released", func() bool { return len(n.observe().violations()) == 0 })
}

// Nor while a process has its variable: the kubelet may have forgotten a container that lives.
func TestRecoverReleasesAStaleClaimThatNoProcessHas(t *testing.T) {
	n, c, p := oneClaim(t, 0)
	p.kill()
	record, err := n.journal().Claim(c.uid)
	require.NoError(t, err)
	name := strings.ToUpper(strings.ReplaceAll(n.name(small), "-", "_"))
	tenant := exec.Command("sleep", "3600")
	tenant.Env = []string{"KERF_R0_" + name + "_UUID=" + record.Devices[0].Instance.Compute[0].UUID}
	tenant.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, tenant.Start())
	end := func() {
		_ = tenant.Process.Kill()
		_ = tenant.Wait()
	}
	t.Cleanup(end)
	spec, err := os.ReadFile(n.specPath(c.uid))
	require.NoError(t, err)
	require.Contains(t, string(spec), tenant.Env[0])

	n.api.forget(c.uid)
	n.restart(quickly...)
	n.eventually("the kubelet to be asked again and again", func() bool { return n.kubelet.times() > 5 })
	_, there := n.find(small)
	require.True(t, there)

	end()
	n.eventually("the claim to be released", func() bool { return len(n.observe().violations()) == 0 })
}

// The records of every version that ever was are understood.
func TestRecoverReadsOldRecords(t *testing.T) {
	versions, err := filepath.Glob("../../pkg/journal/testdata/v*/claims/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, versions)
	for _, path := range versions {
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(path))), func(t *testing.T) {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			golden, err := journal.ParseClaim(strings.TrimSuffix(filepath.Base(path), ".json"), text)
			require.NoError(t, err)
			require.Len(t, golden.Devices, 1)

			// The same on this node: the instance was there before kerf, as the record says that it has none of its own.
			n := newNode(t, []int{0}, 0)
			old := *golden.Devices[0].Instance
			d := device{board: 0, kind: gpu.TypeMIG, profile: old.Profile, at: old.Placement}
			made := n.intrude(d)
			here := strings.NewReplacer(golden.Devices[0].Device.GPU+`"`, n.uuids[0]+`"`, golden.Name, golden.UID, old.Compute[0].UUID, made.Compute[0].UUID, fmt.Sprintf(`"id": %d`, old.ID), fmt.Sprintf(`"id": %d`, made.ID)).Replace(string(text))
			require.NoError(t, os.MkdirAll(n.path("run/claims"), 0o700))
			n.write("run/claims/"+filepath.Base(path), here)
			c := &claim{uid: golden.UID, devices: []device{d}}
			n.allocate(c)

			p := n.restart()
			require.Empty(t, n.observe(c).violations())
			n.finish(p, c)
		})
	}
}
