package diagnose

import (
	"fmt"
	"slices"
	"time"

	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// underWay is for how long a claim may be on its way before somebody is asked
// to look: the kubelet gives a call 45 seconds, and then it calls again.
const underWay = 2 * time.Minute

// recovery is what mends what a killed plugin has left.
const recovery = "the plugin mends it within a minute of its start; on a node without one: kerf cleanup"

func checkRecords(f *facts) (string, []Finding) {
	if f.noRecords != nil {
		return "", []Finding{fail("", "run this as root, with the plugin's --run-dir", "the journal cannot be read: %v", f.noRecords)}
	}
	var faults []Finding
	for _, c := range f.records.Corrupt {
		faults = append(faults, fail(c.Path, "the plugin moves it aside within a minute and writes that of a prepared claim again from its CDI spec; on a node without a plugin kerf cleanup does; then look at it and delete it",
			"the record does not parse: %v", c.Err))
	}
	for _, path := range f.records.MovedAside {
		faults = append(faults, warn(path, "look at it, then delete it: rm "+path, "a record that did not parse was moved aside"))
	}
	return fmt.Sprintf("%s and %s", plural(len(f.records.Claims), "claim"), plural(len(f.records.Instances), "instance")), faults
}

// checkInstances compares the instances of the hardware with their records.
func checkInstances(f *facts) (string, []Finding) {
	if f.noHardware != nil || f.noRecords != nil {
		return "", nil
	}
	var faults []Finding
	count := 0
	for _, g := range f.node.GPUs {
		for _, i := range g.Instances {
			count++
			if fault, bad := f.instanceFault(g, i); bad {
				faults = append(faults, fault)
			}
		}
	}
	for _, r := range f.records.Instances {
		g, seen := f.board(r.Instance.GPU)
		if _, there := g.InstanceAt(r.Instance.Profile, r.Instance.Placement); !seen || there || f.readError(g.UUID) != nil {
			continue
		}
		// That of a claim is reported with the claim.
		if r.Claim == "" || f.claimRecord(r.Claim) == nil {
			faults = append(faults, warn(f.names.Device(r.Instance.Device()), recovery, "it has a record and is not there: somebody destroyed it, or the GPU was reset"))
		}
	}
	return fmt.Sprintf("%s on the hardware", plural(count, "MIG instance")), faults
}

func (f *facts) instanceFault(g gpu.GPU, i gpu.Instance) (Finding, bool) {
	about := f.names.Device(i.Device())
	what := fmt.Sprintf("GPU instance %d (%s at %s)", i.ID, i.Profile, i.Placement)
	destroy := fmt.Sprintf("nvidia-smi mig -i %s -gi %d -dci; nvidia-smi mig -i %s -gi %d -dgi", g.UUID, i.ID, g.UUID, i.ID)
	r := f.recordOf(i)
	switch {
	case r == nil && len(i.Compute) == 0:
		return warn(about, fmt.Sprintf("whoever made it gives it one (nvidia-smi mig -i %s -gi %d -cci) or destroys it (nvidia-smi mig -i %s -gi %d -dgi)", g.UUID, i.ID, g.UUID, i.ID),
			"%s has no compute instance and no record: kerf did not make it, nobody can use it, and its slices are lost to claims", what), true
	case r == nil && !i.Usable():
		return warn(about, "whoever made it destroys it: "+destroy, "%s is split into %d compute instances and has no record: kerf did not make it and cannot give it to anybody", what, len(i.Compute)), true
	case r == nil:
		return warn(about, "none is needed; if nobody else needs it, whoever made it destroys it: "+destroy,
			"%s is foreign: kerf did not make it, offers it as it is, and offers only what leaves it alone beside it", what), true
	case r.Identified && r.Instance.ID != i.ID:
		return fail(about, "delete the pod and the claim that had it, if there are any; "+recovery, "%s is in the place of GPU instance %d, which has the record: somebody destroyed that one", what, r.Instance.ID), true
	case r.Claim != "" && f.claimRecord(r.Claim) == nil && !f.corruptClaim(r.Claim):
		return fail(about, recovery, "%s is an orphan: it was made for claim %s, which has no record", what, r.Claim), true
	case len(i.Compute) == 0 && f.settled(r):
		return fail(about, recovery, "%s has no compute instance: a creation or a destruction of kerf's was cut off", what), true
	}
	return Finding{}, false
}

// settled reports whether no call can be at work on a record's instance: the record of its claim is old, or it has none.
func (f *facts) settled(r *journal.Instance) bool {
	c := f.claimRecord(r.Claim)
	return c == nil || f.at.Sub(f.records.Written[c.UID]) > underWay || c.State == journal.ClaimPrepared
}

// corruptClaim reports whether the claim's record is there and does not parse: then that is what is wrong.
func (f *facts) corruptClaim(uid string) bool {
	return slices.ContainsFunc(f.records.Corrupt, func(c *journal.CorruptError) bool { return c.Names(uid) })
}

// checkClaims compares the records of claims with the hardware and with one another.
func checkClaims(f *facts) (string, []Finding) {
	if f.noRecords != nil {
		return "", nil
	}
	var faults []Finding
	for n, c := range f.records.Claims {
		faults = append(faults, f.claimFaults(c)...)
		for _, o := range f.records.Claims[:n] {
			if a, b, collide := f.collide(c, o); collide {
				faults = append(faults, fail(c.Namespace+"/"+c.Name, "delete the younger pod and its claim, and report it as a bug",
					"its device %s and device %s of claim %s/%s cannot be in use at once", a, b, o.Namespace, o.Name))
			}
		}
	}
	return fmt.Sprintf("%s as recorded", plural(len(f.records.Claims), "claim")), faults
}

func (f *facts) collide(c, o *journal.Claim) (string, string, bool) {
	for _, a := range c.Devices {
		g, _ := f.board(a.Device.GPU)
		for _, b := range o.Devices {
			if !a.AdminAccess && !b.AdminAccess && g.Collide(a.Device, b.Device) {
				return a.Name, b.Name, true
			}
		}
	}
	return "", "", false
}

func (f *facts) claimFaults(c *journal.Claim) []Finding {
	about := c.Namespace + "/" + c.Name
	age := f.at.Sub(f.records.Written[c.UID]).Truncate(time.Second)
	switch {
	case c.State == journal.ClaimLost:
		return []Finding{fail(about, "delete its pod and the claim, so that another is allocated", "an instance of it vanished while it was in use")}
	case c.Blocked != "":
		return []Finding{warn(about, "end who holds it; the plugin then finishes within a minute", "it has ended, and somebody keeps its devices: %s", c.Blocked)}
	case c.State != journal.ClaimPrepared && age > underWay:
		return []Finding{warn(about, recovery, "it has been in the state %q for %s", c.State, age)}
	case c.State != journal.ClaimPrepared:
		return nil
	}
	var faults []Finding
	for _, d := range c.Devices {
		g, seen := f.board(d.Device.GPU)
		if !seen || f.readError(g.UUID) != nil {
			continue // That the board is not there is reported once.
		}
		switch found, there := g.InstanceAt(d.Device.Profile, d.Device.Placement); {
		case d.Instance == nil && d.Device.Type != gpu.TypeMIG && g.MIG.Current && !d.AdminAccess:
			faults = append(faults, fail(about, "delete its pod and the claim; find out who changed the mode", "it has %s, and somebody turned MIG on: no program can use it whole", d.Name))
		case d.Instance == nil:
		case !there:
			faults = append(faults, fail(about, "delete its pod and the claim, so that another is allocated; find out who destroyed it", "the instance of %s is not there", d.Name))
		case !found.Same(*d.Instance):
			faults = append(faults, fail(about, "delete its pod and the claim, so that another is allocated; find out who destroyed it",
				"the instance of %s is another one now: GPU instance %d with %s, recorded is %d with %s", d.Name, found.ID, plural(len(found.Compute), "compute instance"), d.Instance.ID, plural(len(d.Instance.Compute), "compute instance")))
		}
	}
	return faults
}

// checkSpecs compares the CDI specs with the records and the hardware.
func checkSpecs(f *facts) (string, []Finding) {
	if f.noSpecs != nil {
		return "", []Finding{fail("", "run this as root, with the plugin's --cdi-root", "%v", f.noSpecs)}
	}
	var faults []Finding
	for _, c := range f.records.Claims {
		if c.State == journal.ClaimPrepared && !slices.ContainsFunc(f.specs, func(s cdispec.File) bool { return s.ClaimUID == c.UID }) {
			faults = append(faults, fail(c.Namespace+"/"+c.Name, recovery, "it is prepared and has no CDI spec in %s: no further container of it can start", f.CDIRoot))
		}
	}
	for _, s := range f.specs {
		c := f.claimRecord(s.ClaimUID)
		remove := fmt.Sprintf("rm %s; %s", s.Path, recovery)
		switch {
		case s.Err != nil:
			faults = append(faults, fail(s.Path, remove, "it does not parse: %v", s.Err))
		case c == nil && f.noRecords == nil && !f.corruptClaim(s.ClaimUID):
			faults = append(faults, warn(s.Path, recovery, "no claim with a record has it"))
		case c == nil || c.State != journal.ClaimPrepared:
		default:
			for _, d := range c.Devices {
				if text, bad := f.specFault(s, d); bad {
					faults = append(faults, fail(c.Namespace+"/"+c.Name, remove, "its CDI spec: %s", text))
				}
			}
		}
	}
	return fmt.Sprintf("%s in %s", plural(len(f.specs), "spec"), f.CDIRoot), faults
}

// specFault compares the nodes that a spec gives for a device with those that the device has.
func (f *facts) specFault(s cdispec.File, d journal.ClaimDevice) (string, bool) {
	g, seen := f.board(d.Device.GPU)
	if !seen || f.readError(g.UUID) != nil || d.AdminAccess {
		return "", false
	}
	given, ok := s.Nodes[d.Name]
	if !ok {
		return "device " + d.Name + " is not in it", true
	}
	want, err := f.host.Nodes(cdispec.Device{Name: d.Name, Request: d.Request, GPU: g, Device: d.Device, Instance: d.Instance})
	if err != nil {
		return "", false // checkCapabilities reports it.
	}
	for _, n := range want {
		if !slices.ContainsFunc(given, func(o *specs.DeviceNode) bool { return o.Path == n.Path && o.Major == n.Major && o.Minor == n.Minor }) {
			return fmt.Sprintf("%s lacks the node %s (%d:%d)", d.Name, n.Path, n.Major, n.Minor), true
		}
	}
	return "", false
}
