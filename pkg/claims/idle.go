package claims

import (
	"context"
	"errors"
	"fmt"
	"slices"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// Policy is the node's configuration for boards of a product: which idle
// instances they keep, and which time slice their first user sets.
type Policy func(productName string) configv1alpha1.Policy

// idleOn are the records of the instances on a board that are nobody's, oldest
// first: idle ones, and those that a killed process was about to destroy.
func (e *Engine) idleOn(uuid string) ([]*journal.Instance, error) {
	all, err := readable(e.journal.InstancesOn(uuid))
	if err != nil {
		return nil, err
	}
	idle := slices.DeleteFunc(all, func(i *journal.Instance) bool { return i.Claim != "" })
	slices.SortFunc(idle, func(a, b *journal.Instance) int { return a.IdleSince.Compare(b.IdleSince) })
	return idle, nil
}

// keep makes an idle instance of the one that a claim gives back, and reports
// whether it did. An instance that is not exactly as it was prepared, that is not
// well, or that a process is still seen on, is not kept. The board's lock is held.
func (e *Engine) keep(ctx context.Context, record *journal.Instance, namespace string) (bool, error) {
	board, err := e.hardware.GPU(ctx, record.Instance.GPU)
	if err != nil {
		return false, err
	}
	bound := *e.policy(board.ProductName).IdleInstances.MaxPerGPU
	if bound == 0 || !e.clean(ctx, board, record) {
		return false, nil
	}
	idle, err := e.idleOn(board.UUID)
	if err != nil {
		return false, err
	}
	for _, old := range idle[:max(0, len(idle)+1-bound)] {
		if err := e.destroy(ctx, old); err != nil {
			return false, err
		}
	}
	record.State, record.Claim, record.Namespace, record.IdleSince = journal.InstanceIdle, "", namespace, e.now()
	return true, e.journal.PutInstance(record)
}

// Unwell reports whether something is wrong with a device, so that it is not kept
// for the next claim. See package health.
type Unwell func(gpu.Device) bool

// clean reports whether the hardware has the record's instance, whole, well and
// with no process to be seen on it. Where that cannot be told it is not clean.
func (e *Engine) clean(ctx context.Context, board gpu.GPU, record *journal.Instance) bool {
	found, ok := board.InstanceAt(record.Instance.Profile, record.Instance.Placement)
	if !ok || !found.Same(record.Instance) || !found.Usable() || e.unwell(found.Device()) {
		return false
	}
	processes, err := e.hardware.Processes(ctx, board.UUID)
	return err == nil && !slices.ContainsFunc(processes, func(p gpu.Process) bool { return p.GPUInstance == found.ID })
}

// reuse gives the claim the idle instance that is exactly the device, if there is
// one that it may have. The board's lock is held.
func (e *Engine) reuse(ctx context.Context, c *journal.Claim, board gpu.GPU, d gpu.Device) (*journal.Instance, error) {
	record, err := e.journal.Instance(gpu.Instance{GPU: d.GPU, Profile: d.Profile, Placement: d.Placement})
	var corrupt *journal.CorruptError
	if errors.Is(err, journal.ErrNotFound) || errors.As(err, &corrupt) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	anybody := e.policy(board.ProductName).IdleInstances.Scope == configv1alpha1.IdleScopeNode
	if record.State != journal.InstanceIdle || !anybody && record.Namespace != c.Namespace || !e.clean(ctx, board, record) {
		return nil, nil
	}
	record.State, record.Claim = journal.InstanceClaimed, c.UID
	return record, e.journal.PutInstance(record)
}

// evict destroys the idle instances of a board that are in somebody's way, and
// reports whether there were any. The board's lock is held.
func (e *Engine) evict(ctx context.Context, board gpu.GPU, inTheWay func(gpu.Device) bool) (bool, error) {
	idle, err := e.idleOn(board.UUID)
	if err != nil {
		return false, err
	}
	evicted := false
	for _, i := range idle {
		if !inTheWay(i.Instance.Device()) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return evicted, err
		}
		if err := e.destroy(ctx, i); err != nil {
			return evicted, fmt.Errorf("make room: %w", err)
		}
		evicted = true
	}
	return evicted, nil
}

// expire destroys the idle instances that have been so for too long, or all of
// them, and those that a killed process was about to destroy. It forgets those
// that somebody else has destroyed, so that what is in their place is taken for foreign.
func (e *Engine) expire(ctx context.Context, all bool) error {
	records, err := e.journal.Instances()
	errs := []error{err}
	for _, uuid := range boardsOf(records) {
		errs = append(errs, e.bounded(ctx, func(ctx context.Context) error { return e.expireOn(ctx, uuid, all) }))
	}
	return errors.Join(errs...)
}

func (e *Engine) expireOn(ctx context.Context, uuid string, all bool) error {
	unlock, err := e.journal.LockGPUs(ctx, uuid)
	if err != nil {
		return err
	}
	defer unlock()
	board, err := e.hardware.GPU(ctx, uuid)
	if err != nil {
		return err
	}
	records, err := readable(e.journal.InstancesOn(uuid))
	if err != nil {
		return err
	}
	policy := e.policy(board.ProductName).IdleInstances
	var errs []error
	for _, i := range records {
		found, there := board.InstanceAt(i.Instance.Profile, i.Instance.Placement)
		gone := !there || !isRecorded(found, i)
		old := all || *policy.MaxPerGPU == 0 || e.now().Sub(i.IdleSince) > policy.MaxAge.Duration
		if i.Claim == "" && (old || gone || i.State == journal.InstanceReleasing) {
			errs = append(errs, e.destroy(ctx, i))
		}
	}
	return errors.Join(errs...)
}

// boardsOf are the boards on which nobody's instances lie.
func boardsOf(records []*journal.Instance) []string {
	var uuids []string
	for _, i := range records {
		if i.Claim == "" && !slices.Contains(uuids, i.Instance.GPU) {
			uuids = append(uuids, i.Instance.GPU)
		}
	}
	return uuids
}

// Cleanup destroys every instance that is kept for nobody, as before a node is
// taken out of service or kerf is removed. Claims and foreign instances stay.
func (e *Engine) Cleanup(ctx context.Context) error {
	return errors.Join(e.Recover(ctx), e.expire(ctx, true))
}
