package nvmlsim

import (
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Load is what runs on a board, or on a GPU instance of one.
type Load struct {
	// EnginePercent and DRAMPercent are how busy the engines and the memory's bandwidth are, from 0 to 100.
	EnginePercent float64 `json:"enginePercent,omitempty"`
	DRAMPercent   float64 `json:"dramPercent,omitempty"`
	// MemoryMiB is the memory in use, beside that of clients.
	MemoryMiB uint64 `json:"memoryMiB,omitempty"`
}

// work is a Load and what the counters had counted when it began. They begin at
// zero with the instance; over two lives of one, differences are nonsense, which
// nobody notices [inferred].
type work struct {
	Load
	Since time.Time `json:"since,omitzero"`
	// Engine and DRAM are seconds at 100 %.
	Engine float64 `json:"engine,omitempty"`
	DRAM   float64 `json:"dram,omitempty"`
}

// counters are the seconds at 100 % until then.
func (w work) counters(now time.Time) (engine, dram float64) {
	seconds := now.Sub(w.Since).Seconds()
	return w.Engine + seconds*w.EnginePercent/100, w.DRAM + seconds*w.DRAMPercent/100
}

func (w work) valid() bool {
	return w.EnginePercent >= 0 && w.EnginePercent <= 100 && w.DRAMPercent >= 0 && w.DRAMPercent <= 100
}

// SetLoad sets what runs from now on, on a GPU instance or, with nil, on a board
// that is not in MIG mode. It lasts until the instance is destroyed or the board reset.
func (n *Node) SetLoad(name string, gi *int, l Load) error {
	return n.act(fmt.Sprintf("set a load of %g %%", l.EnginePercent), name, func(_ *state, g *board) nvml.Return {
		at := &g.Load
		switch {
		case g.Lost:
			return nvml.ERROR_GPU_IS_LOST
		case !(work{Load: l}).valid():
			return nvml.ERROR_INVALID_ARGUMENT
		case gi == nil && g.MIG:
			// MIG guide: a board in MIG mode runs no CUDA but on an instance.
			return nvml.ERROR_INVALID_ARGUMENT
		case gi != nil && g.instance(*gi) == nil:
			return nvml.ERROR_NOT_FOUND
		case gi != nil:
			at = &g.instance(*gi).Load
		}
		now := n.session.now()
		engine, dram := at.counters(now)
		*at = work{Load: l, Since: now, Engine: engine, DRAM: dram}
		return nvml.SUCCESS
	})
}
