package controller

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kerf-project/kerf/pkg/dcgm"
	"github.com/kerf-project/kerf/pkg/scaling"
)

const (
	// ReadTimeout is what Measurements.Timeout should be: two ways of reading fit into a tick.
	ReadTimeout = 5 * time.Second
	// readsAtOnce bounds the scrapes, and the queries for signals, that are under way.
	readsAtOnce = 16
)

// Measurements reads what is measured: from Prometheus, and where that fails from the exporters themselves.
type Measurements struct {
	// Prometheus may be nil. Then there are no signals and no advice on shapes.
	Prometheus promv1.API
	// Exporters may be nil.
	Exporters *Exporters
	// Timeout bounds each way of reading, so that a slow one leaves time for the next in the same tick.
	Timeout time.Duration
}

var errNoPrometheus = errors.New("there is no Prometheus: see --prometheus-url")

// Rows are those of the devices on the nodes, and maybe of others.
func (m *Measurements) Rows(ctx context.Context, nodes sets.Set[string]) ([]dcgm.Row, error) {
	var errs []error
	if m.Prometheus != nil {
		rows, err := m.query(ctx)
		if err == nil {
			return rows, nil
		}
		errs = append(errs, err)
	}
	if m.Exporters != nil {
		bounded, cancel := context.WithTimeout(ctx, m.Timeout)
		rows, err := m.Exporters.scrape(bounded, nodes)
		cancel()
		if err == nil && len(rows) == 0 && len(errs) > 0 {
			err = errors.New("the exporters have no row of a GPU")
		}
		if err == nil {
			if len(errs) > 0 {
				klog.FromContext(ctx).Info("Prometheus could not be read; the exporters were", "why", errs[0].Error())
			}
			return rows, nil
		}
		errs = append(errs, err)
	}
	if errs == nil {
		errs = append(errs, errors.New("nothing to read from: see --prometheus-url and --scrape"))
	}
	return nil, errors.Join(errs...)
}

func (m *Measurements) query(ctx context.Context) ([]dcgm.Row, error) {
	ctx, cancel := context.WithTimeout(ctx, m.Timeout)
	defer cancel()
	// At Prometheus' own time: with another clock's the answer could be empty, and look as if nothing were measured.
	return dcgm.Query(ctx, m.Prometheus, time.Time{})
}

// Signal is the one value of a query, NaN if it gives none.
func (m *Measurements) Signal(ctx context.Context, query string) (float64, error) {
	if m.Prometheus == nil {
		return 0, errNoPrometheus
	}
	value, _, _, err := m.Prometheus.Query(ctx, query, time.Time{})
	if err != nil {
		return 0, err
	}
	switch v := value.(type) {
	case *model.Scalar:
		return float64(v.Value), nil
	case model.Vector:
		switch len(v) {
		case 0:
			return math.NaN(), nil
		case 1:
			return float64(v[0].Value), nil
		}
		return 0, fmt.Errorf("the query gives %d values, expected one: aggregate it", len(v))
	}
	return 0, fmt.Errorf("the query gives a %s, expected one value", value.Type())
}

// usageQueries are what replicas have used over a day, by the claim's UID. Claims of less than an hour are left out.
// A subquery each five minutes keeps them cheap: 288 samples a claim.
const (
	usageWindow  = "[1d:5m]"
	usageKnown   = ` and on (claim_uid, UUID, GPU_I_ID) count_over_time(kerf:claim_device_utilization:percent` + usageWindow + `) >= 12`
	usageCompute = `max by (claim_uid) (quantile_over_time(0.95, kerf:claim_device_utilization:percent` + usageWindow + `)` + usageKnown + `)`
	usageMemory  = `max by (claim_uid) (max_over_time(kerf:claim_device_memory_used:bytes` + usageWindow + `)` + usageKnown + `)`
)

// Usage is what each claim has used, by its UID.
func (m *Measurements) Usage(ctx context.Context) (map[types.UID]scaling.Usage, error) {
	if m.Prometheus == nil {
		return nil, errNoPrometheus
	}
	ctx, cancel := context.WithTimeout(ctx, m.Timeout)
	defer cancel()
	all := map[types.UID]scaling.Usage{}
	for query, set := range map[string]func(*scaling.Usage, float64){
		usageCompute: func(u *scaling.Usage, v float64) { u.Utilization = v },
		usageMemory:  func(u *scaling.Usage, v float64) { u.PeakMemoryMiB = v / (1 << 20) },
	} {
		value, _, _, err := m.Prometheus.Query(ctx, query, time.Time{})
		if err != nil {
			return nil, err
		}
		vector, ok := value.(model.Vector)
		if !ok {
			return nil, fmt.Errorf("%s gives a %s", query, value.Type())
		}
		for _, sample := range vector {
			uid := types.UID(sample.Metric["claim_uid"])
			usage, ok := all[uid]
			if !ok {
				usage = scaling.Usage{Utilization: math.NaN(), PeakMemoryMiB: math.NaN()}
			}
			set(&usage, float64(sample.Value))
			all[uid] = usage
		}
	}
	return all, nil
}

// Exporters are scraped directly: those on the nodes that matter, and no others.
type Exporters struct {
	// Client lists the exporters' pods.
	Client  client.Reader
	HTTP    *http.Client
	Targets []ScrapeTarget
}

// ScrapeTarget is the pods of a kind of exporter.
type ScrapeTarget struct {
	Port     int
	Selector labels.Selector
}

// ParseScrapeTarget reads PORT/SELECTOR, such as 9400/app.kubernetes.io/name=dcgm-exporter.
func ParseScrapeTarget(text string) (ScrapeTarget, error) {
	port, selector, _ := strings.Cut(text, "/")
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return ScrapeTarget{}, fmt.Errorf("%q: expected PORT/SELECTOR, such as 9400/app.kubernetes.io/name=dcgm-exporter", text)
	}
	s, err := labels.Parse(selector)
	if err != nil {
		return ScrapeTarget{}, fmt.Errorf("%q: %w", text, err)
	}
	if s.Empty() {
		return ScrapeTarget{}, fmt.Errorf("%q: the selector is empty: it would choose all pods", text)
	}
	return ScrapeTarget{int(n), s}, nil
}

// scrape reads the exporters on the nodes. Only if all fail it is an error: where one does, its devices are not measured.
func (e *Exporters) scrape(ctx context.Context, nodes sets.Set[string]) ([]dcgm.Row, error) {
	var (
		group errgroup.Group
		mutex sync.Mutex
		rows  []dcgm.Row
		errs  []error
		tried int
	)
	group.SetLimit(readsAtOnce)
	for _, t := range e.Targets {
		var pods corev1.PodList
		if err := e.Client.List(ctx, &pods, client.MatchingLabelsSelector{Selector: t.Selector}, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("list the exporters %s: %w", t.Selector, err)
		}
		for i := range pods.Items {
			pod := &pods.Items[i]
			if pod.Status.PodIP == "" || !nodes.Has(pod.Spec.NodeName) {
				continue
			}
			tried++
			url := "http://" + net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(t.Port)) + "/metrics"
			group.Go(func() error {
				some, err := dcgm.Scrape(ctx, e.HTTP, url)
				mutex.Lock()
				defer mutex.Unlock()
				rows = append(rows, some...)
				if err != nil {
					errs = append(errs, fmt.Errorf("exporter %s on node %s: %w", pod.Name, pod.Spec.NodeName, err))
				}
				return nil
			})
		}
	}
	_ = group.Wait()
	if tried == 0 {
		return nil, errors.New("no exporter's pod was found on the nodes of the claims: see --scrape")
	}
	if len(errs) == tried {
		return nil, errors.Join(errs[:min(3, len(errs))]...)
	}
	for _, err := range errs {
		klog.FromContext(ctx).Error(err, "An exporter could not be read; its devices are not measured")
	}
	return rows, nil
}
