package plugin

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/health"
	"github.com/kerf-project/kerf/pkg/journal"
)

// Reasons of the conditions. They are the names of taints, after pool.TaintPrefix.
const (
	reasonLost         = health.ReasonLost
	reasonUnresponsive = "GPUUnresponsive"
	reasonUnreadable   = "GPUUnreadable"
	// reasonInstanceLost: the instance of a prepared claim has vanished.
	reasonInstanceLost = "InstanceLost"
	// reasonReleaseBlocked: a claim has ended, and a third party keeps its device, or its GPU is lost.
	reasonReleaseBlocked = "ReleaseBlocked"
	// reasonPrepareFailed: a claim cannot be prepared on the device, however often it is tried.
	reasonPrepareFailed = "PrepareFailed"
)

// failuresToTaint is how often preparing a device must fail for a reason that
// lasts before its pod is sent elsewhere. The kubelet tries again within seconds.
const failuresToTaint = 3

// conditions are what is wrong with the GPUs. One that was there before keeps its time.
func (p *Publisher) conditions(problems gpu.ReadErrors, absent []gpu.GPU, claims []*journal.Claim) []gpu.Condition {
	all := p.health.Conditions()
	add := func(c gpu.Condition) {
		if !slices.ContainsFunc(all, func(known gpu.Condition) bool { return known.Device == c.Device && known.Reason == c.Reason }) {
			all = append(all, c)
		}
	}
	for _, problem := range problems {
		if problem.UUID == "" {
			continue // It was never published; who it may be is among the absent.
		}
		c := gpu.Condition{Device: gpu.Device{GPU: problem.UUID}, Reason: reasonUnreadable, Effect: gpu.EffectNoSchedule, Message: problem.Err.Error()}
		switch {
		case errors.Is(problem.Err, gpu.ErrLost):
			c.Reason, c.Effect = reasonLost, gpu.EffectNoExecute
		case errors.Is(problem.Err, gpu.ErrDeadline):
			c.Reason = reasonUnresponsive
		}
		add(c)
	}
	for _, g := range absent {
		add(gpu.Condition{
			Device: gpu.Device{GPU: g.UUID}, Reason: reasonLost, Effect: gpu.EffectNoExecute,
			Message: fmt.Sprintf("the driver no longer lists GPU %s (%s, last at %s): look for its Xid in the kernel log, and reset or replace it", g.UUID, g.ProductName, g.PCIBusID),
		})
	}
	for _, c := range claims {
		condition := gpu.Condition{Reason: reasonReleaseBlocked, Effect: gpu.EffectNoSchedule, Message: c.Blocked}
		switch {
		case c.State == journal.ClaimLost:
			condition.Reason, condition.Effect = reasonInstanceLost, gpu.EffectNoExecute
			condition.Message = fmt.Sprintf("an instance of claim %s/%s vanished while it was in use", c.Namespace, c.Name)
		case c.Blocked == "":
			continue
		}
		for _, d := range c.Devices {
			condition.Device = d.Device
			add(condition)
		}
	}
	p.failing.Lock()
	defer p.failing.Unlock()
	for device, f := range p.failures {
		if f.times >= failuresToTaint {
			add(gpu.Condition{Device: device, Reason: reasonPrepareFailed, Effect: gpu.EffectNoExecute, Message: f.message})
		}
	}
	// In one order, so that the same conditions look the same.
	slices.SortFunc(all, func(a, b gpu.Condition) int {
		return cmp.Or(cmp.Compare(a.Device.String(), b.Device.String()), cmp.Compare(a.Reason, b.Reason))
	})
	for i := range all {
		if !all[i].Since.IsZero() {
			continue
		}
		all[i].Since = p.now().UTC().Truncate(time.Second)
		for _, earlier := range p.inventory.Conditions {
			if earlier.Device == all[i].Device && earlier.Reason == all[i].Reason {
				all[i].Since = earlier.Since
			}
		}
	}
	return all
}

// failure is how often a device could not be prepared, and why the last time.
type failure struct {
	times   int
	message string
}

// lasting reports whether an error of Prepare will not pass by itself: something
// that kerf must not touch is in the way, the board needs a reset, or it is gone.
func lasting(err error) bool {
	var collision *claims.CollisionError
	return errors.As(err, &collision) && collision.Foreign || errors.Is(err, gpu.ErrResetRequired) || errors.Is(err, gpu.ErrLost)
}

// Failed says that a claim could not be prepared on devices. When that has
// happened several times for a reason that lasts, the devices are tainted, so that
// the pod is evicted and scheduled elsewhere: nothing else would ever do that.
func (p *Publisher) Failed(devices []gpu.Device, err error) {
	if !lasting(err) {
		if errors.Is(err, gpu.ErrDeadline) {
			p.Wake() // The look reports the GPU that does not answer.
		}
		return
	}
	p.failing.Lock()
	defer p.failing.Unlock()
	for _, d := range devices {
		p.failures[d] = failure{times: p.failures[d].times + 1, message: err.Error()}
		if p.failures[d].times == failuresToTaint {
			p.Wake()
		}
	}
}

// forgetFailures drops the failures of devices that nobody is allocated any more:
// whoever comes next tries anew, if the device is still offered at all.
func (p *Publisher) forgetFailures(inUse map[string][]gpu.Device) {
	p.failing.Lock()
	defer p.failing.Unlock()
	for d := range p.failures {
		if !slices.Contains(inUse[d.GPU], d) {
			delete(p.failures, d)
		}
	}
}

func (p *Publisher) anyFailing() bool {
	p.failing.Lock()
	defer p.failing.Unlock()
	return len(p.failures) > 0
}
