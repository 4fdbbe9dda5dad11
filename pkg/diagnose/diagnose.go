// Package diagnose looks at a node and says what is on its GPUs, whether it is
// sound, and if not, why and what to do.
//
// It owns the picture of a node, the checks and the forms in which they are
// shown. It changes nothing: it takes no lock that a plugin waits for, moves no
// record, writes no file and no object, so it can look beside a plugin that
// works and after one that died. While it reads the boards it is one more client
// of the driver, for some milliseconds.
package diagnose

import (
	"context"
	"time"

	"k8s.io/client-go/kubernetes"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// Hardware is where the boards are seen. With a gpu.ReadErrors the answer is
// good for all boards that it does not name. See package nvml.
type Hardware interface {
	Open(ctx context.Context) error
	Close() error
	Node(ctx context.Context) (gpu.Node, error)
	Vitals(ctx context.Context) ([]gpu.Vitals, error)
	Processes(ctx context.Context, uuid string) ([]gpu.Process, error)
}

// Sources are where things are. All paths are as this process sees them.
type Sources struct {
	Hardware Hardware
	// Simulated says that the boards are.
	Simulated bool
	// Config is the node's configuration; nil has the defaults.
	Config *configv1alpha1.NodeConfiguration
	// HostRoot is where the driver's /proc and /dev are seen: of the host, or of a simulated one.
	HostRoot string
	// NodeRoot is where the node's own files and processes are seen: /etc, /proc, the kubelet's directory.
	NodeRoot string
	// RunDir has the journal, StateDir what outlives a reboot.
	RunDir, StateDir string
	CDIRoot          string
	// RegistryDir and DevicePluginsDir are the kubelet's directories of registration sockets and of device plugins.
	RegistryDir, DevicePluginsDir string
	// NodeName may be empty: then the API is not asked about the node.
	NodeName string
	// Driver is the name of the DRA driver.
	Driver string
	// Client is nil where there is no access to the API, and NoClient says why.
	Client   kubernetes.Interface
	NoClient string
	// Readyz is the URL at which the plugin tells its readiness; empty: it is not asked.
	Readyz string
	// Inferred are the rules of the simulator that no source states. With them, also with none of them, a self-check is made.
	Inferred []string
	// Version is that of this program.
	Version string
	Now     func() time.Time
}

// Run looks once. Whatever can't be looked at is in the report.
func Run(ctx context.Context, s Sources) *Report {
	f := look(ctx, s)
	r := &Report{
		Version: reportVersion, Kerf: s.Version, At: f.at, Status: OK, Node: f.describeNode(),
		Claims: f.claims, NotLookedAt: f.notLookedAt,
	}
	r.GPUs = f.picture()
	r.Checks = f.check()
	if s.Inferred != nil && f.noHardware == nil {
		r.SelfCheck = f.selfCheck()
	}
	for _, c := range r.Checks {
		r.Status = worse(r.Status, c.Status)
	}
	return r
}

func worse(a, b Status) Status {
	rank := map[Status]int{OK: 0, Warn: 1, Fail: 2}
	if rank[b] > rank[a] {
		return b
	}
	return a
}

// check runs all checks. Each says what it found good, or what it found bad.
func (f *facts) check() []Finding {
	var all []Finding
	for _, c := range checks {
		seen, faults := c.run(f)
		if len(faults) == 0 && seen != "" {
			faults = []Finding{{Status: OK, Cause: seen}}
		}
		for _, finding := range faults {
			finding.Check = c.name
			all = append(all, finding)
		}
	}
	return all
}

// checks are all of them, in the order in which they are shown. A check that has
// nothing to look at returns nothing.
var checks = []struct {
	name string
	run  func(*facts) (seen string, faults []Finding)
}{
	{"driver", checkDriver},
	{"gpus", checkGPUs},
	{"health", checkHealth},
	{"mig-mode", checkMIGMode},
	{"capabilities", checkCapabilities},
	{"records", checkRecords},
	{"instances", checkInstances},
	{"claims", checkClaims},
	{"cdi-specs", checkSpecs},
	{"api-claims", checkAPIClaims},
	{"api-pool", checkPool},
	{"kubelet", checkKubelet},
	{"runtime", checkRuntime},
	{"visible-devices", checkVisibleDevices},
	{"other-drivers", checkOtherDrivers},
	{"mode-agents", checkModeAgents},
	{"versions", checkVersions},
}
