package pool

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/dynamic-resource-allocation/deviceattribute"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// TaintPrefix is the domain of the taints: the reason of a condition follows it.
const TaintPrefix = "gpu.kerf.dev/"

// maxTaints is the API's limit for a device.
const maxTaints = resourceapi.DeviceTaintsMaxLength

type (
	attributes = map[resourceapi.QualifiedName]resourceapi.DeviceAttribute
	capacities = map[resourceapi.QualifiedName]resourceapi.DeviceCapacity
)

// describer turns devices into what the API says about them.
type describer struct {
	names      gpu.Names
	conditions []gpu.Condition
	// name is that of an attribute or capacity of this node's driver.
	name func(short string) resourceapi.QualifiedName
	// driver are the attributes that all devices of the node share.
	driver attributes
}

func newDescriber(n Node, conditions []gpu.Condition) (*describer, error) {
	uuids := make([]string, len(n.GPUs))
	for i, g := range n.GPUs {
		uuids[i] = g.UUID
	}
	d := &describer{names: gpu.NewNames(uuids), conditions: conditions, name: n.Attribute}
	driverVersion, err := semver(n.DriverVersion)
	if err != nil {
		return nil, fmt.Errorf("version of the NVIDIA driver: %w", err)
	}
	d.driver = attributes{
		d.name("driverVersion"):     {VersionValue: &driverVersion},
		d.name("cudaDriverVersion"): versionValue(n.CUDADriverVersion),
	}
	return d, nil
}

// offer describes the devices of one GPU.
func (d *describer) offer(g *gpu.GPU, offer Offer) ([]resourceapi.Device, error) {
	shared := d.board(g)
	budget, replicas := budgetOf(g), offer.replicas()
	described := make([]resourceapi.Device, len(offer))
	for i, o := range offer {
		a := maps.Clone(shared)
		a[d.name("type")] = stringValue(string(o.Type))
		device := resourceapi.Device{Name: d.names.Device(o.Device), Attributes: a, Taints: d.taints(g, o.Device)}

		var profile gpu.Profile
		switch o.Type {
		case gpu.TypeMIG:
			var ok bool
			if profile, ok = g.Profile(o.Profile); !ok {
				return nil, fmt.Errorf("%s is offered, but the board has no such profile", o.Device)
			}
			a[d.name("profile")] = stringValue(profile.Name)
			if o.UUID != "" {
				a[d.name("uuid")] = stringValue(o.UUID)
			}
			device.Capacity = d.profileCapacity(profile)
		case gpu.TypeTimeSlice:
			a[d.name("uuid")] = stringValue(g.UUID)
			// The memory is a share for the scheduler to count with: nothing
			// keeps a container from taking more, and a selector can tell.
			a[d.name("memoryEnforced")] = resourceapi.DeviceAttribute{BoolValue: new(bool)}
			device.Capacity = capacities{d.name("memory"): mebibytes(g.MemoryBytes / uint64(replicas) >> 20)}
		default:
			a[d.name("uuid")] = stringValue(g.UUID)
			device.Capacity = capacities{d.name("memory"): mebibytes(g.MemoryBytes >> 20)}
		}
		device.ConsumesCounters = []resourceapi.DeviceCounterConsumption{{CounterSet: d.names.GPU(g.UUID), Counters: budget.taken(o.Device, profile)}}
		described[i] = device
	}
	return described, nil
}

// board are the attributes that all devices of a GPU share.
func (d *describer) board(g *gpu.GPU) attributes {
	a := maps.Clone(d.driver)
	a[d.name("productName")] = stringValue(g.ProductName)
	a[d.name("brand")] = stringValue(g.Brand)
	a[d.name("architecture")] = stringValue(g.Architecture)
	a[d.name("cudaComputeCapability")] = versionValue(g.ComputeCapability)
	// The whole GPU has it too, so that "on different boards" can be asked of
	// devices of any type.
	a[d.name("parentUUID")] = stringValue(g.UUID)
	a[deviceattribute.StandardDeviceAttributePCIBusID] = stringValue(g.PCIBusID)
	if g.PCIeRoot != "" {
		a[deviceattribute.StandardDeviceAttributePCIeRoot] = stringValue(g.PCIeRoot)
	}
	if g.NUMANode >= 0 {
		node := int64(g.NUMANode)
		a[deviceattribute.StandardDeviceAttributeNUMANode] = resourceapi.DeviceAttribute{IntValue: &node}
	}
	return a
}

func (d *describer) profileCapacity(p gpu.Profile) capacities {
	return capacities{
		d.name("memory"):          mebibytes(p.MemoryMiB),
		d.name("multiprocessors"): count(p.Multiprocessors),
		d.name("copyEngines"):     count(p.CopyEngines),
		d.name("decoders"):        count(p.Decoders),
		d.name("encoders"):        count(p.Encoders),
		d.name("jpegEngines"):     count(p.JPEGEngines),
		d.name("ofaEngines"):      count(p.OFAEngines),
	}
}

// taints are a device's conditions. Conditions of one reason are one taint, with
// the most severe of their effects since the first had it: a second instance
// that is being released changes nothing for a device that overlaps both.
func (d *describer) taints(g *gpu.GPU, device gpu.Device) []resourceapi.DeviceTaint {
	byKey := map[string]resourceapi.DeviceTaint{}
	for _, c := range d.conditions {
		effect := resourceapi.DeviceTaintEffect(c.Effect)
		if effect != resourceapi.DeviceTaintEffectNoSchedule && effect != resourceapi.DeviceTaintEffectNoExecute {
			continue
		}
		// What holds the one set of media engines stands in the way of others that need it, wherever they lie.
		if !c.Concerns(device) && !g.Collide(c.Device, device) {
			continue
		}
		// The API keeps seconds.
		since := metav1.NewTime(c.Since.Truncate(time.Second))
		taint := resourceapi.DeviceTaint{Key: TaintPrefix + c.Reason, Effect: effect, TimeAdded: &since}
		if old, ok := byKey[taint.Key]; !ok || outweighs(taint, old) {
			byKey[taint.Key] = taint
		}
	}
	taints := slices.SortedFunc(maps.Values(byKey), func(a, b resourceapi.DeviceTaint) int {
		// The severe ones first: they must not be among those beyond the limit.
		if a.Effect != b.Effect {
			return strings.Compare(string(a.Effect), string(b.Effect))
		}
		return strings.Compare(a.Key, b.Key)
	})
	return taints[:min(len(taints), maxTaints)]
}

func outweighs(a, b resourceapi.DeviceTaint) bool {
	if a.Effect != b.Effect {
		return a.Effect == resourceapi.DeviceTaintEffectNoExecute
	}
	return a.TimeAdded.Before(b.TimeAdded)
}

// semver writes a version with leading zeros or two numbers as the API's strict
// semantic version: 580.95.05 is 580.95.5.
func semver(v string) (string, error) {
	parsed, err := version.ParseGeneric(v)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d.%d.%d", parsed.Major(), parsed.Minor(), parsed.Patch()), nil
}

func versionValue(v gpu.Version) resourceapi.DeviceAttribute {
	s := fmt.Sprintf("%d.%d.0", v.Major, v.Minor)
	return resourceapi.DeviceAttribute{VersionValue: &s}
}

func stringValue(s string) resourceapi.DeviceAttribute {
	return resourceapi.DeviceAttribute{StringValue: &s}
}

func count(n int) resourceapi.DeviceCapacity {
	return resourceapi.DeviceCapacity{Value: *resource.NewQuantity(int64(n), resource.DecimalSI)}
}

func mebibytes(n uint64) resourceapi.DeviceCapacity {
	return resourceapi.DeviceCapacity{Value: *resource.NewQuantity(int64(n)<<20, resource.BinarySI)}
}
