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

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/tools/record"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"
	"k8s.io/klog/v2"

	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

// callTimeout bounds a call for one claim. With the time that an undo takes it is
// within the 45 seconds that the kubelet waits.
const callTimeout = 30 * time.Second

// Engine prepares and releases claims. See package claims.
type Engine interface {
	Prepare(ctx context.Context, c claims.Claim) ([]claims.Prepared, error)
	Unprepare(ctx context.Context, uid string) error
}

// Pool is what the driver asks about the node's devices. See Publisher.
type Pool interface {
	Device(name string) (gpu.Device, bool)
	Resources() resourceslice.DriverResources
	Released()
	Failed(devices []gpu.Device, err error)
	Confirm(ctx context.Context) error
	Lacks(l pool.Lacks) bool
	// Conditions are what is wrong with the devices, until the channel is closed.
	Conditions() ([]gpu.Condition, <-chan struct{})
}

// Observer is told of every claim's operation, "prepare" or "unprepare", when it has ended.
type Observer func(operation string, took time.Duration, err error)

// Changed is told of every claim that was prepared or released.
type Changed func(namespace, name, uid string)

// Driver answers the kubelet.
type Driver struct {
	engine  Engine
	node    pool.Node
	pool    Pool
	observe Observer
	changed Changed
	events  record.EventRecorder
	// fatal ends the process: it is called with errors that trying again does not mend.
	fatal context.CancelCauseFunc
}

var _ kubeletplugin.DRAPlugin = &Driver{}

// NewDriver makes the driver of a node.
func NewDriver(engine Engine, node pool.Node, published Pool, observe Observer, changed Changed, events record.EventRecorder, fatal context.CancelCauseFunc) *Driver {
	return &Driver{engine: engine, node: node, pool: published, observe: observe, changed: changed, events: events, fatal: fatal}
}

// PrepareResourceClaims prepares the claims of a pod side by side. Each has its own result.
func (d *Driver) PrepareResourceClaims(ctx context.Context, all []*resourceapi.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	results := make([]kubeletplugin.PrepareResult, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() {
			began := time.Now()
			results[i] = d.prepare(ctx, c)
			d.observe("prepare", time.Since(began), results[i].Err)
		})
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
	wanted, err := request(c, d.node.Driver, d.node.Name, d.pool.Device)
	if err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	prepared, err := d.engine.Prepare(klog.NewContext(ctx, logger), wanted)
	if err != nil {
		var devices []gpu.Device
		for _, w := range wanted.Devices {
			devices = append(devices, w.Device)
		}
		d.pool.Failed(devices, err)
		return fail(err)
	}
	result := kubeletplugin.PrepareResult{}
	for _, p := range prepared {
		device := kubeletplugin.Device{Requests: []string{mainRequest(p.Request)}, PoolName: p.Pool, DeviceName: p.Name, CDIDeviceIDs: []string{p.CDI}, Metadata: d.metadata(p)}
		if p.ShareID != "" {
			id := types.UID(p.ShareID)
			device.ShareID = &id
		}
		result.Devices = append(result.Devices, device)
		for _, condition := range p.Conditions {
			logger.Info("Claim prepared with a condition", "device", p.Name, "condition", condition.Type, "message", condition.Message)
			d.events.Event(c, corev1.EventTypeWarning, condition.Type, "device "+p.Name+": "+condition.Message)
		}
	}
	d.changed(c.Namespace, c.Name, string(c.UID))
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
			began := time.Now()
			if errs[i] = d.unprepare(klog.NewContext(ctx, logger), string(c.UID)); errs[i] != nil {
				logger.Error(errs[i], "Claim not released")
			}
			d.observe("unprepare", time.Since(began), errs[i])
			d.changed(c.Namespace, c.Name, string(c.UID))
		})
	}
	wg.Wait()
	byUID := make(map[types.UID]error, len(all))
	for i, c := range all {
		byUID[c.UID] = errs[i]
	}
	return byUID, nil
}

func (d *Driver) unprepare(ctx context.Context, uid string) error {
	logger := klog.FromContext(ctx)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := d.engine.Unprepare(ctx, uid)
	var blocked *claims.BlockedError
	switch {
	case err == nil:
		d.pool.Released()
		logger.Info("Claim released")
		return nil
	case errors.As(err, &blocked):
		// With an answer of success the scheduler may give the devices to others,
		// so the API server has to know first that it must not.
		if confirmErr := d.pool.Confirm(ctx); confirmErr != nil {
			return errors.Join(err, confirmErr)
		}
		logger.Error(err, "Claim released but for its devices, which are tainted until they can be given back")
		return nil
	}
	return err
}

// HandleError hears of errors in the background. Where the API server lacks a
// feature, the pool is reduced to what it can hold. What it will never take ends the
// process, so that it is seen; the rest is tried again by the helper.
func (d *Driver) HandleError(ctx context.Context, err error, msg string) {
	utilruntime.HandleErrorWithContext(ctx, err, msg)
	var dropped *resourceslice.DroppedFieldsError
	if errors.As(err, &dropped) {
		if lacks, ok := pool.LacksOf(dropped.DisabledFeatures()); ok {
			if d.pool.Lacks(lacks) {
				d.events.Event(NodeReference(d.node.Name), corev1.EventTypeWarning, "FeatureMissing", missing(lacks))
			}
			return
		}
	}
	if !errors.Is(err, kubeletplugin.ErrRecoverable) || apierrors.IsInvalid(err) || errors.As(err, &dropped) {
		d.fatal(fmt.Errorf("%s: %w", msg, err))
	}
}

// missing says what the node does without, and what to do.
func missing(lacks pool.Lacks) string {
	var without, gates []string
	if lacks.PartitionableDevices {
		without, gates = append(without, "counters, so that it offers whole GPUs only"), append(gates, "DRAPartitionableDevices")
	}
	if lacks.DeviceTaints {
		without, gates = append(without, "taints, so that it does not offer devices that are not well, and evicts nobody from them"), append(gates, "DRADeviceTaints")
	}
	return fmt.Sprintf("the API server drops fields of this node's ResourceSlices. The node does without %s. Switch %s on in the control plane (they are by default since Kubernetes 1.36), and restart the plugin",
		strings.Join(without, ", and without "), strings.Join(gates, " and "))
}

// NodeReference is what events about a node are about. The kubelet's own have the name for the UID too.
func NodeReference(name string) *corev1.ObjectReference {
	return &corev1.ObjectReference{Kind: "Node", Name: name, UID: types.UID(name)}
}
