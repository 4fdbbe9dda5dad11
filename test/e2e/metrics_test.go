//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kerf-project/kerf/test/e2e/internal/kit"
)

// The plugin serves its metrics and probes, and the metrics tell of what happens.
func TestMetrics(t *testing.T) {
	e := kit.New(t, fleet)
	for _, path := range []string{"/healthz", "/readyz"} {
		_, err := get(t.Context(), e, path)
		require.NoError(t, err)
	}
	e.Pod("two", kit.Requests("mig-1g.10gb.gpu.nvidia.com", "mig-2g.20gb.gpu.nvidia.com"))
	two := e.Running("two")
	claimed := `kerf_instances{state="claimed"} `
	awaitSeries(e, claimed+"2")
	e.Delete(two...)
	awaitSeries(e, claimed+"0")

	e.Pod("refused", withParameters(kit.Requests("mig-1g.10gb.gpu.nvidia.com"), parameters(`{"mig": {"profile": "2g.20gb"}}`)))
	awaitSeries(e, `kerf_claim_operation_duration_seconds_count{operation="prepare",result="failure"} `)
	for _, series := range []string{
		`kerf_claim_operation_duration_seconds_count{operation="prepare",result="success"} `,
		`kerf_claim_operation_duration_seconds_count{operation="unprepare",result="success"} `,
		`kerf_lock_wait_seconds_count{lock="claim"} `,
		`kerf_lock_wait_seconds_count{lock="gpu"} `,
		`kerf_nvml_call_duration_seconds_count{operation="`,
		`kerf_instances{state="idle"} `,
		`kerf_instances{state="releasing"} 0`,
		`kerf_instances{state="foreign"} 0`,
		`kerf_build_info{`,
	} {
		awaitSeries(e, series)
	}
}

// awaitSeries waits until a line of the metrics begins like that: some are gathered now and then.
func awaitSeries(e *kit.Env, series string) {
	e.Eventually("the series "+series, func(ctx context.Context) error {
		text, err := get(ctx, e, "/metrics")
		if err != nil {
			return err
		}
		var ours []string
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, series) {
				return nil
			}
			if strings.HasPrefix(line, "kerf_") && !strings.Contains(line, "_bucket{") {
				ours = append(ours, line)
			}
		}
		return fmt.Errorf("it is not among\n%s", strings.Join(ours, ""))
	})
}

// get asks the plugin as Prometheus and the kubelet do.
func get(ctx context.Context, e *kit.Env, path string) (string, error) {
	pod, err := e.PluginPod(ctx)
	if err != nil {
		return "", err
	}
	return ask(ctx, "http://"+pod.Status.PodIP+":8080"+path)
}

// ask reads a URL, and returns an error for any answer but 200.
func ask(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", url, response.Status, body)
	}
	return string(body), err
}
