// Package cdispec writes the CDI spec of a claim: what a container gets of the
// node when it is given the claim's devices.
//
// One spec file holds all devices of one claim. Its common edits, which are the
// same for every claim, hold the driver's files and control nodes; the edits of
// a device hold the nodes of its GPU or MIG instance and one environment
// variable that tells its UUID:
//
//	KERF_<REQUEST>_<DEVICE>_UUID=GPU-… or MIG-…
//
// REQUEST and DEVICE are the names of the claim's request and of the published
// device in upper case, with "_" for all that is no letter or digit, so several
// devices in one container do not overwrite one another.
//
// The package owns the files of its CDI kind. It asks nvcdi, which calls NVML
// itself, for the common edits and for whole GPUs; those of a MIG instance it
// builds from values that the caller has verified on the hardware. It creates
// and changes nothing but spec files.
package cdispec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"golang.org/x/sync/singleflight"
	"k8s.io/klog/v2"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	"tags.cncf.io/container-device-interface/specs-go"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// noteAnnotation is the key under which a spec file keeps its note.
const noteAnnotation = "gpu.kerf.dev/claim"

// The CDI kind of all devices is Vendor/Class.
const (
	Vendor = "kerf.dev"
	Class  = "claim"
)

const (
	extension = ".json"
	// leftoverAge is how old an unfinished file must be to belong to a writer
	// that was killed. A write takes less than a millisecond; other programs
	// write to the directory too, with the same names.
	leftoverAge = time.Minute
)

// Options say where things are. All paths but HookPath and HostDriverRoot are as
// this process sees them.
type Options struct {
	// Lib is asked for the driver's version and the nodes of whole GPUs.
	Lib nvml.Interface
	// CDIRoot is the directory of the spec files, "/var/run/cdi" on most nodes.
	CDIRoot string
	// HostRoot is where the host's /proc and /dev are seen. Empty is "/".
	HostRoot string
	// DriverRoot is where the driver's libraries and programs are seen. Empty is "/".
	DriverRoot string
	// HostDriverRoot is the same directory as the host names it, for the mounts. Empty is "/".
	HostDriverRoot string
	// HookPath is nvidia-cdi-hook as the host names it. Empty leaves all hooks
	// out: containers then have to find the driver's libraries by themselves.
	HookPath string
	// DisabledHooks are hooks of nvidia-cdi-hook to leave out, by name.
	DisabledHooks []string
	// ExtraMounts are added to the common edits, host paths as the host names them.
	ExtraMounts []specs.Mount
	// Logger hears, at high verbosity, what the toolkit library looks for and finds.
	Logger klog.Logger
}

// Device is one device of a claim.
type Device struct {
	// Name is the published name of the device.
	Name string
	// Request is the name of the claim's request that it was allocated for.
	Request string
	// GPU is the board as it was last read: UUID, PCIBusID and Minor count.
	GPU gpu.GPU
	// Device is what was allocated.
	Device gpu.Device
	// Instance is, for a MIG device, its instance as it was verified on the hardware.
	Instance *gpu.Instance
}

// Writer writes and removes the spec files of claims. Its methods may be called
// from many goroutines, though for one claim only by one at a time.
type Writer struct {
	options Options
	files   *cdi.Cache
	host    hostFiles

	// What does not depend on the claim is made once and kept until Invalidate.
	making singleflight.Group
	mu     sync.Mutex
	epoch  int
	made   map[string]specs.ContainerEdits
}

// New makes a writer. It writes nothing.
func New(o Options) (*Writer, error) {
	if o.Lib == nil || o.CDIRoot == "" {
		return nil, errors.New("a CDI spec writer needs an NVML library and a directory")
	}
	for _, root := range []*string{&o.HostRoot, &o.DriverRoot, &o.HostDriverRoot} {
		*root = filepath.Join("/", *root)
	}
	files, err := cdi.NewCache(cdi.WithSpecDirs(o.CDIRoot), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("open the CDI directory %s: %w", o.CDIRoot, err)
	}
	return &Writer{options: o, files: files, host: hostFiles{root: o.HostRoot}, made: map[string]specs.ContainerEdits{}}, nil
}

// IDs are the fully qualified CDI device ids by device name, as Write returns
// them. They depend on names alone.
func (w *Writer) IDs(claimUID string, devices []Device) map[string]string {
	ids := make(map[string]string, len(devices))
	for _, d := range devices {
		ids[d.Name] = parser.QualifiedName(Vendor, Class, deviceName(claimUID, d.Name))
	}
	return ids
}

// deviceName bears the claim's UID because a name that is in two files resolves to neither.
func deviceName(claimUID, device string) string { return claimUID + "-" + device }

// Write writes or replaces the spec file of a claim, all at once, and returns the
// CDI ids. The devices must have been verified on the hardware just before. The
// note is kept in the file for Note. Write waits for the driver no longer than ctx
// allows.
func (w *Writer) Write(ctx context.Context, claimUID, note string, devices []Device) (map[string]string, error) {
	spec, err := w.spec(ctx, claimUID, devices)
	if err == nil {
		if note != "" {
			spec.Annotations = map[string]string{noteAnnotation: note}
		}
		// As old a version as will do, for the sake of old runtimes.
		spec.Version, err = specs.MinimumRequiredVersion(spec)
	}
	if err != nil {
		return nil, fmt.Errorf("CDI spec of claim %s: %w", claimUID, err)
	}
	if err := w.removeLeftovers(); err != nil {
		return nil, fmt.Errorf("CDI spec of claim %s: %w", claimUID, err)
	}
	if err := w.files.WriteSpec(spec, fileName(claimUID)); err != nil {
		return nil, fmt.Errorf("CDI spec of claim %s: %w", claimUID, err)
	}
	// The library leaves it to root alone. It holds no secrets, and runtimes and people without root read such files.
	if err := os.Chmod(w.path(claimUID), 0o644); err != nil {
		return nil, fmt.Errorf("CDI spec of claim %s: %w", claimUID, err)
	}
	return w.IDs(claimUID, devices), nil
}

func (w *Writer) spec(ctx context.Context, claimUID string, devices []Device) (*specs.Spec, error) {
	common, err := w.common(ctx)
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{Kind: Vendor + "/" + Class, ContainerEdits: common}
	at := map[string]int{}
	for _, d := range devices {
		// Two requests can be given one device (admin access): it is one CDI device that tells both.
		if n, again := at[d.Name]; again {
			edits := &spec.Devices[n].ContainerEdits
			edits.Env = append(edits.Env, d.Variable())
			continue
		}
		edits, err := w.device(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Name, err)
		}
		at[d.Name] = len(spec.Devices)
		spec.Devices = append(spec.Devices, specs.Device{Name: deviceName(claimUID, d.Name), ContainerEdits: edits})
	}
	return spec, nil
}

// Note returns what Write was given to keep in the claim's spec file.
func (w *Writer) Note(claimUID string) (string, error) {
	spec, err := cdi.ReadSpec(w.path(claimUID), 0)
	if err != nil {
		return "", fmt.Errorf("CDI spec of claim %s: %w", claimUID, err)
	}
	return spec.Annotations[noteAnnotation], nil
}

// Remove removes the spec file of a claim. That there is none is no error.
func (w *Writer) Remove(claimUID string) error {
	if err := w.files.RemoveSpec(fileName(claimUID)); err != nil {
		return fmt.Errorf("remove the CDI spec of claim %s: %w", claimUID, err)
	}
	return nil
}

// Claims are the UIDs of the claims that have a spec file.
func (w *Writer) Claims() ([]string, error) { return claimsIn(w.options.CDIRoot) }

// Exists reports whether the claim has a spec file.
func (w *Writer) Exists(claimUID string) (bool, error) {
	_, err := os.Stat(w.path(claimUID))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("CDI spec of claim %s: %w", claimUID, err)
	}
	return true, nil
}

// Invalidate drops what is kept of the driver and the boards. To be called when
// the driver may have changed and after a change of a board's MIG mode. Files
// that were written stay as they are.
func (w *Writer) Invalidate() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.epoch++
	w.made = map[string]specs.ContainerEdits{}
	w.host.forget()
}

// once returns the edits of that key, made now or before. Who waits with a ctx
// that ends stops waiting; the making goes on, and only those who need that very
// key are concerned.
func (w *Writer) once(ctx context.Context, key string, make func() (specs.ContainerEdits, error)) (specs.ContainerEdits, error) {
	w.mu.Lock()
	edits, ok := w.made[key]
	epoch := w.epoch
	w.mu.Unlock()
	if ok {
		return edits, nil
	}
	result := w.making.DoChan(fmt.Sprintf("%d %s", epoch, key), func() (any, error) {
		edits, err := make()
		if err != nil {
			return specs.ContainerEdits{}, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.epoch == epoch {
			w.made[key] = edits
		}
		return edits, nil
	})
	select {
	case r := <-result:
		edits, _ := r.Val.(specs.ContainerEdits)
		return edits, r.Err
	case <-ctx.Done():
		return specs.ContainerEdits{}, fmt.Errorf("make %s: %w: %w", key, gpu.ErrDeadline, context.Cause(ctx))
	}
}

// removeLeftovers removes what writers that were killed have left: the library
// writes to a file of a temporary name and renames it.
func (w *Writer) removeLeftovers() error {
	left, err := filepath.Glob(filepath.Join(w.options.CDIRoot, "spec.*.tmp"))
	if err != nil {
		return err
	}
	for _, path := range left {
		info, err := os.Stat(path)
		if err != nil || time.Since(info.ModTime()) < leftoverAge {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (w *Writer) path(claimUID string) string {
	return filepath.Join(w.options.CDIRoot, fileName(claimUID))
}

func fileName(claimUID string) string {
	return cdi.GenerateTransientSpecName(Vendor, Class, claimUID) + extension
}

// Variable is the environment variable that tells a container the device's UUID.
func (d Device) Variable() string {
	uuid := d.GPU.UUID
	if d.Instance != nil && len(d.Instance.Compute) > 0 {
		uuid = d.Instance.Compute[0].UUID
	}
	return fmt.Sprintf("KERF_%s_%s_UUID=%s", variablePart(d.Request), variablePart(d.Name), uuid)
}

func variablePart(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		default:
			return '_'
		}
	}, name)
}
