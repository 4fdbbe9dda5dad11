package diagnose_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/kerf-project/kerf/pkg/diagnose"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/nvml"
)

// changeSlices changes what is published, and returns what puts it back.
func (w *world) changeSlices(change func([]resourceapi.ResourceSlice) []resourceapi.ResourceSlice) (restore func()) {
	api := w.client.ResourceV1().ResourceSlices()
	before, err := api.List(w.Context(), metav1.ListOptions{})
	w.must(err)
	publish := func(all []resourceapi.ResourceSlice) {
		for i := range before.Items {
			w.must(api.Delete(w.Context(), before.Items[i].Name, metav1.DeleteOptions{}))
		}
		for i := range all {
			_, err := api.Create(w.Context(), &all[i], metav1.CreateOptions{})
			w.must(err)
		}
		before.Items = all
	}
	was := before.DeepCopy().Items
	publish(change(before.DeepCopy().Items))
	return func() { publish(was) }
}

func moreOfThePool() []seed {
	var restore func()
	spoil := func(change func([]resourceapi.ResourceSlice) []resourceapi.ResourceSlice) func(*world) {
		return func(w *world) { restore = w.changeSlices(change) }
	}
	cure := func(*world) { restore() }
	return []seed{
		{
			name: "nothing is published", cure: cure,
			spoil: spoil(func([]resourceapi.ResourceSlice) []resourceapi.ResourceSlice { return nil }),
			want:  []fault{{"api-pool", diagnose.Fail, "the API has no ResourceSlice of driver gpu.nvidia.com for node node-a", "start the plugin"}},
		},
		{
			name: "a slice is missing", cure: cure,
			spoil: spoil(func(all []resourceapi.ResourceSlice) []resourceapi.ResourceSlice { return all[:2] }),
			want:  []fault{{"api-pool", diagnose.Fail, "2 of 3 slices of generation 1 are there", "kubectl logs"}},
		},
		{
			name: "a server that knows no counters", cure: cure,
			spoil: spoil(func(all []resourceapi.ResourceSlice) []resourceapi.ResourceSlice {
				for i := range all {
					all[i].Spec.SharedCounters = nil
				}
				return all
			}),
			want: []fault{{"api-pool", diagnose.Fail, "the slices have no counters", "DRAPartitionableDevices"}},
		},
		{
			name: "a device in use is not published", cure: cure,
			spoil: spoil(func(all []resourceapi.ResourceSlice) []resourceapi.ResourceSlice {
				for i := range all {
					for n, d := range all[i].Spec.Devices {
						if d.Name == "gpu-9275dbd2" {
							all[i].Spec.Devices = append(all[i].Spec.Devices[:n], all[i].Spec.Devices[n+1:]...)
							break
						}
					}
				}
				return all
			}),
			want: []fault{{"api-pool", diagnose.Fail, "its device gpu-9275dbd2 is in use and not published", "kubectl logs"}},
		},
	}
}

// Without the API, and with one that does not answer, the node itself is looked
// at all the same, and the report says what was not.
func TestWithoutTheAPI(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world)
		want   string
	}{
		"no access": {func(w *world) { w.sources.Client, w.sources.NoClient = nil, "no kubeconfig" }, "the API server: no kubeconfig"},
		"no name":   {func(w *world) { w.sources.NodeName = "" }, "the API server: the node's name is not known"},
		"no answer": {func(w *world) {
			w.client.PrependReactor("list", "resourceclaims", func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, nil, errors.New("it is asleep")
			})
		}, "the API server: list the claims: it is asleep"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, usual).inhabit()
			c.change(w)
			report := w.diagnose()
			requireFaults(t, report, nil)
			require.Len(t, report.NotLookedAt, 1)
			require.Contains(t, report.NotLookedAt[0], c.want)
			require.Len(t, report.Claims, 5)
			for _, claim := range report.Claims {
				require.Empty(t, claim.State)
			}
			require.Equal(t, "prepared", report.GPUs[0].Rows[0][1].ClaimState, "the record's state, where the API's is not known")
		})
	}
}

// A node without the driver is diagnosed as far as it goes, from what was published last.
func TestWithoutTheDriver(t *testing.T) {
	w := newWorld(t, usual).inhabit()
	w.wrap = func(a *nvml.Adapter) diagnose.Hardware { return deaf{a} }
	report := w.diagnose()
	require.False(t, report.Looked())
	requireFaults(t, report, []fault{{"driver", diagnose.Fail, "no driver here", "install or load"}})
	require.Len(t, report.GPUs, 4)
	for _, g := range report.GPUs {
		require.Equal(t, "the driver was not asked", g.Unread)
	}
	require.Equal(t, "research/train", report.GPUs[0].Rows[0][len(report.GPUs[0].Rows[0])-1].Claim)
}

// The plugin's own word counts too: that the kubelet has registered it cannot be seen otherwise.
func TestReadiness(t *testing.T) {
	w := newWorld(t, usual).inhabit()
	status, text := http.StatusServiceUnavailable, "the kubelet has not registered the plugin yet"
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { http.Error(out, text, status) }))
	w.sources.Readyz = server.URL
	requireFaults(t, w.diagnose(), []fault{{"kubelet", diagnose.Fail, "the plugin is not ready: the kubelet has not registered the plugin yet", "start the plugin"}})
	status, text = http.StatusOK, "ok"
	requireFaults(t, w.diagnose(), nil)
	server.Close()
	requireFaults(t, w.diagnose(), []fault{{"kubelet", diagnose.Fail, "connection refused", "start the plugin"}})
}

// Another process of the node can hold every lock of the journal meanwhile.
func TestBesideAWorkingPlugin(t *testing.T) {
	w := newWorld(t, usual).inhabit()
	_, stop := start(t, "lock", w.path("run"), uid("train"), w.boards[0].UUID, w.boards[1].UUID)
	defer stop()
	_, err := w.records.TryLockClaim(uid("train"))
	require.ErrorIs(t, err, journal.ErrLocked, "else this test shows nothing")
	requireFaults(t, w.diagnose(), nil)
}

// Colours change nothing but colours.
func TestColors(t *testing.T) {
	report := newWorld(t, usual).inhabit().diagnose()
	var plain, colored bytes.Buffer
	require.NoError(t, report.WriteText(&plain, diagnose.TextOptions{}))
	require.NoError(t, report.WriteText(&colored, diagnose.TextOptions{Color: true}))
	require.Contains(t, colored.String(), "\x1b[32mok")
	stripped := regexp.MustCompile("\x1b\\[[0-9]+m").ReplaceAllString(colored.String(), "")
	trailing := regexp.MustCompile(` +\n`)
	require.Equal(t, plain.String(), trailing.ReplaceAllString(stripped, "\n"))
}

// Where a terminal has nothing but ASCII, it is shown nothing else.
func TestASCII(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, newWorld(t, usual).inhabit().diagnose().WriteText(&out, diagnose.TextOptions{ASCII: true}))
	require.NotRegexp(t, `[^\x00-\x7f]`, out.String())
}

// deaf is hardware that can't be opened.
type deaf struct{ *nvml.Adapter }

func (deaf) Open(context.Context) error { return fmt.Errorf("no driver here: %w", gpu.ErrNotFound) }
