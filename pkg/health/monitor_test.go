package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// fakeNode is a node of which a test says what its boards answer.
type fakeNode struct {
	events chan gpu.Event
	dir    string
	host   string

	mu      sync.Mutex
	lost    []string
	uuids   []string
	request string
	apiErr  error
	asked   int
	// publishing is true in the process that publishes.
	publishing bool
	wakes      int
	reports    []string
}

func newFakeNode(t *testing.T) *fakeNode {
	n := &fakeNode{events: make(chan gpu.Event), dir: t.TempDir(), host: t.TempDir(), uuids: []string{uuid}, publishing: true}
	n.boot(t, "1")
	return n
}

func (n *fakeNode) boot(t *testing.T, id string) {
	path := filepath.Join(n.host, "proc/sys/kernel/random/boot_id")
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(id+"\n"), 0o644))
}

func (n *fakeNode) Watch(ctx context.Context, heard func(gpu.Event)) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-n.events:
			heard(e)
		}
	}
}

func (n *fakeNode) Health(context.Context) ([]gpu.Health, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []gpu.Health
	var unread gpu.ReadErrors
	for _, u := range n.uuids {
		if slices.Contains(n.lost, u) {
			unread = append(unread, gpu.ReadError{UUID: u, Err: gpu.ErrLost})
		} else {
			all = append(all, gpu.Health{GPU: u})
		}
	}
	if unread != nil {
		return all, unread
	}
	return all, nil
}

func (n *fakeNode) GPU(context.Context, string) (gpu.GPU, error) { return *board, nil }

func (n *fakeNode) operator(context.Context) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	return n.request, n.apiErr
}

func (n *fakeNode) Publishing() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.publishing
}

func (n *fakeNode) Wake() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wakes++
}

func (n *fakeNode) report(c gpu.Condition, cleared bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reports = append(n.reports, fmt.Sprintf("%s %t", c.Reason, cleared))
}

func (n *fakeNode) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

func read[T any](n *fakeNode, value *T) T {
	n.mu.Lock()
	defer n.mu.Unlock()
	return *value
}

// begin starts a monitor in a process of the node, and returns what ends the process.
func (n *fakeNode) begin(t *testing.T, publisher Publisher) (*Monitor, func()) {
	m := New(t.Context(), n, n.operator, (*configv1alpha1.NodeConfiguration)(nil).HealthPolicy(), n.dir, n.host)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.Run(ctx, publisher, n.report)
	}()
	synctest.Wait()
	return m, func() { cancel(); <-done }
}

func reasonsOf(m *Monitor) []string {
	all := []string{}
	for _, c := range m.Conditions() {
		all = append(all, c.Reason)
	}
	return all
}

// What is wrong is published at once; that it is over, every few seconds at most.
func TestWorseAtOnceBetterLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNode(t)
		m, end := n.begin(t, n)
		defer end()
		require.Zero(t, read(n, &n.wakes))
		began := time.Now()
		n.set(func() { n.lost = []string{uuid} })
		n.events <- gpu.Event{GPU: uuid, GPUInstance: gpu.Whole, ComputeInstance: gpu.Whole}
		synctest.Wait()
		require.Equal(t, 1, read(n, &n.wakes))
		require.Equal(t, []string{ReasonLost}, reasonsOf(m))
		n.events <- xidEvent(79)
		synctest.Wait()
		require.Equal(t, 2, read(n, &n.wakes))
		require.Zero(t, time.Since(began))
		n.events <- xidEvent(79)
		n.events <- xidEvent(13)
		synctest.Wait()
		require.Equal(t, 2, read(n, &n.wakes), "that is nothing new")

		n.set(func() { n.lost = nil })
		for read(n, &n.wakes) == 2 {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		require.Empty(t, m.Conditions())
		require.InDelta(t, 35*time.Second, time.Since(began), float64(6*time.Second))
		require.Equal(t, []string{"GPULost false", "Xid79 false", "GPULost true", "Xid79 true"}, read(n, &n.reports))
	})
}

// Eight boards that come and go for a minute: at most an update every five seconds.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNode(t)
		n.uuids = nil
		for i := range 8 {
			n.uuids = append(n.uuids, fmt.Sprintf("GPU-%d", i))
		}
		_, end := n.begin(t, n)
		defer end()
		for second := range 60 {
			n.set(func() {
				n.lost = nil
				for i, u := range n.uuids {
					if (second+i)%(2+i) == 0 {
						n.lost = append(n.lost, u)
					}
				}
			})
			for _, u := range n.uuids {
				n.events <- gpu.Event{GPU: u, GPUInstance: gpu.Whole, ComputeInstance: gpu.Whole}
			}
			time.Sleep(time.Second)
		}
		synctest.Wait()
		require.NotZero(t, read(n, &n.wakes))
		require.LessOrEqual(t, read(n, &n.wakes), 12)
	})
}

func TestARestartForgetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNode(t)
		m, end := n.begin(t, n)
		e := xidEvent(94)
		e.GPUInstance = 9
		n.events <- e
		n.events <- xidEvent(48)
		synctest.Wait()
		want := m.Conditions()
		require.Len(t, want, 2)
		require.Equal(t, placed, want[0].Device)
		end()

		time.Sleep(time.Minute)
		m, end = n.begin(t, n)
		require.Equal(t, want, m.Conditions())
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"Xid48"}, reasonsOf(m), "the quiet time went on")
		end()

		n.boot(t, "2")
		m, end = n.begin(t, n)
		defer end()
		require.Empty(t, m.Conditions(), "a reboot resets every board")
		files, err := os.ReadDir(n.dir)
		require.NoError(t, err)
		require.Len(t, files, 1, "nothing else is left behind")
	})
}

func TestAnUnreadableFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, text := range map[string]string{"half of one": `{"version":1,"pro`, "another version": `{"version":2}`, "empty": ""} {
			n := newFakeNode(t)
			path := filepath.Join(n.dir, stateFile)
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			_, err := load(n.dir)
			require.ErrorContains(t, err, path, name)
			m, end := n.begin(t, n)
			require.Empty(t, m.Conditions())
			n.events <- xidEvent(48)
			synctest.Wait()
			end()
			m, end = n.begin(t, n)
			require.Equal(t, []string{"Xid48"}, reasonsOf(m))
			end()
		}
	})
}

func TestAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNode(t)
		require.NoError(t, os.Remove(n.dir))
		m, end := n.begin(t, n)
		defer end()
		n.events <- xidEvent(48)
		synctest.Wait()
		require.Equal(t, []string{"Xid48"}, reasonsOf(m), "it is known all the same")
		require.NoError(t, os.Mkdir(n.dir, 0o755))
		time.Sleep(defaultInterval)
		synctest.Wait()
		s, err := load(n.dir)
		require.NoError(t, err)
		require.Len(t, s.Problems, 1, "and saved as soon as it can be")
	})
}

// During an update two processes watch. One saves and reports; the other takes over where it left off.
func TestTwoProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNode(t)
		waits := &follower{fakeNode: n}
		first, endFirst := n.begin(t, n)
		second, endSecond := n.begin(t, waits)
		defer endSecond()
		n.events <- xidEvent(48) // One of the two hears it.
		n.events <- xidEvent(64)
		synctest.Wait()
		first.update(t.Context(), n, n.report, func(t *tracker, now time.Time) {
			t.heard(now, xidEvent(119), nil)
			t.heard(now, xidEvent(48), nil)
			t.heard(now, xidEvent(64), nil)
		})
		time.Sleep(2 * defaultInterval)
		synctest.Wait()
		require.ElementsMatch(t, []string{"Xid48", "Xid64", "Xid119"}, reasonsOf(second))
		require.Len(t, read(n, &n.reports), 3)

		n.set(func() { n.request = time.Now().UTC().Format(time.RFC3339) })
		time.Sleep(2 * defaultInterval)
		synctest.Wait()
		require.Empty(t, reasonsOf(first))
		require.Empty(t, reasonsOf(second))
		endFirst()
		waits.lead.Store(true)
		n.events <- xidEvent(120)
		synctest.Wait()
		require.Equal(t, []string{"Xid120"}, reasonsOf(second))
		s, err := load(n.dir)
		require.NoError(t, err)
		require.Len(t, s.Problems, 1)
	})
}

// follower is a process that does not publish until it leads.
type follower struct {
	*fakeNode
	lead atomic.Bool
}

func (f *follower) Publishing() bool { return f.lead.Load() }

func TestTheOperatorIsAskedWhenThereIsSomethingToClear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNode(t)
		m, end := n.begin(t, n)
		defer end()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Zero(t, read(n, &n.asked))
		n.events <- xidEvent(48)
		n.set(func() { n.apiErr = errors.New("connection refused") })
		time.Sleep(time.Minute)
		synctest.Wait()
		require.NotZero(t, read(n, &n.asked))
		require.Equal(t, []string{"Xid48"}, reasonsOf(m))
		n.set(func() { n.apiErr, n.request = nil, uuid+"@"+time.Now().UTC().Format(time.RFC3339) })
		time.Sleep(defaultInterval)
		synctest.Wait()
		require.Empty(t, m.Conditions())
	})
}
