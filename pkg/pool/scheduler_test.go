package pool_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/dynamic-resource-allocation/structured"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool/pooltest"
)

// features are the defaults of Kubernetes 1.37.
var features = structured.Features{
	AdminAccess: true, ConsumableCapacity: true, DeviceBindingAndStatus: true, DeviceTaints: true,
	FractionalCapacityRange: true, PartitionableDevices: true, PrioritizedList: true,
}

// classes has the device classes that the chart installs, by their naming scheme.
type classes struct{}

func (classes) List() ([]*resourceapi.DeviceClass, error) { return nil, nil }

func (classes) Get(name string) (*resourceapi.DeviceClass, error) {
	const attribute = `device.attributes["gpu.nvidia.com"]`
	selector := `device.driver == "gpu.nvidia.com" && ` + attribute
	profile, isProfile := strings.CutPrefix(strings.TrimSuffix(name, ".gpu.nvidia.com"), "mig-")
	switch {
	case name == "gpu.nvidia.com":
		selector += `.type == "gpu"`
	case name == "mig.nvidia.com":
		selector += `.type == "mig"`
	case name == "timeslice.gpu.nvidia.com":
		selector += `.type == "timeslice"`
	case name == anyClass:
		selector = "true"
	case isProfile:
		selector += fmt.Sprintf(`.type == "mig" && %s.profile == %q`, attribute, profile)
	default:
		return nil, apierrors.NewNotFound(resourceapi.Resource("deviceclasses"), name)
	}
	return &resourceapi.DeviceClass{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       resourceapi.DeviceClassSpec{Selectors: []resourceapi.DeviceSelector{{CEL: &resourceapi.CELDeviceSelector{Expression: selector}}}},
	}, nil
}

// scheduler allocates as the one in the cluster does, on one node.
type scheduler struct {
	slices    []*resourceapi.ResourceSlice
	cache     *cel.Cache
	node      *corev1.Node
	allocated sets.Set[structured.DeviceID]
}

func newScheduler(tb testing.TB, c pooltest.Case) *scheduler {
	tb.Helper()
	objects, err := c.Slices()
	require.NoError(tb, err)
	return schedulerOf(c.Node.Name, objects)
}

func schedulerOf(node string, objects []resourceapi.ResourceSlice) *scheduler {
	s := &scheduler{
		cache:     cel.NewCache(32, cel.Features{EnableConsumableCapacity: true}),
		node:      &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}},
		allocated: sets.New[structured.DeviceID](),
	}
	for i := range objects {
		s.slices = append(s.slices, &objects[i])
	}
	return s
}

// find allocates claims of one pod together without taking the devices.
func (s *scheduler) find(tb testing.TB, claims ...*resourceapi.ResourceClaim) ([]structured.DeviceID, bool) {
	tb.Helper()
	state := structured.AllocatedState{
		AllocatedDevices: s.allocated, AllocatedSharedDeviceIDs: sets.New[structured.SharedDeviceID](), AggregatedCapacity: structured.NewConsumedCapacityCollection(),
	}
	allocator, err := structured.NewAllocator(context.Background(), features, state, classes{}, s.slices, s.cache)
	require.NoError(tb, err)
	results, err := allocator.Allocate(context.Background(), s.node, claims)
	if err != nil {
		require.ErrorIs(tb, err, structured.ErrFailedAllocationOnNode)
	}
	var ids []structured.DeviceID
	for _, r := range results {
		for _, d := range r.Devices.Results {
			ids = append(ids, structured.MakeDeviceID(d.Driver, d.Pool, d.Device))
		}
	}
	return ids, err == nil && len(results) > 0
}

// allocate takes the devices that it finds and returns their names.
func (s *scheduler) allocate(tb testing.TB, claims ...*resourceapi.ResourceClaim) ([]string, bool) {
	tb.Helper()
	ids, ok := s.find(tb, claims...)
	s.allocated = s.allocated.Clone().Insert(ids...)
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.Device.String()
	}
	return names, ok
}

// claim asks for one device of each class.
func claim(classNames ...string) *resourceapi.ResourceClaim {
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: "claim", Namespace: "default"}}
	for i, name := range classNames {
		c.Spec.Devices.Requests = append(c.Spec.Devices.Requests, resourceapi.DeviceRequest{
			Name:    fmt.Sprintf("r%d", i),
			Exactly: &resourceapi.ExactDeviceRequest{DeviceClassName: name, AllocationMode: resourceapi.DeviceAllocationModeExactCount, Count: 1},
		})
	}
	return c
}

const (
	wholeClass   = "gpu.nvidia.com"
	migClass     = "mig.nvidia.com"
	replicaClass = "timeslice.gpu.nvidia.com"
	anyClass     = "any.example.com"
)

func profileClass(profile string) string { return "mig-" + profile + ".gpu.nvidia.com" }

// h100 is a node of n boards that offer everything but media extensions.
func h100(n, replicas int) pooltest.Case {
	var boards []gpu.Board
	for range n {
		boards = append(boards, gpu.Boards()[2])
	}
	return pooltest.Case{Node: pooltest.Node(boards...), Policy: pooltest.Policy(onDemand, false, replicas)}
}
