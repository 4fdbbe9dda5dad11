package controller

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

func prometheusAt(t testing.TB, url string) promv1.API {
	c, err := api.NewClient(api.Config{Address: url})
	require.NoError(t, err)
	return promv1.NewAPI(c)
}

func serve(t *testing.T, answer http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return s
}

const exported = `DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a",device="nvidia0",hostname="node-a"} 42
`

// exporter is a pod on a node that is scraped at the address of the server.
func exporterAt(t *testing.T, url, node string) (client.Reader, ScrapeTarget) {
	host, port, err := net.SplitHostPort(strings.TrimPrefix(url, "http://"))
	require.NoError(t, err)
	target, err := ParseScrapeTarget(port + "/app=exporter")
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	require.Equal(t, n, target.Port)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "gpu-monitoring", Name: "exporter-" + node, Labels: map[string]string{"app": "exporter"}},
		Spec:       corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{PodIP: host},
	}
	return fake.NewClientBuilder().WithObjects(pod).Build(), target
}

// Prometheus that fails, in whatever way, is replaced by the exporters, and without them it is an error.
func TestPrometheusFails(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"500": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "boom", http.StatusInternalServerError) },
		"truncated": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"status":"success","data":{"resultType":"vector","result":[{"met`)
		},
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"no rules": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"status":"success","data":{"resultType":"vector","result":[]}}`)
		},
		"slow": func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // Else it is not noticed that the client has gone.
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			exporter := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, exported) })
			reader, target := exporterAt(t, exporter.URL, "node-a")
			m := &Measurements{Prometheus: prometheusAt(t, serve(t, answer).URL), Timeout: 200 * time.Millisecond}
			_, err := m.Rows(t.Context(), sets.New("node-a"))
			require.Error(t, err)

			m.Exporters = &Exporters{Client: reader, HTTP: exporter.Client(), Targets: []ScrapeTarget{target}}
			m.Timeout = 5 * time.Second
			if name == "slow" {
				m.Timeout = 200 * time.Millisecond
			}
			rows, err := m.Rows(t.Context(), sets.New("node-a"))
			require.NoError(t, err)
			require.Len(t, rows, 1)
			require.InDelta(t, 42, rows[0].Value, 0)

			empty := serve(t, func(http.ResponseWriter, *http.Request) {})
			m.Exporters.Client, m.Exporters.Targets[0] = exporterAt(t, empty.URL, "node-a")
			_, err = m.Rows(t.Context(), sets.New("node-a"))
			require.ErrorContains(t, err, "the exporters have no row", "it is a failed read, and not a GPU without one")

			_, err = m.Rows(t.Context(), sets.New("node-b"))
			require.ErrorContains(t, err, "no exporter's pod was found", "node-a is not scraped for node-b")
		})
	}
	t.Run("down", func(t *testing.T) {
		m := &Measurements{Prometheus: prometheusAt(t, "http://127.0.0.1:1"), Timeout: time.Second}
		_, err := m.Rows(t.Context(), sets.New("node-a"))
		require.ErrorContains(t, err, "connection refused")
	})
	t.Run("nothing", func(t *testing.T) {
		_, err := (&Measurements{}).Rows(t.Context(), sets.New("node-a"))
		require.ErrorContains(t, err, "--prometheus-url")
	})
}

// A half of an exporter's answer is none.
func TestExporterFails(t *testing.T) {
	for name, body := range map[string]string{"truncated": exported[:len(exported)-3], "no format": "<html>\n"} {
		t.Run(name, func(t *testing.T) {
			exporter := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
			reader, target := exporterAt(t, exporter.URL, "node-a")
			m := &Measurements{Exporters: &Exporters{Client: reader, HTTP: exporter.Client(), Targets: []ScrapeTarget{target}}, Timeout: 5 * time.Second}
			_, err := m.Rows(t.Context(), sets.New("node-a"))
			require.ErrorContains(t, err, "exporter exporter-node-a on node node-a")
		})
	}
}

func TestSignalValue(t *testing.T) {
	result := func(kind, data string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"status":"success","data":{"resultType":%q,"result":%s}}`, kind, data)
		}
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   float64
		err    string
	}{
		"a vector of one": {result("vector", `[{"metric":{},"value":[1,"7"]}]`), 7, ""},
		"a scalar":        {result("scalar", `[1,"7"]`), 7, ""},
		"nothing":         {result("vector", `[]`), math.NaN(), ""},
		"several":         {result("vector", `[{"metric":{"a":"1"},"value":[1,"7"]},{"metric":{"a":"2"},"value":[1,"7"]}]`), 0, "the query gives 2 values, expected one: aggregate it"},
		"a string":        {result("string", `[1,"7"]`), 0, "string"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &Measurements{Prometheus: prometheusAt(t, serve(t, c.answer).URL), Timeout: 5 * time.Second}
			got, err := m.Signal(t.Context(), "x")
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, math.IsNaN(c.want), math.IsNaN(got))
			if !math.IsNaN(c.want) {
				require.InDelta(t, c.want, got, 0)
			}
		})
	}
	_, err := (&Measurements{}).Signal(context.Background(), "x")
	require.ErrorIs(t, err, errNoPrometheus)
}

func TestUsage(t *testing.T) {
	m := &Measurements{Timeout: 5 * time.Second, Prometheus: prometheusAt(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		value := `[{"metric":{"claim_uid":"u"},"value":[1,"42"]}]`
		if strings.Contains(r.FormValue("query"), "memory_used:bytes") {
			value = `[{"metric":{"claim_uid":"u"},"value":[1,"1073741824"]},{"metric":{"claim_uid":"v"},"value":[1,"1048576"]}]`
		}
		fmt.Fprintf(w, `{"status":"success","data":{"resultType":"vector","result":%s}}`, value)
	}).URL)}
	usage, err := m.Usage(t.Context())
	require.NoError(t, err)
	require.InDelta(t, 42, usage["u"].Utilization, 0)
	require.InDelta(t, 1024, usage["u"].PeakMemoryMiB, 0)
	require.True(t, math.IsNaN(usage["v"].Utilization))
}

func TestParseScrapeTarget(t *testing.T) {
	for text, want := range map[string]string{
		"9400/app.kubernetes.io/name=dcgm-exporter": "", "9400": "empty", "0/a=b": "expected PORT/SELECTOR", "x/a=b": "expected PORT/SELECTOR", "9400/a in": "unable to parse",
	} {
		_, err := ParseScrapeTarget(text)
		if want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, want, text)
	}
}
