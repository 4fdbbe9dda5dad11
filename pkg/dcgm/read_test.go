package dcgm

import (
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
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	text := "# HELP DCGM_FI_DEV_FB_USED Framebuffer memory used (in MiB).\n# TYPE DCGM_FI_DEV_FB_USED gauge\n" +
		line(MemoryUsed, "", `,hostname="node-a",container="vllm",namespace="inference",pod="model-a-0"`, 61234) +
		line(MemoryUsed, "3", `,Hostname="node-a",container_name="c",pod_namespace="ns",pod_name="p"`, 1440) +
		line("DCGM_FI_DEV_SM_CLOCK", "", "", 1980) +
		line(MemoryUsed, "x", "", 1) +
		`DCGM_FI_DEV_FB_USED{gpu="nic0",UUID=""} 5` + "\n"
	rows, err := Parse([]byte(text), now)
	require.NoError(t, err)
	require.Equal(t, []Row{
		{MemoryUsed, Key{gpuA, NoInstance}, now, 61234, "node-a", "inference", "model-a-0"},
		{MemoryUsed, Key{gpuA, 3}, now, 1440, "node-a", "ns", "p"},
	}, rows)
}

// Without honorLabels pod is the exporter's own.
func TestExportedLabels(t *testing.T) {
	rows := parse(t, now, line(GPUUtil, "", `,namespace="monitoring",pod="dcgm-exporter-x",exported_namespace="inference",exported_pod="model-a-0"`, 5))
	require.Equal(t, "inference/model-a-0", rows[0].Namespace+"/"+rows[0].Pod)
}

func TestScrape(t *testing.T) {
	whole := strings.Repeat(line(GPUUtil, "", "", 40), 3)
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

// A query for an instant gives every value the time of the question; the range that is asked for keeps that of the scrape.
func TestQueryKeepsTheTimeOfTheScrape(t *testing.T) {
	scraped := now.Add(-4 * time.Minute)
	var asked string
	p := prometheus(t, func(w http.ResponseWriter, r *http.Request) {
		asked = r.FormValue("query")
		labels := map[string]string{"__name__": string(GPUUtil), "UUID": gpuA, "instance": "10.0.0.1:9400"}
		result := map[string]any{"metric": labels, "value": []any{now.Unix(), "12"}} // what an instant's answer looks like
		kind := "vector"
		if strings.HasSuffix(asked, "]") {
			kind, result = "matrix", map[string]any{"metric": labels, "values": []any{[]any{scraped.Add(-interval).Unix(), "90"}, []any{scraped.Unix(), "12"}}}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"status": "success", "data": map[string]any{"resultType": kind, "result": []any{result}}})
	})
	rows, err := Query(t.Context(), p, now)
	require.NoError(t, err)
	require.Equal(t, `{__name__=~"DCGM_FI_DEV_GPU_UTIL|DCGM_FI_PROF_GR_ENGINE_ACTIVE|DCGM_FI_DEV_FB_USED|DCGM_FI_DEV_FB_FREE",UUID!=""}[5m]`, asked)
	require.Len(t, rows, 1)
	require.Equal(t, scraped.Unix(), rows[0].At.Unix())
	got := Join([]Device{whole(now.Add(-time.Hour))}, rows, now, interval)[0]
	require.Equal(t, Stale, got.State)
	require.True(t, math.IsNaN(got.Utilization))

	naive, _, _, err := p.Query(t.Context(), string(GPUUtil), now)
	require.NoError(t, err)
	require.Contains(t, naive.String(), fmt.Sprintf("12 @[%d", now.Unix()), "four minutes old, and looks new")
}

// An empty answer is no error and no zero: there is no row.
func TestEmptyAnswer(t *testing.T) {
	p := prometheus(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"status":"success","data":{"resultType":"matrix","result":[]}}`)
	})
	rows, err := Query(t.Context(), p, now)
	require.NoError(t, err)
	require.Equal(t, NoSeries, Join([]Device{whole(now.Add(-time.Hour))}, rows, now, interval)[0].State)
}

func TestPrometheusFails(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"500": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) },
		"truncated": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"status":"success","data":{"resu`)
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
	var text strings.Builder
	for range 8 {
		for instance := range 7 {
			for m := range 30 {
				metric := Metric(fmt.Sprintf("DCGM_FI_DEV_OTHER_%d", m))
				if m < len(Metrics()) {
					metric = Metrics()[m]
				}
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
