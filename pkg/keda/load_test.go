package keda

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

var (
	_ manager.Runnable               = (*Server)(nil)
	_ manager.LeaderElectionRunnable = (*Server)(nil)
	_ Hints                          = (*CachedHints)(nil)
)

// A hundred ScaledObjects on one connection, as KEDA has it, each polled and with both streams while its hint changes,
// vanishes and comes back. Each ends with the replicas of its own hint.
func TestHundredScaledObjects(t *testing.T) {
	noLeaks(t)
	const objects, last = 100, 20
	hints, api := cached(t)
	client := dial(t, start(t, &Server{Hints: hints}).address, nil)
	name := func(i int) string { return fmt.Sprintf("model-%d", i) }
	// No two hints ever say the same.
	says := func(i, step int) *v1alpha1.GPUScalingHint { return answered(name(i), 1, int32(2+i*(last+1)+step)) }

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var pushes [objects]atomic.Int64
	var streams, polls sync.WaitGroup
	errs := make(chan error, 3*objects)
	for i := range objects {
		activity, err := client.StreamIsActive(ctx, scaledObject(name(i)))
		require.NoError(t, err)
		specs, err := client.StreamMetricSpec(ctx, scaledObject(name(i)))
		require.NoError(t, err)
		streams.Go(func() {
			for {
				if _, err := activity.Recv(); err != nil {
					return
				}
				pushes[i].Add(1)
			}
		})
		streams.Go(func() {
			if spec, err := specs.Recv(); err != nil || spec.MetricSpecs[0].MetricName != "kerf-hint-"+name(i) {
				errs <- fmt.Errorf("specification of %s: %v, %w", name(i), spec, err)
			}
		})
		polls.Go(func() {
			least, most := float64(*says(i, 0).Status.ScaleTo), float64(*says(i, last).Status.ScaleTo)
			for {
				// A hint that is not there just now is an error, never another's number or zero.
				replicas, err := poll(ctx, client, scaledObject(name(i)))
				if err == nil && (replicas < least || replicas > most) {
					errs <- fmt.Errorf("%s has %v replicas", name(i), replicas)
					return
				}
				if replicas == most || errors.Is(ctx.Err(), context.Canceled) {
					return
				}
			}
		})
	}
	for step := range last + 1 {
		for i := range objects {
			switch {
			case step == 0:
				api.Add(says(i, step))
			case step == last/2 && i%2 == 0:
				api.Delete(says(i, step))
			case step == last/2+1 && i%2 == 0:
				api.Add(says(i, step))
			default:
				api.Modify(says(i, step))
			}
		}
	}
	polls.Wait()
	require.Eventually(t, func() bool {
		for i := range objects {
			if pushes[i].Load() == 0 {
				return false
			}
		}
		return true
	}, soon, tick, "each stream has pushed")
	cancel()
	streams.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
}
