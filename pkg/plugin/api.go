package plugin

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/kerf-project/kerf/pkg/pool"
)

// apiTimeout bounds a question to the API server that somebody waits for.
const apiTimeout = 5 * time.Second

// ListAllocations asks the API server which devices of a node's pool claims are
// allocated. The answer may be as old as the server's cache.
func ListAllocations(client kubernetes.Interface, node pool.Node) Allocations {
	return func(ctx context.Context) ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		defer cancel()
		claims, err := client.ResourceV1().ResourceClaims(metav1.NamespaceAll).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return nil, fmt.Errorf("list the claims: %w", err)
		}
		var names []string
		for _, c := range claims.Items {
			if c.Status.Allocation == nil {
				continue
			}
			for _, r := range c.Status.Allocation.Devices.Results {
				if r.Driver == node.Driver && r.Pool == node.Name {
					names = append(names, r.Device)
				}
			}
		}
		return names, nil
	}
}

// Ready is the readiness of the plugin: it is registered with the kubelet, and
// the API server has had the complete pool. What comes after that, such as an API
// server that is away, makes nobody unready who can still serve the kubelet.
type Ready struct {
	Client kubernetes.Interface
	Node   pool.Node
	// Registered reports whether the kubelet has taken the registration.
	Registered func() bool
	// Resources are what the pool is to be.
	Resources func() resourceslice.DriverResources

	mu   sync.Mutex
	seen bool
}

// Check returns what is missing, or nil.
func (r *Ready) Check(ctx context.Context) error {
	if !r.Registered() {
		return errors.New("the kubelet has not registered the plugin yet")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	published, err := r.Client.ResourceV1().ResourceSlices().List(ctx, metav1.ListOptions{FieldSelector: fields.Set{
		resourceapi.ResourceSliceSelectorNodeName: r.Node.Name,
		resourceapi.ResourceSliceSelectorDriver:   r.Node.Driver,
	}.String()})
	if err != nil {
		return fmt.Errorf("list the slices of the node: %w", err)
	}
	if err := complete(published.Items, r.Resources().Pools[r.Node.Name]); err != nil {
		return err
	}
	r.seen = true
	return nil
}

// complete returns what the published slices lack of the pool.
func complete(published []resourceapi.ResourceSlice, want resourceslice.Pool) error {
	newest := int64(0)
	for _, s := range published {
		newest = max(newest, s.Spec.Pool.Generation)
	}
	devices, slices := sets.New[string](), 0
	for _, s := range published {
		if s.Spec.Pool.Generation != newest {
			continue
		}
		slices++
		for _, d := range s.Spec.Devices {
			devices.Insert(d.Name)
		}
	}
	if slices != len(want.Slices) {
		return fmt.Errorf("%d of the pool's %d slices are published", slices, len(want.Slices))
	}
	for _, s := range want.Slices {
		for _, d := range s.Devices {
			if !devices.Has(d.Name) {
				return fmt.Errorf("device %s is not published yet", d.Name)
			}
		}
	}
	return nil
}
