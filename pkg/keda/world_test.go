package keda

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	cachetesting "k8s.io/client-go/tools/cache/testing"
	"sigs.k8s.io/controller-runtime/pkg/cache"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

const (
	// soon is far more than anything here takes.
	soon = 30 * time.Second
	tick = 5 * time.Millisecond
)

// answered is a hint that counts, as the controller writes it.
func answered(name string, current, scaleTo int32, change ...func(*v1alpha1.GPUScalingHint)) *v1alpha1.GPUScalingHint {
	hint := &v1alpha1.GPUScalingHint{
		ObjectMeta: metav1.ObjectMeta{Namespace: "inference", Name: name, Generation: 3},
		Status: v1alpha1.GPUScalingHintStatus{
			ObservedGeneration: 3, CurrentReplicas: &current, DesiredReplicas: &scaleTo, ScaleTo: &scaleTo,
			ValidUntil: &metav1.Time{Time: time.Now().Add(time.Hour)},
		},
	}
	for _, f := range change {
		f(hint)
	}
	return hint
}

func expired(hint *v1alpha1.GPUScalingHint) {
	hint.Status.ValidUntil = &metav1.Time{Time: time.Date(2026, 1, 5, 9, 0, 0, 0, time.UTC)}
}

// scaledObject is what KEDA sends of one whose trigger names the hint.
func scaledObject(hint string) *pb.ScaledObjectRef {
	return &pb.ScaledObjectRef{
		Namespace: "inference", Name: "follows-" + hint,
		ScalerMetadata: map[string]string{"scalerAddress": "kerf-controller.kerf-system:9443", "hint": hint},
	}
}

// noLeaks fails a test that leaves goroutines behind, after its clean-ups.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// cached returns hints over a real cache of controller-runtime, and the API that it watches.
func cached(t *testing.T) (*CachedHints, *cachetesting.FakeControllerSource) {
	t.Helper()
	kinds := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(kinds))
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{v1alpha1.GroupVersion})
	mapper.Add(v1alpha1.GroupVersion.WithKind("GPUScalingHint"), meta.RESTScopeNamespace)
	source := cachetesting.NewFakeControllerSource()
	c, err := cache.New(&rest.Config{}, cache.Options{
		Scheme: kinds, Mapper: mapper,
		NewInformer: func(_ toolscache.ListerWatcher, object runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
			return toolscache.NewSharedIndexInformer(source, object, resync, indexers)
		},
	})
	require.NoError(t, err)
	hints, err := NewCachedHints(t.Context(), c)
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = c.Start(ctx) })
	t.Cleanup(func() { cancel(); source.Shutdown(); running.Wait() })
	require.True(t, c.WaitForCacheSync(ctx))
	return hints, source
}

// listed are hints that never change, and those that the test says have changed.
type listed struct {
	mu      sync.Mutex
	all     map[types.NamespacedName]*v1alpha1.GPUScalingHint
	err     error
	read    int
	changed chan struct{}
}

func list(hints ...*v1alpha1.GPUScalingHint) *listed {
	l := &listed{all: map[types.NamespacedName]*v1alpha1.GPUScalingHint{}, changed: make(chan struct{})}
	for _, hint := range hints {
		l.all[types.NamespacedName{Namespace: hint.Namespace, Name: hint.Name}] = hint
	}
	return l
}

func (l *listed) Get(_ context.Context, key types.NamespacedName) (*v1alpha1.GPUScalingHint, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read++
	if hint, ok := l.all[key]; ok {
		return hint, nil
	}
	if l.err != nil {
		return nil, l.err
	}
	return nil, apierrors.NewNotFound(v1alpha1.GroupVersion.WithResource("gpuscalinghints").GroupResource(), key.Name)
}

func (l *listed) Changed(context.Context, types.NamespacedName) <-chan struct{} { return l.changed }

// reads is how often hints were read.
func (l *listed) reads() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.read
}

// running is a server that runs.
type running struct {
	address string
	stop    func()
}

// start runs a server, on the address of an earlier one if there is one.
func start(t *testing.T, server *Server, address ...string) running {
	t.Helper()
	at := "127.0.0.1:0"
	if len(address) > 0 {
		at = address[0]
	}
	listener, err := net.Listen("tcp", at)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.serve(ctx, listener) }()
	stop := sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	require.Eventually(t, func() bool { return server.Ready(nil) == nil }, soon, tick)
	return running{listener.Addr().String(), stop}
}

// dial connects as KEDA does.
func dial(t *testing.T, address string, secured credentials.TransportCredentials) pb.ExternalScalerClient {
	t.Helper()
	if secured == nil {
		secured = insecure.NewCredentials()
	}
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(secured),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin":{}}]}`))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, connection.Close()) })
	return pb.NewExternalScalerClient(connection)
}

// poll is what KEDA does at each interval: the specification, the metric, and then whether it is active.
func poll(ctx context.Context, client pb.ExternalScalerClient, ref *pb.ScaledObjectRef) (float64, error) {
	specs, err := client.GetMetricSpec(ctx, ref)
	if err != nil {
		return 0, err
	}
	request := &pb.GetMetricsRequest{ScaledObjectRef: ref, MetricName: specs.MetricSpecs[0].MetricName}
	values, err := client.GetMetrics(ctx, request)
	if err != nil {
		return 0, err
	}
	if _, err := client.IsActive(ctx, ref); err != nil {
		return 0, err
	}
	return values.MetricValues[0].MetricValueFloat, nil
}
