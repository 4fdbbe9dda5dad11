package nvmlsim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"k8s.io/klog/v2"
)

// SMIProgram is the file name of the simulated nvidia-smi where it is shipped: beside the program that opens the node.
const SMIProgram = "kerf-sim-nvidia-smi"

// Option changes what Open does.
type Option func(*options)

type options struct {
	logger klog.Logger
	smi    string
	proc   string
	trace  func(op string, gpu int)
	sleep  func(time.Duration)
	now    func() time.Time
	// asItIs leaves the host tree alone.
	asItIs bool
}

func (o options) with(more []Option) options {
	for _, option := range more {
		option(&o)
	}
	return o
}

func defaults() options {
	return options{logger: klog.Background(), proc: "/proc/devices", sleep: time.Sleep, now: time.Now}
}

// WithLogger sets who hears of failures of the simulation itself.
func WithLogger(l klog.Logger) Option { return func(o *options) { o.logger = l } }

// WithSMI names the static nvidia-smi to put into the driver's root. Open fails
// if it is not there. Without this option the file SMIProgram beside the running
// program is taken, and where there is none, the driver has no nvidia-smi.
func WithSMI(path string) Option { return func(o *options) { o.smi = path } }

// WithTrace sets who is told of every call of this process that reaches the
// driver, before it is served, in the goroutine of the caller: the operation and
// the index of its board, -1 where it names none.
func WithTrace(trace func(op string, gpu int)) Option { return func(o *options) { o.trace = trace } }

// WithClock sets what the counters of busy time go by. The default is time.Now.
func WithClock(now func() time.Time) Option { return func(o *options) { o.now = now } }

// AsItIs leaves the host tree as it is found, for who only looks. Otherwise what
// a killed process has left of it is put right.
func AsItIs() Option { return func(o *options) { o.asItIs = true } }

// withSleep sets how time passes, for tests.
func withSleep(sleep func(time.Duration)) Option { return func(o *options) { o.sleep = sleep } }

// withProc sets where the majors that are taken are read from, for tests.
func withProc(path string) Option { return func(o *options) { o.proc = path } }

// Node is a simulated node as one process sees it.
type Node struct {
	kernel  *kernel
	session *session
	tree    *tree
}

// Open opens a simulated node. On first use of the state directory the boards
// are made; later the specification must name the same boards and seed.
func Open(spec Spec, opts ...Option) (*Node, error) {
	o := defaults().with(opts)
	if len(spec.Boards) == 0 || !filepath.IsAbs(spec.StateDir) {
		return nil, errors.New("a simulated node needs boards and an absolute state directory")
	}
	if err := os.MkdirAll(spec.StateDir, 0o755); err != nil {
		return nil, fmt.Errorf("make a simulated node: %w", err)
	}
	return open(spec.StateDir, &spec, o)
}

// OpenExisting opens the simulated node in a state directory as it is, for the
// outside world: it makes no boards and installs no program.
func OpenExisting(dir string, opts ...Option) (*Node, error) {
	o := defaults().with(opts)
	if _, err := os.Stat(filepath.Join(dir, "state.json")); err != nil {
		return nil, fmt.Errorf("no simulated node in %s: %w", dir, err)
	}
	return open(dir, nil, o)
}

func open(dir string, spec *Spec, o options) (*Node, error) {
	n := &Node{kernel: &kernel{dir: dir}, tree: &tree{root: filepath.Join(dir, "root"), driver: filepath.Join(dir, "driver")}}
	n.kernel.changed = n.tree.update
	e, err := newExperiment(n.kernel, spec, o)
	if err != nil {
		return nil, fmt.Errorf("open the simulated node in %s: %w", dir, err)
	}
	n.session = newSession(n.kernel, e, o)
	if o.asItIs {
		if _, err := n.kernel.view(); err != nil {
			return nil, fmt.Errorf("open the simulated node in %s: %w", dir, err)
		}
		return n, nil
	}
	err = n.kernel.locked(func() error {
		if spec != nil {
			if err := n.begin(*spec, o); err != nil {
				return err
			}
		}
		s, err := n.kernel.view()
		if err != nil {
			return err
		}
		if err := n.tree.build(s, o.proc); err != nil || spec == nil {
			return err
		}
		return n.tree.installSMI(o)
	})
	if err != nil {
		n.kernel.forget()
		return nil, fmt.Errorf("open the simulated node in %s: %w", dir, err)
	}
	return n, nil
}

// begin makes the boards, or makes sure that those which are there are meant.
func (n *Node) begin(spec Spec, o options) error {
	s, err := n.kernel.view()
	if errors.Is(err, fs.ErrNotExist) {
		m, err := freeMajors(o.proc)
		if err != nil {
			return err
		}
		_, err = n.kernel.save(newState(spec, m), nil)
		return err
	}
	if err != nil {
		return err
	}
	if got := s.models(); !slices.Equal(got, names(spec.Boards)) || s.Seed != spec.Seed {
		return fmt.Errorf("it holds %s with seed %q, not %s with seed %q: name those, take another state= directory, or remove this one to make new hardware",
			boardList(got), s.Seed, boardList(names(spec.Boards)), spec.Seed)
	}
	return nil
}

// Close ends this process' session. The node itself stays.
func (n *Node) Close() error {
	n.session.mu.Lock()
	defer n.session.mu.Unlock()
	n.session.end()
	n.kernel.reading.Lock()
	defer n.kernel.reading.Unlock()
	n.kernel.forget()
	return nil
}

// Interface is the NVML library of this process: all callers share its session, as with the real one.
func (n *Node) Interface() nvml.Interface { return n.session }

// HostRoot is the directory that stands for the root of the node's file system: its proc, dev and sys.
func (n *Node) HostRoot() string { return n.tree.root }

// DriverRoot is the directory that stands for the root of the driver's installation.
func (n *Node) DriverRoot() string { return n.tree.driver }
