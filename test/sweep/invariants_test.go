//go:build sweep

package sweep

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

// observed is a node at rest: no call is under way.
type observed struct {
	boards    []nvmlsim.Board
	claims    []*journal.Claim
	instances []*journal.Instance
	// specs are the texts of the files in the CDI directory, by "<claim UID>.json".
	specs map[string]string
	// metadata are the UIDs of the claims that have files about their devices.
	metadata []string
	// known are the UIDs of the claims that the API server has.
	known map[string]bool
	// foreign are the instances that have to be there as they are.
	foreign []gpu.Instance
	// prepared are the devices of the claims that the kubelet was told to be prepared.
	prepared map[string][]gpu.Device
}

// violations are all that is wrong with the node.
func (o observed) violations() []string {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }

	for _, b := range o.boards {
		if b.MIG != b.MIGPending {
			say("a MIG mode is pending on %s", b.UUID)
		}
		if used := o.timeShared(b.UUID); !used && b.TimeSlice != gpu.TimeSliceDefault {
			say("the time slice of %s is left %s", b.UUID, b.TimeSlice)
		} else if used && b.TimeSlice != configuredSlice {
			say("the time slice of %s is not %s", b.UUID, configuredSlice)
		}
		for _, i := range b.Instances {
			if o.recorded(i) == nil && !slices.ContainsFunc(o.foreign, i.Same) {
				say("an orphan: %s has no record", &i)
			}
		}
	}
	for _, f := range o.foreign {
		if !o.exists(f) {
			say("a foreign instance was touched: %s", &f)
		}
	}
	for _, c := range o.claims {
		if !o.known[c.UID] {
			say("the record of claim %s has no claim", c.UID)
		}
		if _, expected := o.prepared[c.UID]; !expected || c.State != journal.ClaimPrepared {
			say("the record of claim %s is left %s", c.UID, c.State)
		}
	}
	for _, i := range o.instances {
		switch {
		case i.State == journal.InstanceIdle && i.Claim == "":
		case i.State == journal.InstanceClaimed && o.claim(i.Claim) != nil:
		default:
			say("the record of %s is left %s, of claim %q", &i.Instance, i.State, i.Claim)
		}
		if !o.exists(i.Instance) {
			say("the record of %s has no instance", &i.Instance)
		}
	}
	for _, uid := range o.metadata {
		if !slices.ContainsFunc(o.claims, func(c *journal.Claim) bool { return c.UID == uid }) {
			say("the metadata of claim %s is there, and its record is not", uid)
		}
	}
	for file := range o.specs {
		if uid, ok := strings.CutSuffix(file, ".json"); !ok || o.claim(uid) == nil {
			say("the CDI file of %s has no record", file)
		}
	}
	wrong = append(wrong, o.heldTwice()...)
	for uid, devices := range o.prepared {
		wrong = append(wrong, o.incomplete(uid, devices)...)
	}
	slices.Sort(wrong)
	return wrong
}

// configuredSlice is the time slice that the first user of a board sets.
const configuredSlice = gpu.TimeSliceLong

// timeShared reports whether a claim has the board, or a replica of it.
func (o observed) timeShared(uuid string) bool {
	return slices.ContainsFunc(o.claims, func(c *journal.Claim) bool {
		return slices.ContainsFunc(c.Devices, func(d journal.ClaimDevice) bool {
			return d.Device.GPU == uuid && d.Device.Type != gpu.TypeMIG
		})
	})
}

func (o observed) recorded(i gpu.Instance) *journal.Instance {
	for _, r := range o.instances {
		if r.Identified && r.Instance.Same(i) {
			return r
		}
	}
	return nil
}

func (o observed) exists(i gpu.Instance) bool {
	return slices.ContainsFunc(o.boards, func(b nvmlsim.Board) bool { return slices.ContainsFunc(b.Instances, i.Same) })
}

func (o observed) claim(uid string) *journal.Claim {
	for _, c := range o.claims {
		if c.UID == uid {
			return c
		}
	}
	return nil
}

// heldTwice looks for devices of two claims that overlap, and instances of two claims.
func (o observed) heldTwice() []string {
	var wrong []string
	for n, a := range o.claims {
		for _, b := range o.claims[n+1:] {
			for _, d := range a.Devices {
				for _, e := range b.Devices {
					if d.Device.Overlaps(e.Device) {
						wrong = append(wrong, fmt.Sprintf("held twice: %s of claim %s and %s of claim %s", d.Device, a.UID, e.Device, b.UID))
					}
				}
			}
		}
	}
	return wrong
}

// incomplete is what a claim lacks that the kubelet was told to be prepared.
func (o observed) incomplete(uid string, devices []gpu.Device) []string {
	c := o.claim(uid)
	spec, ok := o.specs[uid+".json"]
	if c == nil || !ok || len(c.Devices) != len(devices) {
		return []string{fmt.Sprintf("claim %s is prepared, and its record or its CDI file is missing", uid)}
	}
	var wrong []string
	for n, d := range c.Devices {
		board := o.boards[slices.IndexFunc(o.boards, func(b nvmlsim.Board) bool { return b.UUID == devices[n].GPU })]
		uuid := board.UUID
		if d.Instance != nil && len(d.Instance.Compute) == 1 {
			uuid = d.Instance.Compute[0].UUID
		}
		switch {
		case d.Device != devices[n]:
			wrong = append(wrong, fmt.Sprintf("claim %s was prepared with %s instead of %s", uid, d.Device, devices[n]))
		case board.MIG != (d.Device.Type == gpu.TypeMIG):
			wrong = append(wrong, fmt.Sprintf("claim %s was prepared, and the MIG mode of %s is %t", uid, board.UUID, board.MIG))
		case d.Device.Type == gpu.TypeMIG && (d.Instance == nil || !d.Instance.Usable() || !o.exists(*d.Instance)):
			wrong = append(wrong, fmt.Sprintf("claim %s was prepared without %s", uid, d.Device))
		case !strings.Contains(spec, uuid):
			wrong = append(wrong, fmt.Sprintf("the CDI file of claim %s does not name %s", uid, uuid))
		}
	}
	return wrong
}

// Each thing that can be wrong is found, and a node with nothing wrong has none.
func TestViolationsAreFound(t *testing.T) {
	at := func(id int) gpu.Instance {
		return gpu.Instance{GPU: "GPU-a", Profile: "1g.10gb", Placement: gpu.Placement{Start: id, Size: 1}, ID: id, Compute: []gpu.ComputeInstance{{UUID: fmt.Sprintf("MIG-%d", id), Whole: true}}}
	}
	claimed, idle, foreign := at(1), at(2), at(3)
	good := func() observed {
		return observed{
			boards: []nvmlsim.Board{
				{UUID: "GPU-a", MIG: true, MIGPending: true, TimeSlice: gpu.TimeSliceDefault, Instances: []gpu.Instance{claimed, idle, foreign}},
			},
			claims: []*journal.Claim{{UID: "x", State: journal.ClaimPrepared, Devices: []journal.ClaimDevice{{Device: claimed.Device(), Instance: &claimed}}}},
			instances: []*journal.Instance{
				{State: journal.InstanceClaimed, Claim: "x", Identified: true, Instance: claimed},
				{State: journal.InstanceIdle, Identified: true, Instance: idle},
			},
			specs: map[string]string{"x.json": "MIG-1"}, known: map[string]bool{"x": true},
			foreign: []gpu.Instance{foreign}, prepared: map[string][]gpu.Device{"x": {claimed.Device()}},
		}
	}
	require.Empty(t, good().violations())
	for want, spoil := range map[string]func(*observed){
		"orphan": func(o *observed) { o.boards[0].Instances = append(o.boards[0].Instances, at(5)) },
		// What has a record as intent only is not known to be ours.
		"an orphan: 1g.10gb at 2:1":      func(o *observed) { o.instances[1].Identified = false },
		"pending":                        func(o *observed) { o.boards[0].MIGPending = false },
		"is left Long":                   func(o *observed) { o.boards[0].TimeSlice = gpu.TimeSliceLong },
		"is not Long":                    func(o *observed) { o.claims[0].Devices[0].Device = gpu.Device{Type: gpu.TypeGPU, GPU: "GPU-a"} },
		"foreign instance was touched":   func(o *observed) { o.boards[0].Instances[2].ID = 9 },
		"has no claim":                   func(o *observed) { o.known = nil },
		"is left releasing":              func(o *observed) { o.claims[0].State = journal.ClaimReleasing },
		"is left prepared":               func(o *observed) { o.prepared = nil },
		"is left claimed":                func(o *observed) { o.instances[0].Claim = "y" },
		"has no instance":                func(o *observed) { o.boards[0].Instances = o.boards[0].Instances[1:] },
		"the metadata of claim y":        func(o *observed) { o.metadata = append(o.metadata, "x", "y") },
		"has no record":                  func(o *observed) { o.specs["y.json"] = "" },
		"the CDI file of spec.tmp":       func(o *observed) { o.specs["spec.tmp"] = "" },
		"held twice":                     func(o *observed) { o.claims = append(o.claims, &journal.Claim{UID: "y", Devices: o.claims[0].Devices}) },
		"its record or its CDI file":     func(o *observed) { o.specs = nil },
		"instead of":                     func(o *observed) { o.prepared["x"] = []gpu.Device{foreign.Device()} },
		"the MIG mode of GPU-a is false": func(o *observed) { o.boards[0].MIG, o.boards[0].MIGPending = false, false },
		"prepared without":               func(o *observed) { o.claims[0].Devices[0].Instance = nil },
		"does not name MIG-1":            func(o *observed) { o.specs["x.json"] = "MIG-7" },
	} {
		t.Run(want, func(t *testing.T) {
			o := good()
			spoil(&o)
			require.Contains(t, strings.Join(o.violations(), "\n"), want)
		})
	}
}
