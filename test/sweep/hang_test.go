//go:build sweep

package sweep

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/claims/crash"
)

// A GPU whose driver does not answer keeps its own claims waiting, and nobody else's.
func TestAHangCostsOneGPU(t *testing.T) {
	n, ctx := newNode(t, []int{0, 1}, 0), t.Context()
	n.faults = true
	n.write("faults.yaml", "faults: [{name: hang, operation: CreateGpuInstanceWithPlacement, gpu: 0, hang: true}]\n")
	p := n.start("a", crash.Options{Log: n.path("operations")}, "--recover-every=200ms")
	hanging := &claim{uid: "hanging", devices: []device{mig(0, "1g.10gb", 6, 1)}}
	n.allocate(hanging)
	call, giveUp := context.WithCancel(ctx)
	defer giveUp()
	answer := make(chan error, 1)
	go func() { answer <- prepare(call, p, hanging.uid) }()
	place := n.uuids[0] + " 1g.10gb@6:1"
	n.eventually("the call to hang", func() bool { return slices.Contains(n.operations(), "CreateGPUInstance "+place) })

	// While it hangs, claims of another GPU come and go.
	for i := range 7 {
		c := &claim{uid: fmt.Sprintf("other-%d", i), devices: []device{mig(1, "1g.10gb", i, 1)}}
		n.allocate(c)
		require.NoError(t, prepare(ctx, p, c.uid))
		require.NoError(t, unprepare(ctx, p, c.uid))
		n.api.forget(c.uid)
	}
	select {
	case err := <-answer:
		require.Fail(t, "the call was answered, so nothing is shown", "%v", err)
	default:
	}
	// The order of what the process did tells the same.
	order := n.operations()
	require.NotContains(t, order, "PutInstance "+place+" claimed")
	require.Equal(t, 7, count(order, "CreateGPUInstance "+n.uuids[1]))
	require.Equal(t, 7, count(order, "DestroyGPUInstance "+n.uuids[1]))

	// The kubelet gives up. From now on the GPU's claims fail at once, and say why.
	giveUp()
	require.Error(t, <-answer)
	next := &claim{uid: "next", devices: []device{mig(0, "1g.10gb", 2, 1)}}
	n.allocate(next)
	require.ErrorContains(t, prepare(ctx, p, next.uid), "still waits for the driver")
	n.eventually("the GPU's devices to be tainted", func() bool {
		return slices.Contains(n.api.taints(n.name(next.devices[0])), "gpu.kerf.dev/GPUUnresponsive:NoSchedule")
	})
	require.Empty(t, n.api.taints(n.name(mig(1, "1g.10gb", 0, 1))), "the other GPU is well")

	// The driver answers in the end. What it made is undone or used, and the taint goes.
	require.NoError(t, os.Remove(n.path("faults.yaml")))
	n.eventually("the claim to be prepared", func() bool { return prepare(ctx, p, hanging.uid) == nil })
	require.NoError(t, prepare(ctx, p, next.uid))
	n.eventually("the taint to go", func() bool { return len(n.api.taints(n.name(next.devices[0]))) == 0 })
	require.Empty(t, n.observe(hanging, next).violations())
	for _, c := range []*claim{hanging, next} {
		require.NoError(t, unprepare(ctx, p, c.uid))
		n.api.forget(c.uid)
	}
	require.Empty(t, n.observe().violations())
}

// count is how many operations have a name that begins so.
func count(all []string, name string) int {
	n := 0
	for _, o := range all {
		if strings.HasPrefix(o, name+" ") {
			n++
		}
	}
	return n
}
