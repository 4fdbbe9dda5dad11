package plugin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/dynamic-resource-allocation/resourceslice"

	"github.com/kerf-project/kerf/pkg/pool"
)

// apiTimeout bounds a question to the API server that somebody waits for.
const apiTimeout = 5 * time.Second

// Server asks the API server about a node's pool.
type Server struct {
	Client kubernetes.Interface
	Node   pool.Node
}

var _ API = Server{}

// Allocated are the devices of the node's pool that claims are allocated, by
// name. The answer may be as old as the server's cache.
func (s Server) Allocated(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	claims, err := s.Client.ResourceV1().ResourceClaims(metav1.NamespaceAll).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("list the claims: %w", err)
	}
	var names []string
	for _, c := range claims.Items {
		if c.Status.Allocation == nil {
			continue
		}
		for _, r := range c.Status.Allocation.Devices.Results {
			if r.Driver == s.Node.Driver && r.Pool == s.Node.Name {
				names = append(names, r.Device)
			}
		}
	}
	return names, nil
}

// Complete returns what the node's published slices lack of the pool that they are to be.
func (s Server) Complete(ctx context.Context, want resourceslice.Pool) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	published, err := s.Client.ResourceV1().ResourceSlices().List(ctx, metav1.ListOptions{FieldSelector: fields.Set{
		resourceapi.ResourceSliceSelectorNodeName: s.Node.Name,
		resourceapi.ResourceSliceSelectorDriver:   s.Node.Driver,
	}.String()})
	if err != nil {
		return fmt.Errorf("list the slices of the node: %w", err)
	}
	return complete(published.Items, want)
}

// Ready is the readiness of the plugin: it is registered with the kubelet, and
// the API server has had the complete pool. What comes after that, such as an API
// server that is away, makes nobody unready who can still serve the kubelet.
type Ready struct {
	// Registered reports whether the kubelet has taken the registration.
	Registered func() bool
	// Published returns what the API server lacks of the pool.
	Published Check

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
	if err := r.Published(ctx); err != nil {
		return err
	}
	r.seen = true
	return nil
}

// complete returns what the published slices lack of the pool. Only names and
// taints are compared: the server sets defaults in the rest.
func complete(published []resourceapi.ResourceSlice, want resourceslice.Pool) error {
	newest := int64(0)
	for _, s := range published {
		newest = max(newest, s.Spec.Pool.Generation)
	}
	devices, count := map[string][]resourceapi.DeviceTaint{}, 0
	for _, s := range published {
		if s.Spec.Pool.Generation != newest {
			continue
		}
		count++
		for _, d := range s.Spec.Devices {
			devices[d.Name] = d.Taints
		}
	}
	if count != len(want.Slices) {
		return fmt.Errorf("%d of the pool's %d slices are published", count, len(want.Slices))
	}
	for _, s := range want.Slices {
		for _, d := range s.Devices {
			taints, ok := devices[d.Name]
			if !ok {
				return fmt.Errorf("device %s is not published yet", d.Name)
			}
			for _, t := range d.Taints {
				if !tainted(taints, t) {
					return fmt.Errorf("taint %s of device %s is not published yet", t.Key, d.Name)
				}
			}
		}
	}
	return nil
}

func tainted(taints []resourceapi.DeviceTaint, by resourceapi.DeviceTaint) bool {
	return slices.ContainsFunc(taints, func(t resourceapi.DeviceTaint) bool { return t.Key == by.Key && t.Effect == by.Effect })
}
