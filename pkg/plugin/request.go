package plugin

import (
	"errors"
	"fmt"

	resourceapi "k8s.io/api/resource/v1"

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
	return wanted, apply(allocation.Config, driver, wanted.Devices)
}
