package dcgm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
)

// maxScrape bounds what is read of an exporter. A node of eight GPUs with seven instances each has about 1.1 MB.
const maxScrape = 32 << 20

// exposed is what an exporter or a plugin exposes.
type exposed struct {
	metric Metric
	scale  float64
	// whole and instance say what it is about: a row of it about something else says something else.
	whole, instance, own bool
}

// exposition are the series that are read. All of DCGM's are in the exporter's default files of counters.
var exposition = map[string]exposed{
	// In percent. A row of a MIG instance shows what is not the instance's.
	"DCGM_FI_DEV_GPU_UTIL": {metric: Utilization, scale: 1, whole: true},
	// The share of time, from 0 to 1, in which the graphics or compute engine was busy.
	"DCGM_FI_PROF_GR_ENGINE_ACTIVE": {metric: Utilization, scale: 100, instance: true},
	// In MiB.
	"DCGM_FI_DEV_FB_USED": {metric: MemoryUsed, scale: 1, whole: true, instance: true},
	"DCGM_FI_DEV_FB_FREE": {metric: MemoryFree, scale: 1, whole: true, instance: true},
	// Those of kerf's plugin: a share from 0 to 1, and bytes.
	"kerf_instance_engine_active_ratio": {metric: Utilization, scale: 100, instance: true, own: true},
	"kerf_instance_memory_used_bytes":   {metric: MemoryUsed, scale: 1.0 / mib, instance: true, own: true},
	"kerf_instance_memory_free_bytes":   {metric: MemoryFree, scale: 1.0 / mib, instance: true, own: true},
}

const mib = 1 << 20

// Scrape reads the rows of one exporter, or of kerf's plugin. The context bounds the time. An answer
// that is not whole is an error: half of the rows would look like idle GPUs.
func Scrape(ctx context.Context, client *http.Client, url string) ([]Row, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("scrape: %w", err)
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("scrape: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("scrape %s: %s", url, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxScrape+1))
	if err != nil {
		return nil, fmt.Errorf("scrape %s: %w", url, err)
	}
	if len(data) > maxScrape {
		return nil, fmt.Errorf("scrape %s: more than %d MiB: this is no exporter of GPUs", url, maxScrape>>20)
	}
	rows, err := Parse(data, time.Now())
	if err != nil {
		return nil, fmt.Errorf("scrape %s: %w", url, err)
	}
	return rows, nil
}

// Parse reads the text format, of which only our metrics become rows. Rows without a time of their own are given that of the scrape.
func Parse(text []byte, at time.Time) ([]Row, error) {
	// The last line has an end too. Without, the text was cut, maybe within a number.
	if len(text) > 0 && text[len(text)-1] != '\n' {
		return nil, fmt.Errorf("the text ends within a line: %w", io.ErrUnexpectedEOF)
	}
	var (
		rows   []Row
		lset   labels.Labels
		parser = textparse.NewPromParser(text, labels.NewSymbolTable(), false)
	)
	for {
		entry, err := parser.Next()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, err
		}
		if entry != textparse.EntrySeries {
			continue
		}
		series, ms, value := parser.Series()
		// Most rows are of other metrics: their labels are not looked at.
		name, _, _ := bytes.Cut(series, []byte("{"))
		e, ok := exposition[string(name)]
		if !ok {
			continue
		}
		parser.Labels(&lset)
		when := at
		if ms != nil {
			when = time.UnixMilli(*ms)
		}
		if row, ok := e.row(lset.Get, value, when); ok {
			rows = append(rows, row)
		}
	}
}

// row makes a row of labels and a value, and reports whether they are of a device that the series is about.
func (e exposed) row(label func(string) string, value float64, at time.Time) (Row, bool) {
	key, ok := keyOf(label("UUID"), label("GPU_I_ID"))
	if whole := key.Instance == NoInstance; !ok || whole && !e.whole || !whole && !e.instance {
		return Row{}, false
	}
	return Row{
		Metric: e.metric, Key: key, At: at, Value: e.metric.normal(value * e.scale), Own: e.own,
		Host: first(label, "hostname", "Hostname"),
		// Scraped without honorLabels, pod is the exporter's own and exported_pod the workload's.
		Namespace: first(label, "exported_namespace", "exported_pod_namespace", "pod_namespace", "namespace"),
		Pod:       first(label, "exported_pod", "exported_pod_name", "pod_name", "pod"),
	}, true
}

// first is the first label that is there.
func first(label func(string) string, names ...string) string {
	for _, name := range names {
		if v := label(name); v != "" {
			return v
		}
	}
	return ""
}
