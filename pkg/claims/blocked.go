package claims

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
)

// BlockedError says that a claim's tenant has gone, and that somebody else, or the
// loss of a GPU, keeps its devices from being given back. The claim's record says so too, nobody is
// given the devices, and Recover finishes the release as soon as it can.
type BlockedError struct {
	// Claim has the devices that must not be offered meanwhile.
	Claim *journal.Claim
	Err   error
}

func (e *BlockedError) Error() string { return e.Err.Error() }

func (e *BlockedError) Unwrap() error { return e.Err }

// blocked tells a release that a third party's handle or the loss of a GPU blocks
// from one that the tenant itself does: the first is noted in the record and
// returned as a BlockedError, the second stays an error of the call, which the
// kubelet repeats. Without that no pod of a lost GPU would end before the GPU is back.
func (e *Engine) blocked(ctx context.Context, record *journal.Claim, cause error) error {
	if !errors.Is(cause, gpu.ErrInUse) && !errors.Is(cause, gpu.ErrLost) || record.State == "" {
		return cause
	}
	for _, d := range record.Devices {
		if d.Instance == nil {
			continue
		}
		processes, err := e.hardware.Processes(ctx, d.Device.GPU)
		if err != nil && !errors.Is(err, gpu.ErrLost) { // Nothing runs on a GPU that is lost.
			return errors.Join(cause, err)
		}
		tenant := slices.IndexFunc(processes, func(p gpu.Process) bool { return p.InPod && p.GPUInstance == d.Instance.ID })
		if tenant >= 0 {
			return fmt.Errorf("%w: %s of the claim's own pod has not ended", cause, processes[tenant])
		}
	}
	record.Blocked = cause.Error()
	if err := e.journal.PutClaim(record); err != nil {
		return errors.Join(cause, err)
	}
	return &BlockedError{Claim: record, Err: cause}
}
