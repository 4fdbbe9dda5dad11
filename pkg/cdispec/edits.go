package cdispec

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi/transform/root"
	"k8s.io/klog/v2"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// common are the edits that every container with a device needs: the driver's
// libraries and programs, the control nodes, the hooks. Among them is
// NVIDIA_VISIBLE_DEVICES=void, so that a legacy runtime that also sees the
// container adds nothing of its own.
func (w *Writer) common(ctx context.Context) (specs.ContainerEdits, error) {
	return w.once(ctx, "the common edits", func() (specs.ContainerEdits, error) {
		toolkit, err := w.toolkit(w.options.Lib)
		if err != nil {
			return specs.ContainerEdits{}, err
		}
		found, err := toolkit.GetCommonEdits()
		if err != nil {
			return specs.ContainerEdits{}, fmt.Errorf("look for the driver's files in %s: %w", w.options.DriverRoot, err)
		}
		control, err := w.host.control()
		if err != nil {
			return specs.ContainerEdits{}, err
		}
		edits, err := w.adopt(*found.ContainerEdits, control)
		if err != nil {
			return specs.ContainerEdits{}, err
		}
		for _, m := range w.options.ExtraMounts {
			edits.Mounts = append(edits.Mounts, &m)
		}
		return edits, nil
	})
}

// device are the edits of one device.
func (w *Writer) device(ctx context.Context, d Device) (specs.ContainerEdits, error) {
	var edits specs.ContainerEdits
	var err error
	if d.Device.Type == gpu.TypeMIG {
		edits.DeviceNodes, err = w.host.instanceNodes(d)
	} else {
		edits, err = w.whole(ctx, d.GPU)
	}
	// Clipped by the append: what is kept is shared by all claims.
	edits.Env = append(slices.Clip(edits.Env), d.Variable())
	return edits, err
}

// whole are the edits of a board, also for each of its replicas. What nvcdi adds
// to the node are the board's display nodes and the hook for memory limits.
func (w *Writer) whole(ctx context.Context, g gpu.GPU) (specs.ContainerEdits, error) {
	// With the minor in the key, a board whose minor has changed is looked at anew.
	return w.once(ctx, fmt.Sprintf("the edits of %s with minor %d", g.UUID, g.Minor), func() (specs.ContainerEdits, error) {
		toolkit, err := w.toolkit(byBusID{w.options.Lib, g})
		if err != nil {
			return specs.ContainerEdits{}, err
		}
		found, err := toolkit.GetDeviceSpecsByID(g.UUID)
		if err != nil {
			return specs.ContainerEdits{}, fmt.Errorf("look for the nodes of %s: %w", g.UUID, err)
		}
		node, err := w.host.gpuNode(g.Minor)
		if err != nil {
			return specs.ContainerEdits{}, err
		}
		var edits specs.ContainerEdits
		if len(found) > 0 {
			edits = found[0].ContainerEdits
		}
		return w.adopt(edits, []*specs.DeviceNode{node})
	})
}

// instanceNodes are the nodes of a MIG instance: the board's, and the two
// capabilities that admit to the GPU instance and to its compute instance.
//
// They are not left to nvcdi: it drops the capabilities silently where their
// nodes are not there yet, and a board's edits bear a hook (for memory limits)
// that would act on all of the board.
func (h *hostFiles) instanceNodes(d Device) ([]*specs.DeviceNode, error) {
	i := d.Instance
	if i == nil {
		return nil, fmt.Errorf("%s: no instance was verified for it", d.Device)
	}
	if i.GPU != d.GPU.UUID || i.GPU != d.Device.GPU || i.Profile != d.Device.Profile || i.Placement != d.Device.Placement {
		return nil, fmt.Errorf("%s: the instance verified for it is another: %s", d.Device, i)
	}
	if !i.Usable() {
		return nil, fmt.Errorf("%s: it has %d compute instances and can be used only with one that spans it", i, len(i.Compute))
	}
	node, err := h.gpuNode(d.GPU.Minor)
	if err != nil {
		return nil, err
	}
	nodes := []*specs.DeviceNode{node}
	instance := fmt.Sprintf("gpu%d/gi%d", d.GPU.Minor, i.ID)
	for _, capability := range []string{
		instance + "/access",
		fmt.Sprintf("%s/ci%d/access", instance, i.Compute[0].ID),
	} {
		node, err := h.capability(capability)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", i, err)
		}
		nodes = append(nodes, node)
	}
	return nodes, nil
}

func (w *Writer) toolkit(lib nvml.Interface) (nvcdi.Interface, error) {
	o := w.options
	options := []nvcdi.Option{
		nvcdi.WithLogger(toolkitLog{o.Logger}),
		nvcdi.WithMode(nvcdi.ModeNvml),
		nvcdi.WithNvmlLib(lib),
		nvcdi.WithDriverRoot(o.DriverRoot),
		nvcdi.WithDevRoot(o.HostRoot),
		nvcdi.WithNVIDIACDIHookPath(o.HookPath),
		// It would load another library of the driver into this process.
		nvcdi.WithFeatureFlags(nvcdi.FeatureDisableNvsandboxUtils),
		nvcdi.WithDisabledHooks(o.DisabledHooks...),
	}
	if o.HookPath == "" {
		options = append(options, nvcdi.WithDisabledHooks(nvcdi.AllHooks))
	}
	toolkit, err := nvcdi.New(options...)
	if err != nil {
		return nil, fmt.Errorf("NVIDIA container toolkit: %w", err)
	}
	return toolkit, nil
}

// byBusID is a library in which one board is found by its UUID at its place on
// the bus. NVML's own search asks one board after the other and fails at the
// first that is lost, though it is not the one that is looked for, and nvcdi
// knows a board by nothing but its UUID.
type byBusID struct {
	nvml.Interface
	board gpu.GPU
}

// DeviceGetHandleByUUID finds the board, and nothing else.
func (l byBusID) DeviceGetHandleByUUID(uuid string) (nvml.Device, nvml.Return) {
	if uuid != l.board.UUID {
		return nil, nvml.ERROR_NOT_FOUND
	}
	d, ret := l.DeviceGetHandleByPciBusId(l.board.PCIBusID)
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	switch found, ret := d.GetUUID(); {
	case ret != nvml.SUCCESS:
		return nil, ret
	case found != uuid:
		// Boards were swapped since it was read.
		return nil, nvml.ERROR_NOT_FOUND
	}
	return d, nvml.SUCCESS
}

// boardNode matches the node of some board.
var boardNode = regexp.MustCompile(`^/dev/nvidia[0-9]+$`)

// adopt turns what the toolkit found, as this process sees it, into what the
// host needs: paths of the host, and nodes that are whole in themselves, so that
// they need not exist when the container is made. The nodes given come first, and
// of boards there are no others.
func (w *Writer) adopt(found specs.ContainerEdits, nodes []*specs.DeviceNode) (specs.ContainerEdits, error) {
	o := w.options
	spec := &specs.Spec{ContainerEdits: found}
	if err := root.New(root.WithRoot(o.DriverRoot), root.WithTargetRoot(o.HostDriverRoot), root.WithRelativeTo("host")).Transform(spec); err != nil {
		return specs.ContainerEdits{}, err
	}
	// The links to display nodes that a hook makes are named as this process sees them.
	if err := root.New(root.WithRoot(o.HostRoot), root.WithTargetRoot("/"), root.WithRelativeTo("container")).Transform(spec); err != nil {
		return specs.ContainerEdits{}, err
	}
	edits := spec.ContainerEdits
	for _, h := range edits.Hooks {
		// Named by the host from the start; the first transformation does not know.
		h.Path = o.HookPath
	}
	for _, n := range edits.DeviceNodes {
		known := slices.ContainsFunc(nodes, func(k *specs.DeviceNode) bool { return k.Path == n.Path })
		// Without a major the node was not there to be looked at.
		if known || n.Major == 0 || boardNode.MatchString(n.Path) {
			continue
		}
		nodes = append(nodes, &specs.DeviceNode{Path: filepath.Clean(n.Path), Type: "c", Major: n.Major, Minor: n.Minor, FileMode: n.FileMode, GID: n.GID, Permissions: "rw"})
	}
	edits.DeviceNodes = nodes
	return edits, nil
}

// toolkitLog gives the toolkit's talk to the contextual logger. It warns of
// everything optional that a node lacks, so all of it is for debugging; what
// really fails comes back as an error.
type toolkitLog struct{ klog.Logger }

func (l toolkitLog) say(format string, args ...any) {
	if v := l.V(5); v.Enabled() {
		v.Info(fmt.Sprintf(format, args...))
	}
}

// These are the methods that the toolkit wants of a logger.
func (l toolkitLog) Tracef(string, ...any)               {}
func (l toolkitLog) Debugf(string, ...any)               {}
func (l toolkitLog) Infof(format string, args ...any)    { l.say(format, args...) }
func (l toolkitLog) Warningf(format string, args ...any) { l.say(format, args...) }
func (l toolkitLog) Errorf(format string, args ...any)   { l.say(format, args...) }
