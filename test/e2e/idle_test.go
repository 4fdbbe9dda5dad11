//go:build e2e

package e2e

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// An instance that a claim gives back serves the next one of its shape, makes room for others, and goes with kerf.
func TestIdleInstances(t *testing.T) {
	e := kit.New(t, kit.Shape{Name: "idle", Boards: "1xH100-SXM5-80GB", Idle: 4})
	e.Pod("first", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	first := e.Running("first")
	made := instances(t, e)
	require.Len(t, made, 1)
	e.Delete(first...)
	require.Equal(t, made, instances(t, e), "it is kept")

	e.Pod("second", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	second := e.Running("second")
	require.NoError(t, e.Verify(second[0]))
	require.Equal(t, made, instances(t, e), "and it is the same that the next pod has")
	e.Delete(second...)

	e.Pod("other", kit.Requests("mig-7g.80gb.gpu.nvidia.com"))
	other := e.Running("other")
	require.NoError(t, e.Verify(other[0]))
	require.Len(t, instances(t, e), 1, "the idle one made room")
	e.Delete(other...)
	require.NotEmpty(t, instances(t, e))

	e.Pod("whole", kit.Requests(wholeClass))
	whole := e.Running("whole")
	require.Empty(t, instances(t, e), "and for the board as a whole")
	e.Delete(whole...)

	e.Pod("last", kit.Requests("mig-1g.10gb.gpu.nvidia.com"))
	e.Delete(e.Running("last")...)
	require.NotEmpty(t, instances(t, e))
	e.Uninstall()
	e.Eventually("the idle instance to be gone", func(context.Context) error {
		boards, err := e.Boards()
		if err == nil && len(boards[0].Instances) > 0 {
			err = errors.New("it is still there")
		}
		return err
	})
}

func instances(t *testing.T, e *kit.Env) []gpu.Instance {
	t.Helper()
	boards, err := e.Boards()
	require.NoError(t, err)
	var all []gpu.Instance
	for _, b := range boards {
		all = append(all, b.Instances...)
	}
	return all
}
