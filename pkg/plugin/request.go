package plugin

import (
	"errors"
	"fmt"

	resourceapi "k8s.io/api/resource/v1"

	gpuv1alpha1 "github.com/kerf-project/kerf/api/gpu/v1alpha1"
	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// request reads what this driver and node have to prepare out of an allocated
// claim. An error names what is wrong with the claim, and nothing has been touched.
func request(c *resourceapi.ResourceClaim, driver, pool string, find func(name string) (gpu.Device, bool)) (claims.Claim, error) {
	wanted := claims.Claim{UID: string(c.UID), Namespace: c.Namespace, Name: c.Name}
	if c.Status.Allocation == nil {
		return wanted, errors.New("the claim is not allocated")
	}
	allocation := c.Status.Allocation.Devices
	for _, r := range allocation.Results {
		if r.Driver != driver {
			continue
		}
		if r.Pool != pool {
			return wanted, fmt.Errorf("request %s: device %s is of pool %s, and this is the driver of pool %s", r.Request, r.Device, r.Pool, pool)
		}
		device, ok := find(r.Device)
		if !ok {
			return wanted, fmt.Errorf("request %s: this node has no device %s: was its GPU removed?", r.Request, r.Device)
		}
		d := journal.ClaimDevice{Request: r.Request, Pool: r.Pool, Name: r.Device, Device: device, AdminAccess: r.AdminAccess != nil && *r.AdminAccess}
		if r.ShareID != nil {
			d.ShareID = string(*r.ShareID)
		}
		for name, q := range r.ConsumedCapacity {
			if d.ConsumedCapacity == nil {
				d.ConsumedCapacity = map[string]string{}
			}
			d.ConsumedCapacity[string(name)] = q.String()
		}
		wanted.Devices = append(wanted.Devices, d)
	}
	if len(wanted.Devices) == 0 {
		return wanted, fmt.Errorf("the claim has no device of driver %s", driver)
	}
	return wanted, checkParameters(allocation.Config, driver, wanted.Devices)
}

// checkParameters holds the opaque parameters, the class's as well as the
// claim's, against the devices of the requests that they are for.
func checkParameters(configs []resourceapi.DeviceAllocationConfiguration, driver string, devices []journal.ClaimDevice) error {
	for _, config := range configs {
		if config.Opaque == nil || config.Opaque.Driver != driver {
			continue
		}
		parameters, err := gpuv1alpha1.Parse(config.Opaque.Parameters.Raw)
		if err != nil {
			return fmt.Errorf("opaque parameters of the %s: %w", source(config), err)
		}
		for _, name := range requests(config, devices) {
			var profiles []string
			for _, d := range devices {
				if d.Request == name || mainRequest(d.Request) == name {
					profiles = append(profiles, d.Device.Profile)
				}
			}
			// A configuration can name requests of other drivers, or subrequests that were not chosen.
			if len(profiles) == 0 {
				continue
			}
			if err := parameters.Check(profiles); err != nil {
				return fmt.Errorf("request %s: opaque parameters of the %s: %w", name, source(config), err)
			}
		}
	}
	return nil
}

func source(config resourceapi.DeviceAllocationConfiguration) string {
	if config.Source == resourceapi.AllocationConfigSourceClass {
		return "device class"
	}
	return "claim"
}

// requests are those that a configuration is for: none named means all.
func requests(config resourceapi.DeviceAllocationConfiguration, devices []journal.ClaimDevice) []string {
	if len(config.Requests) > 0 {
		return config.Requests
	}
	var all []string
	seen := map[string]bool{}
	for _, d := range devices {
		if name := mainRequest(d.Request); !seen[name] {
			seen[name] = true
			all = append(all, name)
		}
	}
	return all
}
