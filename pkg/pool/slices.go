package pool

import (
	"fmt"

	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/dynamic-resource-allocation/resourceslice"
)

// Slices are the objects that the kubelet plugin helper's controller makes of the
// node's pool, in their order, for whoever wants to see or to allocate from them
// without an API server. The names sort like the published ones but lack the
// random end.
func Slices(n Node, resources resourceslice.DriverResources) []resourceapi.ResourceSlice {
	pool := resources.Pools[n.Name]
	objects := make([]resourceapi.ResourceSlice, len(pool.Slices))
	for i, s := range pool.Slices {
		objects[i] = resourceapi.ResourceSlice{
			TypeMeta:   metav1.TypeMeta{APIVersion: resourceapi.SchemeGroupVersion.String(), Kind: "ResourceSlice"},
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%05x-%s-%s", i, n.Driver, n.Name)},
			Spec: resourceapi.ResourceSliceSpec{
				Driver:         n.Driver,
				NodeName:       &n.Name,
				Pool:           resourceapi.ResourcePool{Name: n.Name, Generation: 1, ResourceSliceCount: int64(len(pool.Slices))},
				Devices:        s.Devices,
				SharedCounters: s.SharedCounters,
			},
		}
	}
	return objects
}
