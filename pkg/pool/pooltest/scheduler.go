package pooltest

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
	case name == AnyClass:
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

// Scheduler allocates as the one in the cluster does, on one node.
type Scheduler struct {
	slices []*resourceapi.ResourceSlice
	cache  *cel.Cache
	node   *corev1.Node
	// Allocated are the devices that claims have.
	Allocated sets.Set[structured.DeviceID]
}

// NewScheduler is the scheduler of a node that has published these slices.
func NewScheduler(node string, objects []resourceapi.ResourceSlice) *Scheduler {
	s := &Scheduler{
		cache:     cel.NewCache(32, cel.Features{EnableConsumableCapacity: true}),
		node:      &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}},
		Allocated: sets.New[structured.DeviceID](),
	}
	for i := range objects {
		s.slices = append(s.slices, &objects[i])
	}
	return s
}

// Find allocates claims of one pod together without taking the devices.
func (s *Scheduler) Find(tb testing.TB, claims ...*resourceapi.ResourceClaim) ([]structured.DeviceID, bool) {
	tb.Helper()
	state := structured.AllocatedState{
		AllocatedDevices: s.Allocated, AllocatedSharedDeviceIDs: sets.New[structured.SharedDeviceID](), AggregatedCapacity: structured.NewConsumedCapacityCollection(),
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

// Allocate takes the devices that it finds and returns their names.
func (s *Scheduler) Allocate(tb testing.TB, claims ...*resourceapi.ResourceClaim) ([]string, bool) {
	tb.Helper()
	ids, ok := s.Find(tb, claims...)
	s.Allocated = s.Allocated.Clone().Insert(ids...)
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.Device.String()
	}
	return names, ok
}

// Claim asks for one device of each class.
func Claim(classNames ...string) *resourceapi.ResourceClaim {
	c := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: "claim", Namespace: "default"}}
	for i, name := range classNames {
		c.Spec.Devices.Requests = append(c.Spec.Devices.Requests, resourceapi.DeviceRequest{
			Name:    fmt.Sprintf("r%d", i),
			Exactly: &resourceapi.ExactDeviceRequest{DeviceClassName: name, AllocationMode: resourceapi.DeviceAllocationModeExactCount, Count: 1},
		})
	}
	return c
}

// Classes that the chart installs, and one that takes any device.
const (
	WholeClass   = "gpu.nvidia.com"
	MIGClass     = "mig.nvidia.com"
	ReplicaClass = "timeslice.gpu.nvidia.com"
	AnyClass     = "any.example.com"
)

// ProfileClass is the class of a MIG profile.
func ProfileClass(profile string) string { return "mig-" + profile + ".gpu.nvidia.com" }
