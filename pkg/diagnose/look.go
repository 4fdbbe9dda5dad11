package diagnose

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/health"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/plugin"
)

// hardwareTimeout bounds the questions to the boards, apiTimeout each one to the
// API server, socketTimeout each to a process of the node.
const (
	hardwareTimeout = 20 * time.Second
	apiTimeout      = 5 * time.Second
	socketTimeout   = 2 * time.Second
)

// facts are what a look has seen. The checks and the picture are functions of them.
type facts struct {
	Sources
	at time.Time
	// host is what the host says of the driver's device nodes.
	host *cdispec.Host
	// noHardware is why no board was seen.
	noHardware error
	node       gpu.Node
	unread     gpu.ReadErrors
	vitals     map[string]gpu.Vitals
	// absent are the boards that were published last and are not among the node's, or cannot be told to be.
	absent []gpu.GPU
	names  gpu.Names
	// conditions are those that the plugin saved last.
	conditions   []gpu.Condition
	noConditions error
	records      journal.Contents
	noRecords    error
	specs        []cdispec.File
	noSpecs      error
	// holders have a board's device node open, by the board's UUID.
	holders map[string][]holder
	// programs are the processes of the node.
	programs      []program
	registrations []plugin.Registration
	// devicePlugins are the live sockets of NVIDIA's.
	devicePlugins []string
	// notReady is what the plugin says that it lacks.
	notReady    string
	api         api
	claims      []Claim
	notLookedAt []string
}

func look(ctx context.Context, s Sources) *facts {
	f := &facts{Sources: s, at: s.Now().UTC().Truncate(time.Second), host: cdispec.NewHost(s.HostRoot)}
	f.readState()
	// One after the other: the boards are held for as short as possible, and nothing else waits for anybody but the API server.
	f.lookAtHardware(ctx)
	f.nameBoards()
	var err error
	if f.programs, err = programsOf(s.NodeRoot); err != nil {
		f.skip("the processes of the node: %v (outside the host's pid namespace, or without root, they are not to be seen)", err)
	}
	f.registrations = plugin.Registrations(ctx, s.RegistryDir, s.NodeRoot)
	f.devicePlugins = devicePluginsIn(ctx, s.DevicePluginsDir)
	f.askReady(ctx)
	f.askAPI(ctx)
	f.joinClaims()
	return f
}

func (f *facts) skip(format string, args ...any) {
	f.notLookedAt = append(f.notLookedAt, fmt.Sprintf(format, args...))
}

// readState reads what the plugin has written.
func (f *facts) readState() {
	f.records, f.noRecords = journal.Inspect(f.RunDir)
	f.specs, f.noSpecs = cdispec.Read(f.CDIRoot)
	gpus, published, err := plugin.LastPublished(f.StateDir)
	saved, healthErr := health.Saved(f.StateDir)
	f.noConditions = errors.Join(err, healthErr)
	f.absent = gpus // Until the boards are seen.
	f.conditions = saved
	for _, c := range published {
		if !slices.ContainsFunc(saved, func(o gpu.Condition) bool { return o.Device == c.Device && o.Reason == c.Reason }) {
			f.conditions = append(f.conditions, c)
		}
	}
}

func (f *facts) lookAtHardware(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, hardwareTimeout)
	defer cancel()
	if f.noHardware = f.Hardware.Open(ctx); f.noHardware != nil {
		return
	}
	defer func() {
		if err := f.Hardware.Close(); err != nil {
			f.skip("how the session with the driver ended: %v", err)
		}
	}()
	var err error
	if f.node, err = f.Hardware.Node(ctx); err != nil && !errors.As(err, &f.unread) {
		f.noHardware = err
		return
	}
	// What a board does not tell here, it has not told above either.
	vitals, _ := f.Hardware.Vitals(ctx)
	f.vitals = map[string]gpu.Vitals{}
	for _, v := range vitals {
		f.vitals[v.GPU] = v
	}
	open, err := openDevices(f.HostRoot)
	if err != nil {
		f.skip("who has the GPUs open: %v", err)
	}
	f.holders = map[string][]holder{}
	for _, g := range f.node.GPUs {
		processes, _ := f.Hardware.Processes(ctx, g.UUID)
		f.holders[g.UUID] = withProcesses(open[g.Minor], processes)
	}
}

// nameBoards finds the boards that are not there any more, and names all.
func (f *facts) nameBoards() {
	f.absent = slices.DeleteFunc(f.absent, func(known gpu.GPU) bool {
		return slices.ContainsFunc(f.node.GPUs, func(g gpu.GPU) bool { return g.UUID == known.UUID })
	})
	var uuids []string
	for _, g := range slices.Concat(f.node.GPUs, f.absent) {
		uuids = append(uuids, g.UUID)
	}
	f.names = gpu.NewNames(uuids)
}

// about names a board for people.
func (f *facts) about(uuid string) string {
	if name := f.names.GPU(uuid); name != "" {
		return name
	}
	return uuid
}

// board finds a board that was seen.
func (f *facts) board(uuid string) (gpu.GPU, bool) {
	i := slices.IndexFunc(f.node.GPUs, func(g gpu.GPU) bool { return g.UUID == uuid })
	if i < 0 {
		return gpu.GPU{}, false
	}
	return f.node.GPUs[i], true
}

// readError is why a board could not be read, nil where it could.
func (f *facts) readError(uuid string) error {
	for _, e := range f.unread {
		if e.UUID == uuid {
			return e.Err
		}
	}
	return nil
}

// recordOf finds the record of an instance by its place; its ids may be others.
func (f *facts) recordOf(i gpu.Instance) *journal.Instance {
	for _, r := range f.records.Instances {
		if r.Instance.GPU == i.GPU && r.Instance.Profile == i.Profile && r.Instance.Placement == i.Placement {
			return r
		}
	}
	return nil
}

func (f *facts) claimRecord(uid string) *journal.Claim {
	for _, c := range f.records.Claims {
		if c.UID == uid {
			return c
		}
	}
	return nil
}

// users are the claims that have a device on a board, admin access aside.
func (f *facts) users(uuid string) []*journal.Claim {
	var all []*journal.Claim
	for _, c := range f.records.Claims {
		if slices.ContainsFunc(c.Devices, func(d journal.ClaimDevice) bool { return d.Device.GPU == uuid && !d.AdminAccess }) {
			all = append(all, c)
		}
	}
	return all
}

func (f *facts) describeNode() Node {
	n := Node{
		Name: f.NodeName, Simulated: f.Simulated, DriverVersion: f.node.DriverVersion, NVMLVersion: f.node.NVMLVersion,
	}
	if n.DriverVersion != "" {
		n.CUDAVersion = f.node.CUDADriverVersion.String()
	}
	if f.api.server != nil {
		n.Server = f.api.server.GitVersion
	}
	if f.api.node != nil {
		n.Kubelet, n.Runtime = f.api.node.Status.NodeInfo.KubeletVersion, f.api.node.Status.NodeInfo.ContainerRuntimeVersion
	}
	return n
}

// list joins words for people, no more than a few of them.
func list[T any](all []T, text func(T) string) string {
	const most = 4
	var words []string
	for i, v := range all {
		if i == most {
			words = append(words, fmt.Sprintf("and %d more", len(all)-most))
			break
		}
		words = append(words, text(v))
	}
	return strings.Join(words, ", ")
}
