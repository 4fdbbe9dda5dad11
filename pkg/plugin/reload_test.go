package plugin_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/plugin"
)

// instanceList are records of instances that change while somebody reads them.
type instanceList struct {
	claimList
	ids []int
}

func (l *instanceList) have(ids ...int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ids = ids
}

func (l *instanceList) Instances() ([]*journal.Instance, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := []*journal.Instance{{Instance: gpu.Instance{GPU: "GPU-1", Profile: "2g.20gb"}}} // One that is not made yet.
	for _, id := range l.ids {
		all = append(all, &journal.Instance{Identified: true, Instance: gpu.Instance{GPU: "GPU-1", Profile: "1g.10gb", ID: id}})
	}
	return all, nil
}

func TestReloadIsDebounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []time.Duration
		began := time.Now()
		l := &instanceList{}
		r := plugin.NewReload(l, func() (int, error) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, time.Since(began))
			return 1, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			r.Run(ctx)
			close(done)
		}()
		at := func(seconds int, ids ...int) {
			time.Sleep(time.Until(began.Add(time.Duration(seconds) * time.Second)))
			l.have(ids...)
			r.Changed()
			synctest.Wait()
		}
		at(1)        // A claim on a whole GPU makes nothing.
		at(10, 7)    // The first instance,
		at(12, 7, 8) // and another before the exporter was told.
		at(20, 7, 8) // An idle instance is taken: nothing new.
		at(30, 7, 8, 9)
		at(40, 7, 8)  // It has gone before its minute was over, and nobody minds.
		at(100, 7)    // Gone is no news,
		at(110, 7, 8) // and made again it is, although it looks the same.
		at(200, 7, 8)
		at(300, 7, 8)
		cancel()
		<-done
		require.Equal(t, []time.Duration{15 * time.Second, 75 * time.Second, 135 * time.Second}, told)
	})
}

// TestMain lets the test binary be the exporter, which says what it hears.
func TestMain(m *testing.M) {
	if os.Getenv("KERF_TEST_EXPORTER") == "" {
		os.Exit(m.Run())
	}
	heard := make(chan os.Signal, 1)
	signal.Notify(heard, syscall.SIGHUP)
	fmt.Println("ready")
	for range heard {
		fmt.Println("reload")
	}
}

func TestTellExporters(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	proc := t.TempDir()
	// start runs a process and shows it below proc.
	start := func(name string) *bufio.Scanner {
		program := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.Symlink(self, program))
		cmd := exec.CommandContext(t.Context(), program)
		cmd.Env = append(os.Environ(), "KERF_TEST_EXPORTER=1")
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		lines := bufio.NewScanner(out)
		require.True(t, lines.Scan())
		require.NoError(t, os.Symlink(fmt.Sprintf("/proc/%d", cmd.Process.Pid), filepath.Join(proc, fmt.Sprint(cmd.Process.Pid))))
		return lines
	}
	exporter := start("dcgm-exporter")
	start("node-exporter")
	require.NoError(t, os.Symlink("/nonexistent", filepath.Join(proc, "999999")))
	told, err := plugin.TellExporters(proc)
	require.NoError(t, err)
	require.Equal(t, 1, told)
	require.True(t, exporter.Scan())
	require.Equal(t, "reload", exporter.Text())
}
