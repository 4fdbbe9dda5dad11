package nvml

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
)

// installSMI puts a script in the place of nvidia-smi. $LOG is a file beside it.
func installSMI(t *testing.T, dir, script string) (root, log string) {
	t.Helper()
	root = t.TempDir()
	log = filepath.Join(root, "log")
	path := filepath.Join(root, dir, "nvidia-smi")
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\nLOG="+log+"\n"+script), 0o755))
	return root, log
}

func TestSetTimeSlice(t *testing.T) {
	n := simulate(t, "2xL40S")
	uuid := uuids(t, n)[1]
	for slice, number := range map[gpu.TimeSlice]string{gpu.TimeSliceDefault: "0", gpu.TimeSliceShort: "1", gpu.TimeSliceMedium: "2", gpu.TimeSliceLong: "3"} {
		for _, dir := range smiDirs {
			root, log := installSMI(t, dir, `echo "$@" "[$LD_PRELOAD]" >> $LOG`)
			seen := make(chan string, 1)
			a := open(t, n.Interface(), WithDriver(root, "/driver/libnvidia-ml.so.1"), WithObserver(func(op, on string, _ time.Duration, err error) {
				if op == opSetTimeSlice {
					seen <- fmt.Sprint(on, err)
				}
			}))
			require.NoError(t, a.SetTimeSlice(t.Context(), uuid, slice))
			text, err := os.ReadFile(log)
			require.NoError(t, err)
			// The linker of this machine also tells the script that there is no such library; the arguments come first.
			require.Equal(t, "-i "+uuid+" -c DEFAULT [/driver/libnvidia-ml.so.1]\ncompute-policy -i "+uuid+" --set-timeslice="+number+" [/driver/libnvidia-ml.so.1]\n", string(text))
			require.Equal(t, uuid+"<nil>", <-seen)
		}
	}
}

func TestTheLinkerFindsALibraryWithoutAPath(t *testing.T) {
	n := simulate(t, "1xL40S")
	root, log := installSMI(t, "usr/bin", `echo "[$LD_PRELOAD]" >> $LOG`)
	t.Setenv("LD_PRELOAD", "")
	a := open(t, n.Interface(), WithDriver(root, "libnvidia-ml.so.1"))
	require.NoError(t, a.SetTimeSlice(t.Context(), uuids(t, n)[0], gpu.TimeSliceShort))
	text, err := os.ReadFile(log)
	require.NoError(t, err)
	require.Equal(t, "[]\n[]\n", string(text))
}

func TestSetTimeSliceFails(t *testing.T) {
	n := simulate(t, "2xL40S")
	all := uuids(t, n)
	t.Run("without nvidia-smi", func(t *testing.T) {
		err := open(t, n.Interface(), WithDriver(t.TempDir(), "")).SetTimeSlice(t.Context(), all[0], gpu.TimeSliceShort)
		require.ErrorIs(t, err, gpu.ErrNotSupported)
		require.ErrorContains(t, err, "no nvidia-smi")
	})
	t.Run("with what it says", func(t *testing.T) {
		root, log := installSMI(t, "usr/bin", "echo once >> $LOG; echo 'Unable to set: Insufficient Permissions'; exit 4")
		err := open(t, n.Interface(), WithDriver(root, "")).SetTimeSlice(t.Context(), all[0], gpu.TimeSliceShort)
		for _, part := range []string{all[0], "-c DEFAULT", "exit status 4", "Unable to set: Insufficient Permissions"} {
			require.ErrorContains(t, err, part)
		}
		text, err := os.ReadFile(log)
		require.NoError(t, err)
		require.Equal(t, 1, strings.Count(string(text), "once"), "the slice is not set where the mode could not be")
	})
	t.Run("an unknown slice", func(t *testing.T) {
		require.ErrorContains(t, open(t, n.Interface()).SetTimeSlice(t.Context(), all[0], "Forever"), `"Forever" is none of`)
	})
	t.Run("a lost GPU is not asked", func(t *testing.T) {
		root, log := installSMI(t, "usr/bin", "echo once >> $LOG")
		a := open(t, n.Interface(), WithDriver(root, ""))
		_, err := a.GPU(t.Context(), all[1])
		require.NoError(t, err)
		require.NoError(t, n.Lose("1"))
		require.ErrorIs(t, a.SetTimeSlice(t.Context(), all[1], gpu.TimeSliceShort), gpu.ErrLost)
		require.NoFileExists(t, log)
	})
}

// An nvidia-smi that does not end is killed with its call.
func TestSetTimeSliceEndsWithItsContext(t *testing.T) {
	n := simulate(t, "1xL40S")
	root, log := installSMI(t, "usr/bin", "echo begun > $LOG; exec sleep 3600")
	a := open(t, n.Interface(), WithDriver(root, ""))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.SetTimeSlice(ctx, uuids(t, n)[0], gpu.TimeSliceShort) }()
	require.Eventually(t, func() bool { _, err := os.Stat(log); return err == nil }, time.Minute, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-done, gpu.ErrDeadline)
	// The GPU's turn comes free once the program has ended.
	require.Eventually(t, func() bool { _, err := a.GPU(t.Context(), uuids(t, n)[0]); return err == nil }, time.Minute, time.Millisecond)
}
