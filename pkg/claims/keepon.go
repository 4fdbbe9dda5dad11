package claims

import (
	"context"
	"fmt"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// TurnMIGOn turns the MIG mode of a board on, if nobody is on it. ErrResetRequired
// says that the mode waits for a reset of the board, ErrInUse that somebody is on it.
func (e *Engine) TurnMIGOn(ctx context.Context, uuid string) error {
	return e.bounded(ctx, func(ctx context.Context) error {
		unlock, err := e.journal.LockGPUs(ctx, uuid)
		if err != nil {
			return err
		}
		defer unlock()
		board, err := e.hardware.GPU(ctx, uuid)
		if err != nil || board.MIG.Current || !board.MIG.Capable {
			return err
		}
		if board.MIG.Pending {
			return fmt.Errorf("MIG of %s is on from the next reset of the GPU: %w", uuid, gpu.ErrResetRequired)
		}
		if err := e.idle(ctx, "", board); err != nil {
			return err
		}
		defer e.specs.Invalidate()
		return e.hardware.SetMIGMode(ctx, uuid, true)
	})
}
