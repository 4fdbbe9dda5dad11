package diagnose_test

import (
	"bytes"
	"cmp"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/pkg/diagnose"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fault is a finding that a seeded node must have.
type fault struct {
	check  string
	status diagnose.Status
	// cause and cure are parts of its texts.
	cause, cure string
}

// seed is a node with one thing wrong.
type seed struct {
	name string
	// boards are the usual ones where empty; bare nodes have no claims.
	boards string
	bare   bool
	spoil  func(w *world)
	want   []fault
	// cure does what the cures say.
	cure func(w *world)
}

func (w *world) recordPath(uid string) string { return w.path("run", "claims", uid+".json") }

func (w *world) specPath(uid string) string {
	found, err := filepath.Glob(w.path("cdi", "*"+uid+"*.json"))
	w.must(err)
	require.Len(w.T, found, 1)
	return found[0]
}

// turnOn turns MIG on, on a board that nobody holds.
func (w *world) turnOn(board int) {
	w.must(w.adapter.SetMIGMode(w.Context(), w.boards[board].UUID, true))
}

// place is a pointer, for the driver's choice is nil.
func place(start, size int) *gpu.Placement { return &gpu.Placement{Start: start, Size: size} }

// removeAside deletes the records that were moved aside, as the cure says after they were looked at.
func (w *world) removeAside() {
	found, err := filepath.Glob(w.path("run", "corrupt", "*"))
	w.must(err)
	require.NotEmpty(w.T, found)
	for _, path := range found {
		w.must(os.Remove(path))
	}
}

// theTen are the nodes that every release has to tell apart.
func theTen() []seed {
	var stopRival func()
	return []seed{
		{name: "sound", spoil: func(*world) {}, cure: func(*world) {}},
		{
			name: "orphan",
			spoil: func(w *world) {
				// The plugin was killed, and what it knew of the claim is lost with it.
				w.must(os.Remove(w.recordPath(uid("notebook"))))
				w.must(w.specs.Remove(uid("notebook")))
				w.must(w.client.ResourceV1().ResourceClaims("research").Delete(w.Context(), "notebook", metav1.DeleteOptions{}))
			},
			want: []fault{{"instances", diagnose.Fail, "GPU instance 7 (1g.10gb at 2:1) is an orphan", "kerf cleanup"}},
			cure: func(w *world) { w.must(w.engine.Cleanup(w.Context())) },
		},
		{
			name: "no-compute-instance",
			spoil: func(w *world) {
				w.turnOn(2)
				_, err := w.sim.CreateInstance("2", "1g.10gb", place(1, 1), false)
				w.must(err)
			},
			want: []fault{{"instances", diagnose.Warn, "GPU instance 7 (1g.10gb at 1:1) has no compute instance and no record", "-gi 7 -dgi"}},
			cure: func(w *world) { w.must(w.sim.DestroyInstance("2", 7)) },
		},
		{
			name:  "corrupt-record",
			spoil: func(w *world) { w.must(os.WriteFile(w.recordPath(uid("notebook")), []byte("{"), 0o600)) },
			want:  []fault{{"records", diagnose.Fail, "the record does not parse", "kerf cleanup does; then look at it and delete it"}},
			cure: func(w *world) {
				require.ErrorContains(w.T, w.engine.Cleanup(w.Context()), "moved to", "it is reported once")
				w.removeAside()
			},
		},
		{
			name:  "lost-spec",
			spoil: func(w *world) { w.must(os.Remove(w.specPath(uid("train")))) },
			want:  []fault{{"cdi-specs", diagnose.Fail, "it is prepared and has no CDI spec", "kerf cleanup"}},
			cure:  func(w *world) { w.must(w.engine.Cleanup(w.Context())) },
		},
		{
			name: "foreign",
			spoil: func(w *world) {
				w.allocate("research", "late", []string{"late-0"}, w.mig(2, "4g.40gb", 0, 4))
				w.turnOn(2)
				_, err := w.sim.CreateInstance("2", "2g.20gb", place(2, 2), true)
				w.must(err)
			},
			want: []fault{
				{"instances", diagnose.Warn, "GPU instance 3 (2g.20gb at 2:2) is foreign", "-gi 3 -dci"},
				{"api-claims", diagnose.Fail, "it is allocated gpu-846e10bd-mig-4g40gb-0, and foreign GPU instance 3 (2g.20gb at 2:2) is in the way", "destroy that instance"},
			},
			cure: func(w *world) { w.must(w.sim.DestroyInstance("2", 3)) },
		},
		{
			name: "lost-gpu", bare: true,
			spoil: func(w *world) { w.must(w.sim.Lose("2")) },
			want:  []fault{{"gpus", diagnose.Fail, "GPU is lost", "reboot the node"}},
			cure:  func(w *world) { w.must(w.sim.Reboot()) },
		},
		{
			name: "toggle-blocked",
			spoil: func(w *world) {
				w.must(w.sim.AddClient("2", nvmlsim.Client{PID: 4242, Command: "nv-hostengine", InPod: true}))
				require.Error(w.T, w.sim.SetMIGMode("2", true))
			},
			want: []fault{{"mig-mode", diagnose.Fail, "MIG is off, a change to on is pending, and the GPU is held by pid 4242 (nv-hostengine) in container 1f0c3a5e7b9d of pod 6a1e2c34-", "end it, then ask for the mode again"}},
			cure: func(w *world) {
				w.must(w.sim.RemoveClient("2", 4242))
				w.turnOn(2)
			},
		},
		{
			name: "two-drivers",
			spoil: func(w *world) {
				pid, stop := start(w.T, "register", w.path("registry", driver+"-other-reg.sock"), w.listen("plugins", "other.sock"))
				w.process(pid, "gpu-kubelet-plu")
				stopRival = func() {
					stop()
					w.must(os.Remove(w.path("registry", driver+"-other-reg.sock")))
				}
			},
			want: []fault{{"other-drivers", diagnose.Fail, "another program, gpu-kubelet-plu, registers the driver gpu.nvidia.com too", "uninstall the other"}},
			cure: func(*world) { stopRival() },
		},
		{
			name:  "no-cdi",
			spoil: func(w *world) { w.containerd("enable_cdi = false") },
			want:  []fault{{"runtime", diagnose.Fail, "CDI is off in /etc/containerd/config.toml", "set enable_cdi = true"}},
			cure:  func(w *world) { w.containerd("enable_cdi = true") },
		},
	}
}

// Every fault is found, named, and is the only one; looking changes nothing; and
// what the cure says makes the node sound again.
func TestSeededNodes(t *testing.T) {
	require.Len(t, theTen(), 10)
	for _, s := range theTen() {
		t.Run(s.name, func(t *testing.T) { s.run(t, true) })
	}
}

func (s seed) run(t *testing.T, golden bool) {
	w := newWorld(t, cmp.Or(s.boards, usual))
	if !s.bare {
		w.inhabit()
	}
	s.spoil(w)
	report := w.diagnose()
	requireFaults(t, report, s.want)
	if golden {
		requireGoldens(t, w, report, s.name)
	}
	s.cure(w)
	// A reboot ends every session of the driver.
	w.adapter = nil
	requireFaults(t, w.diagnose(), nil)
}

func requireFaults(t *testing.T, report *diagnose.Report, want []fault) {
	t.Helper()
	var found []diagnose.Finding
	worst := diagnose.OK
	for _, f := range report.Checks {
		require.NotEmpty(t, f.Cause)
		if f.Status == diagnose.OK {
			require.Empty(t, f.Cure)
			continue
		}
		require.NotEmpty(t, f.Cure)
		found = append(found, f)
		if worst != diagnose.Fail {
			worst = f.Status
		}
	}
	require.Len(t, found, len(want), "%+v", found)
	require.Equal(t, worst, report.Status)
	for i, w := range want {
		require.Equal(t, w.check, found[i].Check)
		require.Equal(t, w.status, found[i].Status)
		require.Contains(t, found[i].Cause, w.cause)
		require.Contains(t, found[i].Cure, w.cure)
	}
}

// requireGoldens compares all forms of a report with the kept ones, in which the node's directory has a name that stays.
func requireGoldens(t *testing.T, w *world, r *diagnose.Report, name string) {
	t.Helper()
	for suffix, write := range map[string]func(*bytes.Buffer) error{
		"txt":       func(b *bytes.Buffer) error { return r.WriteText(b, diagnose.TextOptions{}) },
		"ascii.txt": func(b *bytes.Buffer) error { return r.WriteText(b, diagnose.TextOptions{ASCII: true}) },
		"json":      func(b *bytes.Buffer) error { return r.WriteJSON(b) },
		"yaml":      func(b *bytes.Buffer) error { return r.WriteYAML(b) },
		"html":      func(b *bytes.Buffer) error { return r.WriteHTML(b) },
	} {
		if name != "sound" && suffix != "txt" && suffix != "json" && (suffix != "html" || name != "foreign") {
			continue
		}
		var out bytes.Buffer
		require.NoError(t, write(&out))
		got := strings.ReplaceAll(out.String(), w.dir, "/node")
		path := filepath.Join("testdata", name+"."+suffix)
		if *update {
			require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
		}
		want, err := os.ReadFile(path)
		require.NoError(t, err, "run the test with -update to write it")
		require.Equal(t, string(want), got, "run the test with -update if that is meant")
	}
}
