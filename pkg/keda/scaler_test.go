package keda

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

func TestAnswers(t *testing.T) {
	noLeaks(t)
	hints := list(
		answered("rises", 2, 5), answered("falls", 5, 4), answered("stays", 1, 1), answered("many.of-them", 1, 100000),
		answered("void", 2, 5, expired),
		answered("changed", 2, 5, func(h *v1alpha1.GPUScalingHint) { h.Generation++ }),
		answered("silent", 2, 5, func(h *v1alpha1.GPUScalingHint) {
			h.Status.ScaleTo, h.Status.Message = nil, "the target does not exist"
		}),
		answered("zero", 2, 0),
		answered("forever", 2, 5, func(h *v1alpha1.GPUScalingHint) { h.Status.ValidUntil = nil }),
	)
	client := dial(t, start(t, &Server{Hints: hints}).address, nil)
	for hint, want := range map[string]struct {
		replicas int64
		code     codes.Code
		message  string
	}{
		"rises":        {replicas: 5},
		"falls":        {replicas: 4},
		"stays":        {replicas: 1},
		"many.of-them": {replicas: 100000},
		"void":         {code: codes.Unavailable, message: "hint inference/void is void since 2026-01-05T09:00:00Z"},
		"changed":      {code: codes.FailedPrecondition, message: "hint inference/changed was changed and is not answered yet"},
		"silent":       {code: codes.FailedPrecondition, message: "(the target does not exist)"},
		"zero":         {code: codes.FailedPrecondition, message: "hint inference/zero says no number"},
		"forever":      {code: codes.FailedPrecondition, message: "hint inference/forever does not say until when"},
		"absent":       {code: codes.NotFound, message: `hint inference/absent does not exist: create the GPUScalingHint, or correct "hint" in the trigger of ScaledObject inference/follows-absent`},
	} {
		t.Run(hint, func(t *testing.T) {
			ref := scaledObject(hint)
			name := "kerf-hint-" + hint
			require.Empty(t, content.IsPathSegmentName(name), "what an HPA takes as the name of a metric")

			// The specification is there whatever the hint says.
			specs, err := client.GetMetricSpec(t.Context(), ref)
			require.NoError(t, err)
			require.Len(t, specs.MetricSpecs, 1)
			require.Equal(t, name, specs.MetricSpecs[0].MetricName)
			require.Equal(t, int64(1), specs.MetricSpecs[0].TargetSize)
			require.Equal(t, 1.0, specs.MetricSpecs[0].TargetSizeFloat)

			metrics, err := client.GetMetrics(t.Context(), &pb.GetMetricsRequest{ScaledObjectRef: ref, MetricName: name})
			active, activeErr := client.IsActive(t.Context(), ref)
			if want.code != codes.OK {
				for _, err := range []error{err, activeErr} {
					require.Equal(t, want.code, status.Code(err), "%v", err)
					require.ErrorContains(t, err, want.message)
				}
				return
			}
			require.NoError(t, err)
			require.Len(t, metrics.MetricValues, 1)
			require.Equal(t, name, metrics.MetricValues[0].MetricName)
			require.Equal(t, want.replicas, metrics.MetricValues[0].MetricValue)
			require.Equal(t, float64(want.replicas), metrics.MetricValues[0].MetricValueFloat)
			require.NoError(t, activeErr)
			require.True(t, active.Result)
		})
	}
}

func TestWrongQuestions(t *testing.T) {
	hints := list(answered("a", 2, 5))
	hints.err = errors.New("the cache is not started")
	client := dial(t, start(t, &Server{Hints: hints}).address, nil)
	stranger := scaledObject("a")
	stranger.Namespace = "elsewhere"
	for name, c := range map[string]struct {
		ref     *pb.ScaledObjectRef
		metric  string
		code    codes.Code
		message string
	}{
		"no ScaledObject":      {nil, "kerf-hint-a", codes.InvalidArgument, `"hint" is ""`},
		"no hint":              {&pb.ScaledObjectRef{Namespace: "inference", Name: "so"}, "kerf-hint-", codes.InvalidArgument, `ScaledObject inference/so: the trigger's metadata "hint" is ""`},
		"of another namespace": {scaledObject("other/a"), "kerf-hint-a", codes.InvalidArgument, `is "other/a"`},
		"too long a name":      {scaledObject(strings.Repeat("a", 254)), "kerf-hint-a", codes.InvalidArgument, "the name of a GPUScalingHint"},
		"another metric":       {scaledObject("a"), "s0-kerf-hint-a", codes.NotFound, `no metric "s0-kerf-hint-a", only "kerf-hint-a"`},
		"no access":            {stranger, "kerf-hint-a", codes.Unavailable, "hint elsewhere/a cannot be read: the cache is not started"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.GetMetrics(t.Context(), &pb.GetMetricsRequest{ScaledObjectRef: c.ref, MetricName: c.metric})
			require.Equal(t, c.code, status.Code(err), "%v", err)
			require.ErrorContains(t, err, c.message)
			if c.code != codes.InvalidArgument {
				return
			}
			_, err = client.GetMetricSpec(t.Context(), c.ref)
			require.Equal(t, c.code, status.Code(err), "%v", err)
			_, err = client.IsActive(t.Context(), c.ref)
			require.Equal(t, c.code, status.Code(err), "%v", err)
			specs, err := client.StreamMetricSpec(t.Context(), c.ref)
			require.NoError(t, err)
			_, err = specs.Recv()
			require.Equal(t, c.code, status.Code(err), "%v", err)
			activity, err := client.StreamIsActive(t.Context(), c.ref)
			require.NoError(t, err)
			_, err = activity.Recv()
			require.Equal(t, c.code, status.Code(err), "%v", err)
		})
	}
}

// How often activity is pushed for a hint that changes from one to the next.
func TestActivityPushes(t *testing.T) {
	noLeaks(t)
	for name, c := range map[string]struct {
		hints  []*v1alpha1.GPUScalingHint
		pushes int
	}{
		"at the start":         {[]*v1alpha1.GPUScalingHint{answered("a", 4, 4)}, 1},
		"at the start, rising": {[]*v1alpha1.GPUScalingHint{answered("a", 2, 4)}, 1},
		"absent":               {[]*v1alpha1.GPUScalingHint{nil, nil}, 0},
		"void":                 {[]*v1alpha1.GPUScalingHint{answered("a", 2, 4, expired), answered("a", 2, 5, expired)}, 0},
		"renewed":              {[]*v1alpha1.GPUScalingHint{answered("a", 2, 4), answered("a", 2, 4), answered("a", 2, 4)}, 1},
		"rises":                {[]*v1alpha1.GPUScalingHint{answered("a", 4, 4), answered("a", 4, 6)}, 2},
		"rises on":             {[]*v1alpha1.GPUScalingHint{answered("a", 4, 6), answered("a", 4, 8)}, 2},
		"is followed":          {[]*v1alpha1.GPUScalingHint{answered("a", 4, 6), answered("a", 6, 6)}, 1},
		"falls":                {[]*v1alpha1.GPUScalingHint{answered("a", 4, 4), answered("a", 4, 3), answered("a", 3, 3)}, 1},
		"someone stops all":    {[]*v1alpha1.GPUScalingHint{answered("a", 6, 6), answered("a", 0, 6)}, 2},
		"twice":                {[]*v1alpha1.GPUScalingHint{answered("a", 4, 6), answered("a", 6, 6), answered("a", 0, 6)}, 2},
		"counts again":         {[]*v1alpha1.GPUScalingHint{answered("a", 4, 4), answered("a", 4, 4, expired), answered("a", 4, 4)}, 2},
		"vanishes, comes back": {[]*v1alpha1.GPUScalingHint{answered("a", 4, 4), nil, answered("a", 4, 4)}, 2},
		"appears":              {[]*v1alpha1.GPUScalingHint{nil, answered("a", 4, 4)}, 1},
		"of unknown replicas": {[]*v1alpha1.GPUScalingHint{answered("a", 4, 4), answered("a", 0, 6, func(h *v1alpha1.GPUScalingHint) {
			h.Status.CurrentReplicas = nil
		})}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			hints, key := list(), scaledObject("a")
			server := start(t, &Server{Hints: hints})
			set := func(hint *v1alpha1.GPUScalingHint) {
				hints.mu.Lock()
				defer hints.mu.Unlock()
				hints.all[must(hintOf(key))] = hint
				if hint == nil {
					delete(hints.all, must(hintOf(key)))
				}
			}
			set(c.hints[0])
			stream, err := dial(t, server.address, nil).StreamIsActive(t.Context(), key)
			require.NoError(t, err)
			for i, hint := range c.hints {
				if i > 0 {
					set(hint)
					hints.changed <- struct{}{}
				}
				require.Eventually(t, func() bool { return hints.reads() == i+1 }, soon, tick)
			}
			server.stop()
			pushes := 0
			for {
				response, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				require.NoError(t, err)
				require.True(t, response.Result)
				pushes++
			}
			require.Equal(t, c.pushes, pushes)
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Through the cache that the controller has, to KEDA's streams.
func TestStreamsFollowTheAPI(t *testing.T) {
	noLeaks(t)
	hints, api := cached(t)
	server := start(t, &Server{Hints: hints})
	client := dial(t, server.address, nil)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()

	// Before there is a hint KEDA has to know the metric already.
	specs, err := client.StreamMetricSpec(ctx, scaledObject("a"))
	require.NoError(t, err)
	pushed, err := specs.Recv()
	require.NoError(t, err)
	polled, err := client.GetMetricSpec(ctx, scaledObject("a"))
	require.NoError(t, err)
	require.Equal(t, polled.String(), pushed.String())

	activity, err := client.StreamIsActive(ctx, scaledObject("a"))
	require.NoError(t, err)
	for _, change := range []func(){
		func() { api.Add(answered("a", 2, 2)) },
		func() { api.Modify(answered("a", 2, 5)) },
		func() { api.Modify(answered("a", 2, 7)) },
	} {
		change()
		response, err := activity.Recv()
		require.NoError(t, err)
		require.True(t, response.Result)
	}
	replicas, err := poll(ctx, client, scaledObject("a"))
	require.NoError(t, err)
	require.Equal(t, 7.0, replicas)

	api.Delete(answered("a", 2, 7))
	require.Eventually(t, func() bool {
		_, err := poll(ctx, client, scaledObject("a"))
		return status.Code(err) == codes.NotFound
	}, soon, tick)
	api.Add(answered("a", 3, 3))
	_, err = activity.Recv()
	require.NoError(t, err, "the streams outlive a hint that comes back")

	cancel()
	_, err = activity.Recv()
	require.Equal(t, codes.Canceled, status.Code(err))
	require.Eventually(t, func() bool {
		hints.mu.Lock()
		defer hints.mu.Unlock()
		return len(hints.waiting) == 0
	}, soon, tick, "nobody waits any more")
}

// KEDA tries again soon after a stream that has ended, and ever later after one that has failed.
func TestRestart(t *testing.T) {
	noLeaks(t)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	hints := list(answered("a", 2, 5))
	first := &Server{Hints: hints}
	server := start(t, first)
	client := dial(t, server.address, nil)
	activity, err := client.StreamIsActive(ctx, scaledObject("a"))
	require.NoError(t, err)
	specs, err := client.StreamMetricSpec(ctx, scaledObject("a"))
	require.NoError(t, err)
	_, err = activity.Recv()
	require.NoError(t, err)
	_, err = specs.Recv()
	require.NoError(t, err)

	server.stop()
	require.ErrorContains(t, first.Ready(nil), "does not listen")
	_, err = activity.Recv()
	require.ErrorIs(t, err, io.EOF)
	_, err = specs.Recv()
	require.ErrorIs(t, err, io.EOF)
	_, err = poll(ctx, client, scaledObject("a"))
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)

	start(t, &Server{Hints: hints}, server.address)
	require.Eventually(t, func() bool {
		replicas, err := poll(ctx, client, scaledObject("a"))
		return err == nil && replicas == 5
	}, soon, tick)
	activity, err = client.StreamIsActive(ctx, scaledObject("a"))
	require.NoError(t, err)
	_, err = activity.Recv()
	require.NoError(t, err)
}

// stuck hints are never read, as when a cache does not get its first list.
type stuck struct {
	*listed
	asked chan struct{}
}

func (s stuck) Get(ctx context.Context, _ types.NamespacedName) (*v1alpha1.GPUScalingHint, error) {
	close(s.asked)
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestStopIsBounded(t *testing.T) {
	noLeaks(t)
	hints := stuck{list(), make(chan struct{})}
	server := start(t, &Server{Hints: hints})
	client := dial(t, server.address, nil)
	failed := make(chan error)
	go func() {
		_, err := client.IsActive(context.Background(), scaledObject("a"))
		failed <- err
	}()
	<-hints.asked
	stopped := make(chan struct{})
	go func() { defer close(stopped); server.stop() }()
	select {
	case <-stopped:
	case <-time.After(soon):
		t.Fatal("it waits for a call that does not end")
	}
	require.Error(t, <-failed)
}
