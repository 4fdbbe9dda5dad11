package diagnose_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/diagnose"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
)

func TestSelfCheck(t *testing.T) {
	var boards []string
	for _, b := range gpu.Boards() {
		boards = append(boards, b.Name)
	}
	w := newWorld(t, strings.Join(boards, ","))
	require.Nil(t, w.diagnose().SelfCheck, "it is made where it is asked for")
	w.sources.Inferred = nvmlsim.Inferred()

	report := w.diagnose()
	require.Len(t, report.SelfCheck.Boards, len(boards))
	for i, b := range report.SelfCheck.Boards {
		require.Equal(t, boards[i], b.Model)
		require.Empty(t, b.Differences, "the simulated %s is as known", b.Model)
	}
	require.Empty(t, report.SelfCheck.Minors)
	require.Equal(t, nvmlsim.Inferred(), report.SelfCheck.Inferred)

	// A driver that differs in everything that is compared.
	w.tell(func(n *gpu.Node) error {
		h100 := &n.GPUs[2]
		require.Equal(t, "NVIDIA H100 80GB HBM3", h100.ProductName)
		h100.MemoryBytes += 1 << 20
		h100.ToggleNeedsReset = true
		p := &h100.Profiles[0]
		p.ID, p.MemoryMiB, p.Placements = 99, p.MemoryMiB+1, p.Placements[1:]
		h100.Profiles[1].Name = "2g.21gb"
		n.GPUs[6].ProductName = "NVIDIA L40SX"
		return nil
	})
	w.replaceIn(filepath.Join(w.sim.HostRoot(), "proc/driver/nvidia-caps/mig-minors"), "gpu0/gi1/ci0/access 13", "gpu0/gi1/ci0/access 14")
	report = w.diagnose()
	require.Equal(t, []string{
		"memory in MiB: the driver says 81560, known is 81559",
		"a change of the MIG mode needs a reset: the driver says true, known is false",
		"profile 1g.10gb, id: the driver says 99, known is 19",
		"profile 1g.10gb, memory in MiB: the driver says 9985, known is 9984",
		"profile 1g.10gb, placements: the driver says [1:1 2:1 3:1 4:1 5:1 6:1], known is [0:1 1:1 2:1 3:1 4:1 5:1 6:1]",
		"profile 2g.21gb (id 14) is not known",
		"profile 2g.20gb (id 14) is known, and the driver does not list it",
	}, report.SelfCheck.Boards[2].Differences)
	require.Equal(t, []string{`the model "NVIDIA L40SX" is not known: it has no MIG`}, report.SelfCheck.Boards[6].Differences)
	require.Equal(t, []string{"gpu0/gi1/ci0/access: the driver says minor 14, the formula 13"}, report.SelfCheck.Minors)
	require.Equal(t, diagnose.OK, report.Status, "a board that differs is news, and no fault")
	requireGoldens(t, w, report, "selfcheck")
}
