package health

import (
	"fmt"
	"strconv"
	"time"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/gpu"
)

// xid is what is known of an Xid error.
type xid struct {
	// means is what has happened, for people. NVIDIA's Xid catalogue has more.
	means string
	// application: it says nothing about the board.
	application bool
	// lasting: only a reset of the board ends what it stands for.
	lasting bool
}

// xids are the errors that are not like all others: those are a reason to keep
// new users away until it has been quiet for a while.
var xids = map[uint64]xid{
	13:        {means: "graphics engine exception", application: true},
	31:        {means: "memory page fault", application: true},
	43:        {means: "an application was stopped", application: true},
	45:        {means: "an application was cleaned up after", application: true},
	46:        {means: "the GPU stopped processing", lasting: true},
	48:        {means: "uncorrectable memory error", lasting: true},
	64:        {means: "a broken row of the memory could not be retired", lasting: true},
	68:        {means: "video processor exception", application: true},
	xidNVLink: {means: "NVLink error", lasting: true},
	79:        {means: "the GPU has fallen off the bus", lasting: true},
	94:        {means: "memory error, contained in the application that met it"},
	95:        {means: "uncontained memory error", lasting: true},
	109:       {means: "context switch timeout", application: true},
	119:       {means: "the GPU's system processor does not answer", lasting: true},
	120:       {means: "error of the GPU's system processor", lasting: true},
}

// xidNVLink is of no concern to who uses a MIG instance: instances have no NVLink.
const xidNVLink = 74

// policy says what follows from errors.
type policy struct {
	effects   map[string]gpu.Effect
	quietTime time.Duration
}

func newPolicy(h configv1alpha1.Health) policy {
	return policy{effects: h.Xids, quietTime: h.QuietTime.Duration}
}

// effect is what an Xid does to the users of a board, which has MIG instances
// for users where partitioned is true.
func (p policy) effect(number uint64, partitioned bool) gpu.Effect {
	effect, ok := p.effects[strconv.FormatUint(number, 10)]
	if !ok {
		effect = defaultEffect(number)
	}
	if number == xidNVLink && effect == gpu.EffectNoExecute && partitioned {
		return gpu.EffectNoSchedule
	}
	return effect
}

// defaultEffect evicts only where what runs on the board can neither go on nor be trusted.
func defaultEffect(number uint64) gpu.Effect {
	switch {
	case number == 79, number == 95:
		return gpu.EffectNoExecute
	case xids[number].application:
		return gpu.EffectNone
	default:
		return gpu.EffectNoSchedule
	}
}

// passes reports whether the trace of an Xid goes by itself, when it has been quiet for a while.
func passes(number uint64) bool { return number != 0 && !xids[number].lasting }

// describe says what has happened and what ends it.
func (p policy) describe(number uint64, of gpu.Device) string {
	means := xids[number].means
	if means == "" {
		means = "see NVIDIA's Xid catalogue"
	}
	ends := "until the GPU is reset or the node rebooted"
	if passes(number) {
		ends = fmt.Sprintf("until it has not come again for %s", p.quietTime)
	}
	return fmt.Sprintf("Xid %d on %s: %s; %s, or an operator sets the node's annotation %s", number, of, means, ends, ClearAnnotation)
}
