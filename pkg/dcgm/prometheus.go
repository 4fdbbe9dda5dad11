package dcgm

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
)

// The recording rules that are read, of deployments/monitoring/rules.yaml.
const (
	utilizationRule = "kerf:device_utilization:percent"
	usedRule        = "kerf:device_memory_used:bytes"
	freeRule        = "kerf:device_memory_free:bytes"
	sampledRule     = "kerf:device_sampled:timestamp_seconds"
	claimRule       = "kerf:claim_device:info"
	// markRule is there whenever the rules are, also where nothing is measured.
	markRule = "kerf:rules:loaded"
)

// query is what Prometheus is asked: of the rules, a series for each device that
// a claim has, so that no traps are left in what it sends, nor rows of each pod.
const query = `{__name__=~"` + utilizationRule + "|" + usedRule + "|" + freeRule + "|" + sampledRule + `"}` +
	" and on (UUID, GPU_I_ID) " + claimRule + " or " + markRule

// ErrNoRules is wrapped by the error of Query where Prometheus has no recording rules, or old ones.
var ErrNoRules = errors.New("the recording rules are missing")

// Query reads the latest row of each device from the recording rules in
// Prometheus, as of a moment. A rule's value has the time of the question, so the
// rows have the time that a rule of its own keeps. A device that was sampled and
// has no utilization has a row without a value; what was never sampled has no row.
// The context bounds the time.
func Query(ctx context.Context, api promv1.API, at time.Time) ([]Row, error) {
	value, _, _, err := api.Query(ctx, query, at)
	if err != nil {
		return nil, fmt.Errorf("prometheus: %w", err)
	}
	vector, ok := value.(model.Vector)
	if !ok {
		return nil, fmt.Errorf("prometheus: answered an instant query with a %s", value.Type())
	}
	sampled := make(map[Key]time.Time, len(vector)/4)
	loaded := false
	for _, s := range vector {
		switch s.Metric[model.MetricNameLabel] {
		case sampledRule:
		case markRule:
			loaded = true
			continue
		default:
			continue
		}
		if key, ok := keyOf(string(s.Metric["UUID"]), string(s.Metric["GPU_I_ID"])); ok {
			sampled[key] = time.UnixMilli(int64(float64(s.Value) * 1000))
		}
	}
	if !loaded {
		return nil, fmt.Errorf("prometheus: no series %s: load deployments/monitoring/rules.yaml of this version into it: %w", markRule, ErrNoRules)
	}
	rows := make([]Row, 0, len(vector))
	measured := make(map[Key]bool, len(sampled))
	for _, s := range vector {
		metric, scale := Utilization, 1.0
		switch s.Metric[model.MetricNameLabel] {
		case sampledRule, markRule:
			continue
		case usedRule:
			metric, scale = MemoryUsed, 1.0/mib
		case freeRule:
			metric, scale = MemoryFree, 1.0/mib
		}
		key, ok := keyOf(string(s.Metric["UUID"]), string(s.Metric["GPU_I_ID"]))
		when, known := sampled[key]
		if !ok || !known {
			// The rules of a group are evaluated one after the other, so this is a device that just goes.
			continue
		}
		rows = append(rows, Row{Metric: metric, Key: key, At: when, Value: metric.normal(float64(s.Value) * scale)})
		measured[key] = measured[key] || metric == Utilization
	}
	for key, when := range sampled {
		if !measured[key] {
			rows = append(rows, Row{Metric: Utilization, Key: key, At: when, Value: math.NaN()})
		}
	}
	return rows, nil
}
