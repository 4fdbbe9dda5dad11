package dcgm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	text := "# HELP DCGM_FI_DEV_FB_USED Framebuffer memory used (in MiB).\n# TYPE DCGM_FI_DEV_FB_USED gauge\n" +
		line(fbUsed, "", `,hostname="node-a",container="vllm",namespace="inference",pod="model-a-0"`, 61234) +
		line(fbUsed, "3", `,Hostname="node-a",container_name="c",pod_namespace="ns",pod_name="p"`, 1440) +
		line("DCGM_FI_DEV_SM_CLOCK", "", "", 1980) +
		line(fbUsed, "x", "", 1) +
		`DCGM_FI_DEV_FB_USED{gpu="nic0",UUID=""} 5` + "\n" +
		ours("engine_active_ratio", 5, 0.75) + `kerf_claim_device_info{GPU_I_ID="5",UUID="` + gpuA + `"} 1` + "\n"
	rows, err := Parse([]byte(text), now)
	require.NoError(t, err)
	require.Equal(t, []Row{
		{MemoryUsed, Key{gpuA, NoInstance}, now, 61234, false, "node-a", "inference", "model-a-0"},
		{MemoryUsed, Key{gpuA, 3}, now, 1440, false, "node-a", "ns", "p"},
		{Utilization, Key{gpuA, 5}, now, 75, true, "", "", ""},
	}, rows)
}

// Without honorLabels pod is the exporter's own.
func TestExportedLabels(t *testing.T) {
	rows := parse(t, now, line(gpuUtil, "", `,namespace="monitoring",pod="dcgm-exporter-x",exported_namespace="inference",exported_pod="model-a-0"`, 5))
	require.Equal(t, "inference/model-a-0", rows[0].Namespace+"/"+rows[0].Pod)
}

func TestScrape(t *testing.T) {
	whole := strings.Repeat(line(gpuUtil, "", "", 40), 3)
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		rows    int
		want    string
	}{
		"whole":    {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, whole) }, 3, ""},
		"an error": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) }, 0, "500"},
		"cut by the server": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(whole)))
			fmt.Fprint(w, whole[:len(whole)/2])
		}, 0, "EOF"},
		"cut in a value": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.TrimSuffix(whole, "0\n")) }, 0, "within a line"},
		"another page":   {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>\n") }, 0, "expected"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(c.handler)
			defer server.Close()
			rows, err := Scrape(t.Context(), server.Client(), server.URL)
			require.Len(t, rows, c.rows)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, "scrape "+server.URL)
		})
	}
}

// prometheus answers queries with one result.
func prometheus(t *testing.T, handler http.HandlerFunc) promv1.API {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	client, err := api.NewClient(api.Config{Address: server.URL, Client: server.Client()})
	require.NoError(t, err)
	return promv1.NewAPI(client)
}

// vector is what an instant query answers.
type vector []map[string]any

// with adds a series of a rule, as Prometheus evaluates it now.
func (v vector) with(rule, instance string, value float64) vector {
	labels := map[string]string{"__name__": rule, "UUID": gpuA}
	if instance != "" {
		labels["GPU_I_ID"] = instance
	}
	return append(v, map[string]any{"metric": labels, "value": []any{now.Unix(), fmt.Sprint(value)}})
}

func (v vector) serve(t *testing.T) promv1.API {
	t.Helper()
	return prometheus(t, func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, `{__name__=~"kerf:device_utilization:percent|kerf:device_memory_used:bytes|kerf:device_memory_free:bytes|kerf:device_sampled:timestamp_seconds"}`+
			` and on (UUID, GPU_I_ID) kerf:claim_device:info or kerf:rules:loaded`, r.FormValue("query"))
		assert.NoError(t, json.NewEncoder(w).Encode(map[string]any{"status": "success", "data": map[string]any{"resultType": "vector", "result": v}}))
	})
}

// A rule's value always has the time of the question; the time of the scrape is in a rule of its own.
func TestQueryKeepsTheTimeOfTheScrape(t *testing.T) {
	scraped := now.Add(-4 * time.Minute)
	p := vector{}.with(markRule, "", 1).with(utilizationRule, "", 12).with(sampledRule, "", float64(scraped.UnixMilli())/1000).serve(t)
	rows, err := Query(t.Context(), p, now)
	require.NoError(t, err)
	require.Equal(t, []Row{{Metric: Utilization, Key: Key{gpuA, NoInstance}, At: scraped.Local(), Value: 12}}, rows)
	got := Join([]Device{whole(now.Add(-time.Hour))}, rows, now, interval)[0]
	require.Equal(t, Stale, got.State)
	require.True(t, math.IsNaN(got.Utilization))

	naive, _, _, err := p.Query(t.Context(), query, now)
	require.NoError(t, err)
	require.Contains(t, naive.String(), fmt.Sprintf("12 @[%d", now.Unix()), "four minutes old, and looks new")
}

func TestQuery(t *testing.T) {
	seconds := float64(now.Unix())
	p := vector{}.
		with(markRule, "", 1).with(utilizationRule, "3", 42).with(usedRule, "3", 6<<30).with(freeRule, "3", 2<<30).with(sampledRule, "3", seconds).
		with(sampledRule, "4", seconds). // A row, and no value.
		with(usedRule, "5", 1).          // On a board without GPM the memory is known.
		with(utilizationRule, "6", 90).  // It just goes: its time has gone already.
		with(sampledRule, "x", seconds).
		serve(t)
	rows, err := Query(t.Context(), p, now)
	require.NoError(t, err)
	hourAgo := now.Add(-time.Hour)
	got := Join([]Device{mig(3, hourAgo), mig(4, hourAgo), mig(5, hourAgo), mig(6, hourAgo), whole(hourAgo), mig(3, now)}, rows, now, interval)
	var states []State
	for _, r := range got {
		states = append(states, r.State)
	}
	require.Equal(t, []State{OK, NoValue, NoSeries, NoSeries, NoSeries, Earlier}, states)
	require.Equal(t, 42.0, got[0].Utilization)
	require.Equal(t, 6144.0, got[0].MemoryUsed)
	require.Equal(t, 8192.0, got[0].MemoryTotal)
}

// Without the rules nothing is known, which is something else than that nothing is measured.
func TestQueryWithoutRules(t *testing.T) {
	_, err := Query(t.Context(), vector{}.serve(t), now)
	require.ErrorIs(t, err, ErrNoRules)
	require.ErrorContains(t, err, "deployments/monitoring/rules.yaml")
	_, err = Query(t.Context(), vector{}.with(utilizationRule, "3", 42).serve(t), now)
	require.ErrorIs(t, err, ErrNoRules, "old rules")
	rows, err := Query(t.Context(), vector{}.with(markRule, "", 1).serve(t), now)
	require.NoError(t, err)
	require.Empty(t, rows)
}

func TestPrometheusFails(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"500": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) },
		"truncated": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"status":"success","data":{"resu`)
		},
		"a range": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"status":"success","data":{"resultType":"matrix","result":[]}}`)
		},
		"a scalar": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"status":"success","data":{"resultType":"scalar","result":[1,"1"]}}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Query(t.Context(), prometheus(t, handler), now)
			require.ErrorContains(t, err, "prometheus: ")
		})
	}
}

// A node of 8 GPUs with 7 instances each, 30 metrics a row.
func BenchmarkParse(b *testing.B) {
	metrics := []string{engineActive, fbUsed, fbFree, gpuUtil}
	for m := len(metrics); m < 30; m++ {
		metrics = append(metrics, fmt.Sprintf("DCGM_FI_DEV_OTHER_%d", m))
	}
	var text strings.Builder
	for range 8 {
		for instance := range 7 {
			for m, metric := range metrics {
				text.WriteString(line(metric, fmt.Sprint(instance), `,hostname="node-a",container="vllm",namespace="inference",pod="model-a-0"`, m))
			}
		}
	}
	data := []byte(text.String())
	b.ReportAllocs()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Parse(data, now); err != nil {
			b.Fatal(err)
		}
	}
}

// 10,000 devices, the claims of 2,000 workloads with five replicas each.
func BenchmarkQuery(b *testing.B) {
	const devices = 10_000
	var text bytes.Buffer
	text.WriteString(`{"status":"success","data":{"resultType":"vector","result":[`)
	separator := ""
	for rule, value := range map[string]string{
		markRule: "1", utilizationRule: "42.5", usedRule: "6442450944", freeRule: "2147483648", sampledRule: fmt.Sprint(now.Unix()),
	} {
		for d := range devices {
			fmt.Fprintf(&text, `%s{"metric":{"__name__":"%s","UUID":"GPU-%08x-0000-4000-8000-000000000000"},"value":[%d,"%s"]}`, separator, rule, d, now.Unix(), value)
			separator = ","
		}
	}
	text.WriteString(`]}}`)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(text.Bytes()) }))
	defer server.Close()
	client, err := api.NewClient(api.Config{Address: server.URL, Client: server.Client()})
	require.NoError(b, err)
	b.ReportAllocs()
	b.SetBytes(int64(text.Len()))
	for b.Loop() {
		rows, err := Query(b.Context(), promv1.NewAPI(client), now)
		if err != nil || len(rows) != 3*devices {
			b.Fatal(len(rows), err)
		}
	}
}
