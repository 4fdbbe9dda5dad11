package diagnose

import (
	"fmt"
	"slices"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// Kubernetes versions. What kerf publishes is understood from the first on; it is developed and tested with the second.
var (
	oldestServer = version.MajorMinor(1, 36)
	testedServer = version.MajorMinor(1, 37)
)

// skew is by how many minor versions a kubelet may be older than its server (Kubernetes' version skew policy).
const skew = 3

// checkAPIClaims compares the records of claims with the claims of the API.
func checkAPIClaims(f *facts) (string, []Finding) {
	if !f.api.asked {
		return "", nil
	}
	var faults []Finding
	for _, r := range f.records.Claims {
		about := r.Namespace + "/" + r.Name
		known, ok := f.api.claims[r.UID]
		switch {
		case !ok || known.Status.Allocation == nil:
			what := "the API has no such claim"
			if ok {
				what = "the API has not allocated it"
			}
			faults = append(faults, warn(about, "the plugin releases it once no pod and no process of the node has had it for a minute; where none runs: kubectl get pods, then kerf cleanup", "it has a record, and %s", what))
		case r.State == journal.ClaimPrepared && !f.agree(r, known):
			faults = append(faults, fail(about, "delete its pod and the claim", "it is recorded with other devices than it is allocated: %s", list(f.results(known), func(d resourceapi.DeviceRequestAllocationResult) string { return d.Device })))
		}
	}
	faults = append(faults, f.blockedAllocations()...)
	return fmt.Sprintf("%s with devices of this node", plural(len(f.claims), "claim")), faults
}

// agree reports whether a record has the devices of the allocation.
func (f *facts) agree(r *journal.Claim, c resourceapi.ResourceClaim) bool {
	results := f.results(c)
	if len(results) != len(r.Devices) {
		return false
	}
	for _, d := range r.Devices {
		if !slices.ContainsFunc(results, func(o resourceapi.DeviceRequestAllocationResult) bool {
			return o.Device == d.Name && o.Request == d.Request
		}) {
			return false
		}
	}
	return true
}

// blockedAllocations are the claims that are allocated what a foreign instance is in the way of.
func (f *facts) blockedAllocations() []Finding {
	var faults []Finding
	catalogue := gpu.Catalogue(f.node.GPUs)
	for _, c := range f.claims {
		if c.Record != "" {
			continue
		}
		for _, name := range c.Devices {
			d, ok := catalogue[name]
			if !ok {
				continue
			}
			g, _ := f.board(d.GPU)
			for _, i := range g.Instances {
				if f.recordOf(i) == nil && g.Collide(d, i.Device()) && i.Device() != d {
					faults = append(faults, fail(c.Namespace+"/"+c.Name, "destroy that instance, or delete the pod and the claim, so that another is allocated",
						"it is allocated %s, and foreign GPU instance %d (%s at %s) is in the way", name, i.ID, i.Profile, i.Placement))
				}
			}
		}
	}
	return faults
}

// checkPool looks at what the API has of the node's pool.
func checkPool(f *facts) (string, []Finding) {
	if !f.api.asked {
		return "", nil
	}
	newest, devices, counters := resourceapi.ResourcePool{}, map[string]bool{}, false
	for _, s := range f.api.slices {
		if s.Spec.Pool.Generation >= newest.Generation {
			newest = s.Spec.Pool
		}
	}
	count := 0
	for _, s := range f.api.slices {
		if s.Spec.Pool.Generation != newest.Generation {
			continue
		}
		count++
		counters = counters || len(s.Spec.SharedCounters) > 0
		for _, d := range s.Spec.Devices {
			devices[d.Name] = true
		}
	}
	logs := "look at the plugin's log: kubectl logs -n NAMESPACE daemonset/kerf-plugin"
	switch {
	case len(f.api.slices) == 0:
		return "", []Finding{fail("", "start the plugin on this node; "+logs, "the API has no ResourceSlice of driver %s for node %s: no claim can be allocated here", f.Driver, f.NodeName)}
	case int64(count) != newest.ResourceSliceCount:
		return "", []Finding{fail("", logs, "the pool is incomplete, so the scheduler takes nothing of it: %d of %d slices of generation %d are there", count, newest.ResourceSliceCount, newest.Generation)}
	case !counters && len(f.node.GPUs) > 0:
		return "", []Finding{fail("", "turn the feature gate DRAPartitionableDevices on in the API server and the scheduler", "the slices have no counters: the API server drops them, and the scheduler would give slices of a GPU twice")}
	}
	var faults []Finding
	for _, c := range f.records.Claims {
		for _, d := range c.Devices {
			if !devices[d.Name] {
				faults = append(faults, fail(c.Namespace+"/"+c.Name, logs, "its device %s is in use and not published: the scheduler could give its slices away again", d.Name))
			}
		}
	}
	return fmt.Sprintf("%s in %s, complete", plural(len(devices), "device"), plural(count, "slice")), faults
}

// checkVersions looks at the versions of the API server and the kubelet.
func checkVersions(f *facts) (string, []Finding) {
	if f.api.server == nil {
		return "", nil
	}
	server, err := version.ParseGeneric(f.api.server.GitVersion)
	if err != nil {
		return "", []Finding{warn("", "look at kubectl version", "the version of the API server is not known: %v", err)}
	}
	seen := "API server " + f.api.server.GitVersion
	var faults []Finding
	if server.LessThan(oldestServer) {
		faults = append(faults, fail("", "update the control plane", "the API server is %s, and partitionable devices, which kerf publishes, are there from %s on", f.api.server.GitVersion, oldestServer))
	} else if server.Minor() > testedServer.Minor()+1 {
		faults = append(faults, warn("", "look for a newer kerf", "the API server is %s, and this kerf was tested with %s", f.api.server.GitVersion, testedServer))
	}
	if f.api.node == nil {
		return seen, faults
	}
	info := f.api.node.Status.NodeInfo
	kubelet, err := version.ParseGeneric(info.KubeletVersion)
	if err != nil {
		return seen, faults // A kubelet that has not reported yet.
	}
	switch {
	case kubelet.LessThan(version.MajorMinor(1, 34)):
		faults = append(faults, fail("", "update the node", "the kubelet is %s, and does not know resource.k8s.io/v1, which kerf speaks", info.KubeletVersion))
	case kubelet.Minor() > server.Minor():
		faults = append(faults, warn("", "update the control plane first", "the kubelet (%s) is newer than the API server (%s), which Kubernetes does not support", info.KubeletVersion, f.api.server.GitVersion))
	case kubelet.Minor()+skew < server.Minor():
		faults = append(faults, warn("", "update the node", "the kubelet (%s) is more than %d minor versions older than the API server (%s)", info.KubeletVersion, skew, f.api.server.GitVersion))
	}
	return seen + ", kubelet " + info.KubeletVersion, faults
}
