package crash

import (
	"context"
	"fmt"
	"sync"

	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// Break names a promise that the engine is made to break. A sweep that finds
// nothing wrong with a broken engine proves nothing.
type Break string

// The ways to break it.
const (
	// NoIntent: what is about to be made is not written down first.
	NoIntent Break = "no-intent"
	// NoUndo: what a cut-off preparation has made is forgotten and not destroyed.
	NoUndo Break = "no-undo"
	// NoLock: calls do not wait for one another.
	NoLock Break = "no-lock"
	// NoVerify: what is at a recorded place is taken for what was recorded.
	NoVerify Break = "no-verify"
)

// Breaks are all of them.
func Breaks() []Break { return []Break{NoIntent, NoUndo, NoLock, NoVerify} }

func broken(b Break, h claims.Hardware, j claims.Journal, s claims.Specs) (claims.Hardware, claims.Journal, claims.Specs, error) {
	switch b {
	case "":
	case NoIntent:
		j = noIntent{j}
	case NoUndo:
		begun := &begun{Journal: j, uids: map[string]bool{}}
		h, j = noUndo{h, begun}, begun
	case NoLock:
		j = noLock{j}
	case NoVerify:
		h = noVerify{h, j}
	default:
		return nil, nil, nil, fmt.Errorf("break the engine: %q is none of %q", b, Breaks())
	}
	return h, j, s, nil
}

type noIntent struct{ claims.Journal }

func (n noIntent) PutClaim(c *journal.Claim) error {
	if c.State == journal.ClaimIntent {
		return nil
	}
	return n.Journal.PutClaim(c)
}

func (n noIntent) PutInstance(i *journal.Instance) error {
	if !i.Identified {
		return nil
	}
	return n.Journal.PutInstance(i)
}

// begun remembers the claims that were last known to be begun and not prepared.
type begun struct {
	claims.Journal
	mu   sync.Mutex
	uids map[string]bool
}

func (b *begun) note(c *journal.Claim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	// The states after these say nothing about how far it had come.
	switch c.State {
	case journal.ClaimIntent:
		b.uids[c.UID] = true
	case journal.ClaimPrepared:
		delete(b.uids, c.UID)
	}
}

func (b *begun) Claim(uid string) (*journal.Claim, error) {
	c, err := b.Journal.Claim(uid)
	if err == nil {
		b.note(c)
	}
	return c, err
}

func (b *begun) PutClaim(c *journal.Claim) error {
	b.note(c)
	return b.Journal.PutClaim(c)
}

// owns reports whether an instance is that of such a claim.
func (b *begun) owns(i gpu.Instance) bool {
	record, err := b.Instance(i)
	b.mu.Lock()
	defer b.mu.Unlock()
	return err == nil && b.uids[record.Claim]
}

type noUndo struct {
	claims.Hardware
	begun *begun
}

func (n noUndo) DestroyComputeInstance(ctx context.Context, i gpu.Instance) (gpu.Instance, error) {
	if n.begun.owns(i) {
		i.Compute = nil
		return i, nil
	}
	return n.Hardware.DestroyComputeInstance(ctx, i)
}

func (n noUndo) DestroyGPUInstance(ctx context.Context, i gpu.Instance) error {
	if n.begun.owns(i) {
		return nil
	}
	return n.Hardware.DestroyGPUInstance(ctx, i)
}

type noLock struct{ claims.Journal }

func (noLock) LockClaim(context.Context, string) (func(), error)   { return func() {}, nil }
func (noLock) TryLockClaim(string) (func(), error)                 { return func() {}, nil }
func (noLock) LockGPUs(context.Context, ...string) (func(), error) { return func() {}, nil }

type noVerify struct {
	claims.Hardware
	records claims.Journal
}

func (n noVerify) GPU(ctx context.Context, uuid string) (gpu.GPU, error) {
	board, err := n.Hardware.GPU(ctx, uuid)
	for i, found := range board.Instances {
		if record, readErr := n.records.Instance(found); readErr == nil && record.Identified {
			board.Instances[i] = record.Instance
		}
	}
	return board, err
}

// there is what is at the place of an instance.
func (n noVerify) there(ctx context.Context, i gpu.Instance) (gpu.Instance, bool) {
	board, err := n.Hardware.GPU(ctx, i.GPU)
	if err != nil {
		return gpu.Instance{}, false
	}
	return board.InstanceAt(i.Profile, i.Placement)
}

func (n noVerify) DestroyComputeInstance(ctx context.Context, i gpu.Instance) (gpu.Instance, error) {
	found, ok := n.there(ctx, i)
	i.Compute = nil
	if !ok {
		return i, nil
	}
	_, err := n.Hardware.DestroyComputeInstance(ctx, found)
	return i, err
}

func (n noVerify) DestroyGPUInstance(ctx context.Context, i gpu.Instance) error {
	found, ok := n.there(ctx, i)
	if !ok {
		return nil
	}
	return n.Hardware.DestroyGPUInstance(ctx, found)
}
