package keda

import (
	"context"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

// hintKey is the metadata of a trigger that names the hint.
const hintKey = "hint"

// Hints are read by the server.
type Hints interface {
	// Get returns a hint, or an error of the API such as NotFound.
	Get(ctx context.Context, key types.NamespacedName) (*v1alpha1.GPUScalingHint, error)
	// Changed returns a channel that has a value after the hint was made,
	// changed or deleted, until ctx is done. Several changes may be one value.
	Changed(ctx context.Context, key types.NamespacedName) <-chan struct{}
}

// scaler has the calls of KEDA's externalscaler.proto.
type scaler struct {
	pb.UnimplementedExternalScalerServer
	hints    Hints
	stopping <-chan struct{}
}

// IsActive is true for every hint that counts: there is always a replica, and so
// nothing to activate.
func (s *scaler) IsActive(ctx context.Context, ref *pb.ScaledObjectRef) (*pb.IsActiveResponse, error) {
	if _, err := s.hint(ctx, ref); err != nil {
		return nil, err
	}
	return &pb.IsActiveResponse{Result: true}, nil
}

// GetMetricSpec answers also for a hint that does not count, or is not there:
// KEDA falls back for a metric that it knows and cannot read, and without a
// specification it knows of none.
func (s *scaler) GetMetricSpec(_ context.Context, ref *pb.ScaledObjectRef) (*pb.GetMetricSpecResponse, error) {
	key, err := hintOf(ref)
	if err != nil {
		return nil, err
	}
	// One for each replica, so that the metric is the number of replicas.
	spec := &pb.MetricSpec{MetricName: metricName(key), TargetSize: 1, TargetSizeFloat: 1}
	return &pb.GetMetricSpecResponse{MetricSpecs: []*pb.MetricSpec{spec}}, nil
}

// GetMetrics returns the replicas to set. They are never zero, which would be
// what a missing value looks like: a hint that does not count is an error.
func (s *scaler) GetMetrics(ctx context.Context, request *pb.GetMetricsRequest) (*pb.GetMetricsResponse, error) {
	key, err := hintOf(request.GetScaledObjectRef())
	if err != nil {
		return nil, err
	}
	if request.GetMetricName() != metricName(key) {
		return nil, status.Errorf(codes.NotFound, "hint %s has no metric %q, only %q", key, request.GetMetricName(), metricName(key))
	}
	hint, err := s.hint(ctx, request.GetScaledObjectRef())
	if err != nil {
		return nil, err
	}
	replicas := *hint.Status.ScaleTo
	value := &pb.MetricValue{MetricName: metricName(key), MetricValue: int64(replicas), MetricValueFloat: float64(replicas)}
	return &pb.GetMetricsResponse{MetricValues: []*pb.MetricValue{value}}, nil
}

// StreamIsActive sends true when the stream begins or the hint begins to count,
// and whenever the hint asks for more replicas than there are. KEDA takes it as
// a reason to look at once at a target without replicas. It ignores false, so
// none is sent, and it is slower to try again after an error than after an end,
// so a hint that does not count ends no stream.
func (s *scaler) StreamIsActive(ref *pb.ScaledObjectRef, stream grpc.ServerStreamingServer[pb.IsActiveResponse]) error {
	key, err := hintOf(ref)
	if err != nil {
		return err
	}
	type activity struct {
		counts bool
		rise   int32 // The replicas to set if they are more than there are, else 0.
	}
	ctx := stream.Context()
	changed := s.hints.Changed(ctx, key)
	var last activity
	for {
		var now activity
		if hint, err := s.hint(ctx, ref); err == nil {
			now.counts = true
			if current := hint.Status.CurrentReplicas; current != nil && *current < *hint.Status.ScaleTo {
				now.rise = *hint.Status.ScaleTo
			}
		}
		if now.counts && (!last.counts || now.rise > 0 && now != last) {
			if err := stream.Send(&pb.IsActiveResponse{Result: true}); err != nil {
				return err
			}
		}
		last = now
		select {
		case <-changed:
		case <-s.stopping:
			return nil
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// StreamMetricSpec sends what GetMetricSpec returns, once: it follows from the
// name of the hint alone. With it KEDA can fall back also while no controller
// answers, until it drops what it knows of the ScaledObject.
func (s *scaler) StreamMetricSpec(ref *pb.ScaledObjectRef, stream grpc.ServerStreamingServer[pb.GetMetricSpecResponse]) error {
	spec, err := s.GetMetricSpec(stream.Context(), ref)
	if err != nil {
		return err
	}
	if err := stream.Send(spec); err != nil {
		return err
	}
	select {
	case <-s.stopping:
		return nil
	case <-stream.Context().Done():
		return status.FromContextError(stream.Context().Err()).Err()
	}
}

// hint returns the hint that a ScaledObject is about if it counts. If it does
// not, the error is a gRPC status that says why, and what to do.
func (s *scaler) hint(ctx context.Context, ref *pb.ScaledObjectRef) (*v1alpha1.GPUScalingHint, error) {
	key, err := hintOf(ref)
	if err != nil {
		return nil, err
	}
	hint, err := s.hints.Get(ctx, key)
	switch {
	case apierrors.IsNotFound(err):
		return nil, status.Errorf(codes.NotFound, "hint %s does not exist: create the GPUScalingHint, or correct %q in the trigger of ScaledObject %s/%s",
			key, hintKey, ref.GetNamespace(), ref.GetName())
	case err != nil:
		return nil, status.Errorf(codes.Unavailable, "hint %s cannot be read: %v", key, err)
	}
	switch answer := &hint.Status; {
	case answer.ObservedGeneration < hint.Generation:
		return nil, status.Errorf(codes.FailedPrecondition, "hint %s was changed and is not answered yet: if that lasts, see whether a kerf controller is the leader", key)
	case answer.ScaleTo == nil || *answer.ScaleTo < 1:
		return nil, status.Errorf(codes.FailedPrecondition, "hint %s says no number of replicas: see its conditions with kubectl describe (%s)", key, answer.Message)
	case answer.ValidUntil == nil:
		return nil, status.Errorf(codes.FailedPrecondition, "hint %s does not say until when it is valid: it was not written by a kerf controller", key)
	case !time.Now().Before(answer.ValidUntil.Time):
		return nil, status.Errorf(codes.Unavailable, "hint %s is void since %s: see why the kerf controller does not renew it", key, answer.ValidUntil.UTC().Format(time.RFC3339))
	}
	return hint, nil
}

// hintOf is the hint that the trigger of a ScaledObject names, in the namespace
// of the ScaledObject.
func hintOf(ref *pb.ScaledObjectRef) (types.NamespacedName, error) {
	name := ref.GetScalerMetadata()[hintKey]
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		return types.NamespacedName{}, status.Errorf(codes.InvalidArgument, "ScaledObject %s/%s: the trigger's metadata %q is %q: set it to the name of a GPUScalingHint in this namespace",
			ref.GetNamespace(), ref.GetName(), hintKey, name)
	}
	return types.NamespacedName{Namespace: ref.GetNamespace(), Name: name}, nil
}

// metricName is that of a hint. KEDA puts the trigger's index before it.
func metricName(hint types.NamespacedName) string { return "kerf-hint-" + hint.Name }
