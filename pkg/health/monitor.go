// Package health decides what is wrong with a node's GPUs, since when, why, and
// when it is over: events and probes of the boards in, conditions out.
//
// It owns the conditions and the file that keeps them over restarts. It changes
// no board and publishes nothing: whoever does asks for the conditions. A
// problem counts at once; that it is over counts every few seconds only, and only
// for what stays over, so that a board that comes and goes is no news each time.
package health

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// ClearAnnotation is the annotation of a node with which an operator clears what
// has happened on its GPUs up to a time, in RFC 3339: on all of them, or with
// <GPU UUID>@<time> on one. What happens later counts again, so it may stay.
const ClearAnnotation = "gpu.kerf.dev/clear-health"

const (
	defaultInterval = 5 * time.Second
	// callTimeout bounds the questions to the boards and to the operator.
	callTimeout = 5 * time.Second
)

// Hardware is what reports of the boards. See package nvml.
type Hardware interface {
	Watch(ctx context.Context, heard func(gpu.Event))
	Health(ctx context.Context) ([]gpu.Health, error)
	GPU(ctx context.Context, uuid string) (gpu.GPU, error)
}

// Operator tells the value of the node's ClearAnnotation, empty where there is none.
type Operator func(ctx context.Context) (string, error)

// Publisher publishes the conditions. Wake asks it to; Publishing reports whether
// this is the process of the node that does.
type Publisher interface {
	Publishing() bool
	Wake()
}

// Report is told of a condition that has begun or, if cleared, is over. Of several
// processes of a node, only the one that publishes reports.
type Report func(c gpu.Condition, cleared bool)

// Monitor watches a node's GPUs.
type Monitor struct {
	hardware Hardware
	operator Operator
	stateDir string
	boot     string
	// interval is how often boards are probed. What is over is cleared no more often,
	// and all of it at once.
	interval time.Duration
	// soon asks for a probe before its time.
	soon chan struct{}

	mu      sync.Mutex
	tracker *tracker
	// onDisk is what was read or saved last.
	onDisk saved
	// leading is true in the process of the node that saves and reports.
	leading bool
	// unclear is the last error of what the operator asks for, so that it is reported once.
	unclear string
}

// New makes the monitor of a node, which knows at once what an earlier process
// knew. stateDir outlives a reboot; below hostRoot is the host's /proc.
func New(ctx context.Context, hardware Hardware, operator Operator, config configv1alpha1.Health, stateDir, hostRoot string) *Monitor {
	m := &Monitor{
		hardware: hardware, operator: operator, stateDir: stateDir, interval: defaultInterval,
		soon: make(chan struct{}, 1), tracker: newTracker(newPolicy(config)),
	}
	// Where it can't be read, no reboot is noticed: a condition may then stay, and never goes too early.
	if id, err := os.ReadFile(filepath.Join(hostRoot, "proc/sys/kernel/random/boot_id")); err == nil {
		m.boot = strings.TrimSpace(string(id))
	}
	var err error
	if m.onDisk, err = load(stateDir); err != nil {
		klog.FromContext(ctx).Error(err, "The conditions of the GPUs are lost; what the boards still tell is found again")
	}
	m.tracker.restore(time.Now(), m.onDisk.Problems, m.onDisk.Boot == m.boot || m.onDisk.Boot == "" || m.boot == "")
	return m
}

// Conditions are what is wrong now.
func (m *Monitor) Conditions() []gpu.Condition {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tracker.conditions()
}

// Concerns reports whether something is wrong with a device now.
func (m *Monitor) Concerns(d gpu.Device) bool {
	return slices.ContainsFunc(m.Conditions(), func(c gpu.Condition) bool { return c.Concerns(d) })
}

// Run watches until the context ends.
func (m *Monitor) Run(ctx context.Context, publisher Publisher, report Report) {
	update := func(change func(*tracker, time.Time)) { m.update(ctx, publisher, report, change) }
	var listening sync.WaitGroup
	defer listening.Wait()
	listening.Go(func() { m.hardware.Watch(ctx, func(e gpu.Event) { m.heard(ctx, e, update) }) })
	ticker := time.NewTicker(m.interval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		m.probe(ctx, update)
		select {
		case <-ctx.Done():
		case <-m.soon:
		case <-ticker.C:
			m.review(ctx, update)
		}
	}
}

func (m *Monitor) heard(ctx context.Context, e gpu.Event, update func(func(*tracker, time.Time))) {
	if e.Xid != 0 {
		if m.tracker.policy.effect(e.Xid, false) == gpu.EffectNone {
			return
		}
		var board *gpu.GPU
		if e.GPUInstance != gpu.Whole || e.Xid == xidNVLink {
			reading, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			// If it can't be read, it is the whole board that is not well.
			if g, err := m.hardware.GPU(reading, e.GPU); err == nil {
				board = &g
			}
		}
		klog.FromContext(ctx).Info("A GPU has reported an Xid", "xid", e.Xid, "gpu", e.GPU, "gpuInstance", e.GPUInstance, "computeInstance", e.ComputeInstance)
		update(func(t *tracker, now time.Time) { t.heard(now, e, board) })
	}
	// It may have left other traces, or be the only sign that a board is lost.
	select {
	case m.soon <- struct{}{}:
	default:
	}
}

func (m *Monitor) probe(ctx context.Context, update func(func(*tracker, time.Time))) {
	probing, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	boards, err := m.hardware.Health(probing)
	var unread gpu.ReadErrors
	if err != nil && !errors.As(err, &unread) {
		klog.FromContext(ctx).Error(err, "The GPUs could not be probed")
		return
	}
	update(func(t *tracker, now time.Time) { t.probed(now, boards, unread) })
}

// review ends what is over.
func (m *Monitor) review(ctx context.Context, update func(func(*tracker, time.Time))) {
	request, err := "", error(nil)
	if len(m.Conditions()) > 0 {
		asking, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		request, err = m.operator(asking)
	}
	update(func(t *tracker, now time.Time) {
		if !m.leading {
			m.follow(now)
		}
		err = errors.Join(err, t.clear(now, request))
		t.expire(now)
	})
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != m.unclear {
		klog.FromContext(ctx).Error(err, "What an operator wants cleared is not known")
	}
	m.unclear = text
}

// update makes a change, and has it saved, reported and published.
func (m *Monitor) update(ctx context.Context, publisher Publisher, report Report, change func(*tracker, time.Time)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, before := time.Now(), m.tracker.conditions()
	if publisher.Publishing() && !m.leading {
		m.follow(now)
		m.leading = true
	}
	change(m.tracker, now)
	after := m.tracker.conditions()
	if !reflect.DeepEqual(before, after) {
		publisher.Wake()
	}
	if !m.leading {
		return
	}
	for _, c := range without(after, before) {
		report(c, false)
	}
	for _, c := range without(before, after) {
		report(c, true)
	}
	if slices.Equal(m.tracker.problems, m.onDisk.Problems) {
		return
	}
	next := saved{Boot: m.boot, At: now.UTC(), Problems: slices.Clone(m.tracker.problems)}
	if err := next.save(m.stateDir); err != nil {
		klog.FromContext(ctx).Error(err, "The conditions of the GPUs could not be saved; it is tried again")
		return
	}
	m.onDisk = next
}

// follow takes over what another process of the node has saved since.
func (m *Monitor) follow(now time.Time) {
	// What can't be read is reported at the start, and put right by who saves next.
	if other, err := load(m.stateDir); err == nil && !other.At.Equal(m.onDisk.At) {
		m.tracker.follow(now, other.Problems, other.At)
		m.onDisk = other
	}
}

// without are the conditions of some that are not among others.
func without(some, others []gpu.Condition) []gpu.Condition {
	return slices.DeleteFunc(slices.Clone(some), func(c gpu.Condition) bool {
		return slices.ContainsFunc(others, func(o gpu.Condition) bool { return o.Device == c.Device && o.Reason == c.Reason })
	})
}
