//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// BenchmarkStart is the time from the start of the process until it is ready. The kubelet, which looks for new plugins
// once a second, is most of it; "ms-to-pool" is the time until the API has the complete pool of eight boards. It also
// reports the memory that the process has then: its own, and the pages of the program's file that are in memory.
func BenchmarkStart(b *testing.B) {
	const driver, endpoint = "bench.kerf.dev", "127.0.0.1:9099"
	e := kit.Connect(b)
	dir, err := os.MkdirTemp("/run", "kerf-bench-")
	require.NoError(b, err)
	defer func() { require.NoError(b, os.RemoveAll(dir)) }()
	own, program, toPool := 0, 0, time.Duration(0)
	for b.Loop() {
		began := time.Now()
		plugin := exec.CommandContext(context.Background(), "bin/kerf", "plugin", "--node-name", kit.NodeName, "--kubeconfig", os.Getenv("KUBECONFIG"),
			"--driver-name", driver, "--http-endpoint", endpoint, "--nvml", "sim:8xH100-SXM5-80GB,state="+filepath.Join(dir, "sim"),
			"--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state"), "--cdi-root", filepath.Join(dir, "cdi"))
		require.NoError(b, plugin.Start())
		for published := false; !published; time.Sleep(time.Millisecond) {
			slices, err := e.Client.ResourceV1().ResourceSlices().List(context.Background(), metav1.ListOptions{FieldSelector: "spec.driver=" + driver})
			require.NoError(b, err)
			published = len(slices.Items) > 0 && len(slices.Items) == int(slices.Items[0].Spec.Pool.ResourceSliceCount)
		}
		toPool += time.Since(began)
		for {
			answer, err := http.Get("http://" + endpoint + "/readyz")
			if err == nil {
				require.NoError(b, answer.Body.Close())
				if answer.StatusCode == http.StatusOK {
					break
				}
			}
			time.Sleep(time.Millisecond)
		}
		b.StopTimer()
		own, program = max(own, statusKiB(b, plugin.Process.Pid, "RssAnon")), max(program, statusKiB(b, plugin.Process.Pid, "RssFile"))
		require.NoError(b, plugin.Process.Signal(syscall.SIGTERM))
		require.NoError(b, plugin.Wait())
		// The next one starts on a node that has never published.
		require.NoError(b, os.RemoveAll(filepath.Join(dir, "state")))
		require.NoError(b, e.Client.ResourceV1().ResourceSlices().DeleteCollection(context.Background(), metav1.DeleteOptions{},
			metav1.ListOptions{FieldSelector: "spec.driver=" + driver}))
		b.StartTimer()
	}
	b.ReportMetric(float64(toPool.Milliseconds())/float64(b.N), "ms-to-pool")
	b.ReportMetric(float64(own)/1024, "MiB-own")
	b.ReportMetric(float64(program)/1024, "MiB-program")
}

func statusKiB(b *testing.B, pid int, field string) int {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(b, err)
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.Atoi(strings.Fields(value)[0])
			require.NoError(b, err)
			return kib
		}
	}
	b.Fatal("no " + field)
	return 0
}
