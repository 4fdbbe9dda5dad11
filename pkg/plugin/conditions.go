package plugin

import (
	"errors"
	"fmt"
	"time"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// Reasons of the conditions that a look at the GPUs can find.
const (
	reasonLost         = "GPULost"
	reasonUnresponsive = "GPUUnresponsive"
	reasonUnreadable   = "GPUUnreadable"
)

// conditions are what is wrong with the GPUs. One that was there before keeps its time.
func (p *Publisher) conditions(problems gpu.ReadErrors, absent []gpu.GPU) []gpu.Condition {
	var all []gpu.Condition
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
		all = append(all, c)
	}
	for _, g := range absent {
		all = append(all, gpu.Condition{
			Device: gpu.Device{GPU: g.UUID}, Reason: reasonLost, Effect: gpu.EffectNoExecute,
			Message: fmt.Sprintf("the driver no longer lists GPU %s (%s, last at %s): look for its Xid in the kernel log, and reset or replace it", g.UUID, g.ProductName, g.PCIBusID),
		})
	}
	for i := range all {
		all[i].Since = p.now().UTC().Truncate(time.Second)
		for _, earlier := range p.inventory.Conditions {
			if earlier.Device == all[i].Device && earlier.Reason == all[i].Reason {
				all[i].Since = earlier.Since
			}
		}
	}
	return all
}
