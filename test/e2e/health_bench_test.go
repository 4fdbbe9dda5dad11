//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// BenchmarkXidToTaint is the time from an Xid to its taint in the API. In it is the run of the program that plays the
// Xid; "ms-after" is the time from its end.
func BenchmarkXidToTaint(b *testing.B) {
	e := kit.New(b, unwell)
	clearsHealth(b, e)
	changes := watchSlices(b, e)
	await := func(tainted bool) {
		for change := range changes {
			slice, ok := change.Object.(*resourceapi.ResourceSlice)
			require.True(b, ok, "%v", change.Object)
			if len(slice.Spec.Devices) > 0 && tainted == slices.ContainsFunc(slice.Spec.Devices, isTainted) {
				return
			}
		}
		b.Fatal("the watch has ended")
	}
	await(false)
	after := time.Duration(0)
	for b.Loop() {
		e.Sim("xid", "0", "94")
		played := time.Now()
		await(true)
		b.StopTimer()
		after += time.Since(played)
		declareWell(b, e)
		await(false)
		b.StartTimer()
	}
	b.ReportMetric(float64(after.Milliseconds())/float64(b.N), "ms-after")
}

// BenchmarkFlapping lets eight boards fall off the bus and come back for a minute, and counts how often slices are
// written meanwhile.
func BenchmarkFlapping(b *testing.B) {
	e := kit.New(b, fleet)
	boards, updates, flaps := 8, 0, 0
	for b.Loop() {
		minute, cancel := context.WithTimeout(context.Background(), time.Minute)
		changes := watchSlices(b, e)
		for minute.Err() == nil {
			for _, now := range []string{"lose", "restore"} {
				for board := range boards {
					e.Sim(now, fmt.Sprint(board))
				}
				select {
				case <-minute.Done():
				case <-time.After(time.Second):
				}
			}
			flaps++
		}
		cancel()
		for len(changes) > 0 {
			if change := <-changes; change.Type == watch.Modified {
				updates++
			}
		}
		b.StopTimer()
		awaitTaint(e, "", nil)
		b.StartTimer()
	}
	require.NotZero(b, updates)
	b.ReportMetric(float64(flaps)/float64(b.N), "flaps")
	b.ReportMetric(float64(updates)/float64(b.N), "updates")
}

func isTainted(d resourceapi.Device) bool { return len(d.Taints) > 0 }

// watchSlices are the changes of kerf's slices from now on, as many as a minute can bring, after those that there are.
func watchSlices(b *testing.B, e *kit.Env) <-chan watch.Event {
	b.Helper()
	changes, err := e.Client.ResourceV1().ResourceSlices().Watch(context.Background(),
		metav1.ListOptions{FieldSelector: resourceapi.ResourceSliceSelectorDriver + "=" + kit.Driver})
	require.NoError(b, err)
	b.Cleanup(changes.Stop)
	all := make(chan watch.Event, 10000)
	go func() {
		defer close(all)
		for change := range changes.ResultChan() {
			all <- change
		}
	}()
	return all
}
