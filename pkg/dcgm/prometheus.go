package dcgm

import (
	"context"
	"fmt"
	"strings"
	"time"

	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
)

// window is how far back Prometheus is asked: as far as it looks itself.
const window = 5 * time.Minute

// query is what Prometheus is asked. It is a range, because the samples of a
// range have the time of their scrape; a query for an instant gives every value
// the time of the question, however old it is.
func query() string {
	var names []string
	for _, m := range Metrics() {
		names = append(names, string(m))
	}
	return fmt.Sprintf(`{__name__=~"%s",UUID!=""}[%s]`, strings.Join(names, "|"), model.Duration(window))
}

// Query reads the latest row of each series from Prometheus. The context bounds the time.
func Query(ctx context.Context, api promv1.API, at time.Time) ([]Row, error) {
	value, _, _, err := api.Query(ctx, query(), at)
	if err != nil {
		return nil, fmt.Errorf("prometheus: %w", err)
	}
	matrix, ok := value.(model.Matrix)
	if !ok {
		return nil, fmt.Errorf("prometheus: answered a range with a %s", value.Type())
	}
	var rows []Row
	for _, series := range matrix {
		if len(series.Values) == 0 {
			continue
		}
		last := series.Values[len(series.Values)-1]
		label := func(name string) string { return string(series.Metric[model.LabelName(name)]) }
		if row, ok := newRow(label(model.MetricNameLabel), label, float64(last.Value), last.Timestamp.Time()); ok {
			rows = append(rows, row)
		}
	}
	return rows, nil
}
