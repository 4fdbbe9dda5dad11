package plugin_test

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/journal"
)

var cycles = flag.Int("cycles", 500, "how often TestManyCycles prepares and releases a claim")

// oneLock is a journal whose locks of GPUs are one lock for the whole node.
type oneLock struct {
	*journal.Journal
	all []string
}

func (o oneLock) LockGPUs(ctx context.Context, _ ...string) (func(), error) {
	return o.Journal.LockGPUs(ctx, o.all...)
}

// together prepares 56 claims of one 1g.10gb each at once, seven on each of the
// eight GPUs, releases them, and returns how long it took until all were prepared, and each.
func (x *bench) together(b *testing.B, engine *claims.Engine) (all time.Duration, each []time.Duration) {
	b.Helper()
	each = make([]time.Duration, 56)
	began := time.Now()
	var work errgroup.Group
	for n := range each {
		work.Go(func() error {
			_, err := engine.Prepare(b.Context(), x.claim(fmt.Sprint(n), n))
			each[n] = time.Since(began)
			return err
		})
	}
	require.NoError(b, work.Wait())
	all = time.Since(began)
	for n := range each {
		work.Go(func() error { return x.engine.Unprepare(b.Context(), fmt.Sprint(n)) })
	}
	require.NoError(b, work.Wait())
	return all, each
}

// BenchmarkSideBySide prepares the claims of a whole node at once, with a lock a GPU and with one lock for the node, on a
// simulated driver that takes as long as one is estimated to, with a lock a GPU and with one lock for all of them.
func BenchmarkSideBySide(b *testing.B) {
	for _, lock := range []string{"perGPU", "global"} {
		b.Run("driver-lock="+lock, func(b *testing.B) {
			x := newBench(b, ",latency=typical,lock="+lock, 0)
			node := oneLock{Journal: x.records}
			for _, g := range x.gpus {
				node.all = append(node.all, g.UUID)
			}
			// The first time in a place costs a walk over the board's MIG devices.
			x.together(b, x.engine)
			var ours, oneByOne time.Duration
			var oursEach, oneByOneEach []time.Duration
			for b.Loop() {
				all, each := x.together(b, x.engine)
				ours, oursEach = ours+all, append(oursEach, each...)
				all, each = x.together(b, x.withLocks(node))
				oneByOne, oneByOneEach = oneByOne+all, append(oneByOneEach, each...)
			}
			report(b, "gpu-locks", oursEach)
			report(b, "node-lock", oneByOneEach)
			b.ReportMetric(oneByOne.Seconds()/ours.Seconds(), "times-faster")
		})
	}
}

// BenchmarkIdle prepares claims for which an idle instance is at hand, and others for which there is none, on a simulated
// driver that takes as long as one is estimated to.
func BenchmarkIdle(b *testing.B) {
	prepare := func(b *testing.B, x *bench, uid string) time.Duration {
		began := time.Now()
		_, err := x.engine.Prepare(b.Context(), x.claim(uid, 0))
		require.NoError(b, err)
		return time.Since(began)
	}
	x := newBench(b, ",latency=typical", 1)
	prepare(b, x, "warm")
	require.NoError(b, x.engine.Unprepare(b.Context(), "warm"))
	require.NoError(b, x.engine.Cleanup(b.Context()))
	var fresh, idle []time.Duration
	for n := 0; b.Loop(); n++ {
		fresh = append(fresh, prepare(b, x, "first"))
		require.NoError(b, x.engine.Unprepare(b.Context(), "first"))
		created := x.created.Load()
		idle = append(idle, prepare(b, x, "second"))
		require.Equal(b, created, x.created.Load(), "the idle instance is used")
		require.NoError(b, x.engine.Unprepare(b.Context(), "second"))
		require.NoError(b, x.engine.Cleanup(b.Context()))
	}
	report(b, "fresh", fresh)
	report(b, "idle", idle)
}

// usage is what a process holds.
type usage struct {
	heap                       int64
	handles, goroutines, files int
}

func (x *bench) usage(t *testing.T) usage {
	t.Helper()
	runtime.GC()
	runtime.GC() // what the first one only finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	handles, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	u := usage{heap: int64(m.HeapAlloc), handles: len(handles), goroutines: runtime.NumGoroutine()}
	require.NoError(t, filepath.WalkDir(x.dir, func(string, fs.DirEntry, error) error { u.files++; return nil }))
	return u
}

// However many claims come and go, the process and its directories do not grow.
func TestManyCycles(t *testing.T) {
	x := newBench(t, "", 0)
	cycle := func(n int) {
		uid := fmt.Sprintf("claim-%d", n)
		_, err := x.engine.Prepare(t.Context(), x.claim(uid, n))
		require.NoError(t, err)
		require.NoError(t, x.engine.Unprepare(t.Context(), uid))
	}
	for n := range 56 { // Every place once: some things are kept for each.
		cycle(n)
	}
	before := x.usage(t)
	for n := range *cycles {
		cycle(n)
	}
	after := x.usage(t)
	t.Logf("before %+v, after %d cycles %+v", before, *cycles, after)
	require.Less(t, after.heap, before.heap+1<<20)
	require.LessOrEqual(t, after.handles, before.handles)
	require.LessOrEqual(t, after.goroutines, before.goroutines)
	require.Equal(t, before.files, after.files)
}
