package plugin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

const (
	// reloadSettle is how long after an instance was made the exporter is told: DCGM
	// has to hear of it from the driver first, and instances come in numbers.
	reloadSettle = 5 * time.Second
	// reloadEvery is how often it is told at most. With each reload it starts watching anew.
	reloadEvery = time.Minute
	// exporterCommand is the name of its process.
	exporterCommand = "dcgm-exporter"
)

// Reload has DCGM's exporter look for MIG instances again after kerf has made
// some: it lists those that were there when it started or was last told to.
type Reload struct {
	instances func() ([]*journal.Instance, error)
	tell      func() (int, error)
	wake      chan struct{}
}

// NewReload makes a reload of the exporters that tell reaches. See TellExporters.
func NewReload(records Records, tell func() (int, error)) *Reload {
	return &Reload{instances: records.Instances, tell: tell, wake: make(chan struct{}, 1)}
}

// Changed says that a claim was prepared or released. It does not wait.
func (r *Reload) Changed() {
	select {
	case r.wake <- struct{}{}:
	default: // Somebody has said so already.
	}
}

// Run tells the exporters until the context ends, at most once a minute. What an
// earlier process made may be news to them as well, so it begins with that.
func (r *Reload) Run(ctx context.Context) {
	logger := klog.FromContext(ctx)
	known := map[instanceID]bool{}
	var due <-chan time.Time
	var last time.Time
	r.Changed()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
			now, err := r.identified()
			if err != nil {
				logger.Error(err, "Whether instances were made is not known, and DCGM's exporter is not told")
				continue
			}
			if due == nil && anyNew(now, known) {
				due = time.After(max(reloadSettle, reloadEvery-time.Since(last)))
			}
			known = now
		case <-due:
			due, last = nil, time.Now()
			told, err := r.tell()
			if err != nil {
				logger.Error(err, "DCGM's exporter could not be told of new instances")
			}
			logger.V(1).Info("DCGM's exporter was told of new instances", "processes", told)
		}
	}
}

// instanceID is what the exporter could tell instances by.
type instanceID struct {
	gpu, profile string
	placement    gpu.Placement
	id           int
}

func (r *Reload) identified() (map[instanceID]bool, error) {
	all, err := r.instances()
	found := map[instanceID]bool{}
	for _, i := range all {
		if i.Identified {
			found[instanceID{i.Instance.GPU, i.Instance.Profile, i.Instance.Placement, i.Instance.ID}] = true
		}
	}
	return found, tolerated(err)
}

func anyNew(now, known map[instanceID]bool) bool {
	for i := range now {
		if !known[i] {
			return true
		}
	}
	return false
}

// TellExporters sends SIGHUP, on which it reloads, to each process below proc
// that bears the exporter's name, and returns how many there were. It needs the
// host's pid namespace.
func TellExporters(proc string) (told int, err error) {
	commands, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "comm"))
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, path := range commands {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil || !isExporter(path) {
			continue
		}
		process, err := os.FindProcess(pid)
		if err != nil {
			continue // It has ended.
		}
		// Now that the process is held, its pid is nobody else's: is it still the exporter's?
		if isExporter(path) {
			err = process.Signal(syscall.SIGHUP)
			if err == nil {
				told++
			} else if !errors.Is(err, os.ErrProcessDone) {
				errs = append(errs, fmt.Errorf("tell %s, process %d, to reload: %w", exporterCommand, pid, err))
			}
		}
		errs = append(errs, process.Release())
	}
	return told, errors.Join(errs...)
}

func isExporter(comm string) bool {
	name, err := os.ReadFile(comm)
	return err == nil && string(bytes.TrimSpace(name)) == exporterCommand
}
