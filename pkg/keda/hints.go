package keda

import (
	"context"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

// CachedHints are those of a controller-runtime cache.
type CachedHints struct {
	reader client.Reader

	mu      sync.Mutex
	waiting map[types.NamespacedName]map[chan struct{}]struct{}
}

// NewCachedHints makes the cache hold all hints, with one event handler for
// all who wait for changes. Its scheme has to know v1alpha1. Call it before the
// cache is started: afterwards it waits until the hints are there.
func NewCachedHints(ctx context.Context, c cache.Cache) (*CachedHints, error) {
	hints := &CachedHints{reader: c, waiting: map[types.NamespacedName]map[chan struct{}]struct{}{}}
	informer, err := c.GetInformer(ctx, &v1alpha1.GPUScalingHint{})
	if err != nil {
		return nil, fmt.Errorf("watch hints: %w", err)
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    hints.wake,
		UpdateFunc: func(_, object any) { hints.wake(object) },
		DeleteFunc: hints.wake,
	})
	if err != nil {
		return nil, fmt.Errorf("watch hints: %w", err)
	}
	return hints, nil
}

// Get implements Hints.
func (h *CachedHints) Get(ctx context.Context, key types.NamespacedName) (*v1alpha1.GPUScalingHint, error) {
	hint := &v1alpha1.GPUScalingHint{}
	if err := h.reader.Get(ctx, key, hint); err != nil {
		return nil, err
	}
	return hint, nil
}

// Changed implements Hints.
func (h *CachedHints) Changed(ctx context.Context, key types.NamespacedName) <-chan struct{} {
	changed := make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting[key] == nil {
		h.waiting[key] = map[chan struct{}]struct{}{}
	}
	h.waiting[key][changed] = struct{}{}
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.waiting[key], changed)
		if len(h.waiting[key]) == 0 {
			delete(h.waiting, key)
		}
	})
	return changed
}

// wake tells all who wait for a hint. It never blocks: a value that was not
// taken yet stands for this change too.
func (h *CachedHints) wake(object any) {
	name, err := toolscache.DeletionHandlingObjectToName(object)
	if err != nil {
		return // The cache has nothing but objects.
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for changed := range h.waiting[types.NamespacedName{Namespace: name.Namespace, Name: name.Name}] {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}
