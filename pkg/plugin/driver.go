// Package plugin is the kubelet's side of the driver: it registers with the
// kubelet, answers its calls with the engine and publishes the node's pool. It
// holds no policy of its own: what is offered is decided by package pool, how a
// claim is prepared by package claims.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"
	"k8s.io/klog/v2"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

// healthInterval is within the 30 seconds after which the kubelet forgets a device's health.
const healthInterval = 10 * time.Second

// Engine prepares and releases claims. See package claims.
type Engine interface {
	Prepare(ctx context.Context, c claims.Claim) ([]claims.Prepared, error)
	Unprepare(ctx context.Context, uid string) error
}

// Driver answers the kubelet.
type Driver struct {
	engine Engine
	node   pool.Node
	// devices are all that the node could offer, by published name.
	devices map[string]gpu.Device
	// fatal ends the process: it is called with errors that trying again does not mend.
	fatal context.CancelCauseFunc
}

var _ kubeletplugin.DRAPlugin = &Driver{}

// NewDriver makes the driver of a node.
func NewDriver(engine Engine, node pool.Node, fatal context.CancelCauseFunc) *Driver {
	return &Driver{engine: engine, node: node, devices: gpu.Catalogue(node.GPUs), fatal: fatal}
}

// Resources is what the node publishes: its GPUs by their policies. The foreign
// instances are those that kerf has no record of.
func Resources(node pool.Node, config *configv1alpha1.NodeConfiguration, foreign map[string][]gpu.Instance) (resourceslice.DriverResources, error) {
	offers := make(map[string]pool.Offer, len(node.GPUs))
	for _, g := range node.GPUs {
		offers[g.UUID] = pool.Desired(g, config.For(g.ProductName), foreign[g.UUID])
	}
	return pool.Build(node, offers, nil)
}

// PrepareResourceClaims prepares the claims of a pod side by side. Each has its own result.
func (d *Driver) PrepareResourceClaims(ctx context.Context, all []*resourceapi.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	results := make([]kubeletplugin.PrepareResult, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() { results[i] = d.prepare(ctx, c) })
	}
	wg.Wait()
	byUID := make(map[types.UID]kubeletplugin.PrepareResult, len(all))
	for i, c := range all {
		byUID[c.UID] = results[i]
	}
	return byUID, nil
}

func (d *Driver) prepare(ctx context.Context, c *resourceapi.ResourceClaim) kubeletplugin.PrepareResult {
	logger := klog.FromContext(ctx).WithValues("claim", klog.KObj(c), "claimUID", c.UID)
	fail := func(err error) kubeletplugin.PrepareResult {
		logger.Error(err, "Claim not prepared")
		return kubeletplugin.PrepareResult{Err: fmt.Errorf("prepare claim %s/%s: %w", c.Namespace, c.Name, err)}
	}
	wanted, err := request(c, d.node.Driver, d.node.Name, d.devices)
	if err != nil {
		return fail(err)
	}
	prepared, err := d.engine.Prepare(klog.NewContext(ctx, logger), wanted)
	if err != nil {
		return fail(err)
	}
	result := kubeletplugin.PrepareResult{}
	for _, p := range prepared {
		device := kubeletplugin.Device{Requests: []string{mainRequest(p.Request)}, PoolName: p.Pool, DeviceName: p.Name, CDIDeviceIDs: []string{p.CDI}}
		if p.ShareID != "" {
			id := types.UID(p.ShareID)
			device.ShareID = &id
		}
		result.Devices = append(result.Devices, device)
	}
	logger.Info("Claim prepared", "devices", len(result.Devices))
	return result
}

// mainRequest is the request of an allocation result: one of prioritized
// alternatives is named "request/alternative".
func mainRequest(name string) string {
	main, _, _ := strings.Cut(name, "/")
	return main
}

// UnprepareResourceClaims gives back what the claims hold. Unknown claims are given back already.
func (d *Driver) UnprepareResourceClaims(ctx context.Context, all []kubeletplugin.NamespacedObject) (map[types.UID]error, error) {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() {
			logger := klog.FromContext(ctx).WithValues("claim", c.NamespacedName, "claimUID", c.UID)
			if err := d.engine.Unprepare(klog.NewContext(ctx, logger), string(c.UID)); err != nil {
				logger.Error(err, "Claim not released")
				errs[i] = err
				return
			}
			logger.Info("Claim released")
		})
	}
	wg.Wait()
	byUID := make(map[types.UID]error, len(all))
	for i, c := range all {
		byUID[c.UID] = errs[i]
	}
	return byUID, nil
}

// HandleError hears of errors in the background. What the API server will never
// take ends the process, so that it is seen; the rest is tried again by the helper.
func (d *Driver) HandleError(ctx context.Context, err error, msg string) {
	utilruntime.HandleErrorWithContext(ctx, err, msg)
	var dropped *resourceslice.DroppedFieldsError
	if !errors.Is(err, kubeletplugin.ErrRecoverable) || apierrors.IsInvalid(err) || errors.As(err, &dropped) {
		d.fatal(fmt.Errorf("%s: %w", msg, err))
	}
}

// WatchHealthStatus tells the kubelet that all devices are healthy, again and again.
func (d *Driver) WatchHealthStatus(ctx context.Context, reports chan<- kubeletplugin.DeviceHealthReport) error {
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for {
		report := kubeletplugin.DeviceHealthReport{}
		for name := range d.devices {
			report.Devices = append(report.Devices, kubeletplugin.DeviceHealth{
				PoolName: d.node.Name, DeviceName: name, Health: kubeletplugin.HealthStatusHealthy, LastUpdated: time.Now(),
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case reports <- report:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
