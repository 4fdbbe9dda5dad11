package controller

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kerf-project/kerf/api/scaling/v1alpha1"
)

// Gauges are the hints and pools as Prometheus reads them, those of the last tick.
type Gauges struct {
	ticks *prometheus.HistogramVec

	mutex   sync.Mutex
	metrics []prometheus.Metric
}

var (
	// Prometheus puts the namespace of the controller's pod into the label namespace.
	hintLabels = []string{"hint_namespace", "hint_name", "target"}
	poolLabels = []string{"pool"}

	desiredReplicas = prometheus.NewDesc("kerf_hint_desired_replicas", "Replicas that the target of a hint should have.", hintLabels, nil)
	scaleToReplicas = prometheus.NewDesc("kerf_hint_scale_to_replicas", "Replicas to set at once: the desired ones without those that have to wait.", hintLabels, nil)
	currentReplicas = prometheus.NewDesc("kerf_hint_current_replicas", "Replicas that the target asks for.", hintLabels, nil)
	desiredRatio    = prometheus.NewDesc("kerf_hint_desired_ratio", "Desired replicas by current ones; 1 is as it should be.", hintLabels, nil)
	utilization     = prometheus.NewDesc("kerf_hint_utilization_ratio", "Mean utilization, from 0 to 1, of the replicas that were measured.", hintLabels, nil)
	coverage        = prometheus.NewDesc("kerf_hint_measured_ratio", "Measured replicas, of those that work.", hintLabels, nil)
	nodesNeeded     = prometheus.NewDesc("kerf_hint_replicas_without_node", "Further replicas that need nodes which are not there.", hintLabels, nil)

	poolGPUs     = prometheus.NewDesc("kerf_pool_gpus", "GPUs of an elastic pool.", poolLabels, nil)
	poolFree     = prometheus.NewDesc("kerf_pool_free_gpus", "GPUs of an elastic pool that nobody uses.", poolLabels, nil)
	poolFits     = prometheus.NewDesc("kerf_pool_free_devices", "How many more of a profile can be placed in an elastic pool, if nothing else is.", []string{"pool", "profile"}, nil)
	poolPrice    = prometheus.NewDesc("kerf_pool_gpu_price_per_hour", "What a GPU of an elastic pool costs in an hour, as its spec says.", []string{"pool", "currency"}, nil)
	poolStranded = prometheus.NewDesc("kerf_pool_stranded_slices", "Free memory slices of an elastic pool that no profile can use.", poolLabels, nil)
)

// NewGauges registers them.
func NewGauges(registry prometheus.Registerer) *Gauges {
	g := &Gauges{ticks: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "kerf_controller_tick_seconds", Help: "How long it takes to decide and tell all hints.",
		Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30},
	}, []string{"result"})}
	registry.MustRegister(g, g.ticks)
	return g
}

func (g *Gauges) ticked(d time.Duration, err error) {
	result := "success"
	if err != nil {
		result = "error"
	}
	g.ticks.WithLabelValues(result).Observe(d.Seconds())
}

// set replaces what is told. A hint that is void has no gauges: what is missing cannot be taken for a number.
func (g *Gauges) set(workloads []*workload, pools map[string]*members) {
	var all []prometheus.Metric
	for _, w := range workloads {
		if w.err != nil {
			continue
		}
		labels := []string{w.hint.Namespace, w.hint.Name, w.hint.Spec.TargetRef.Name}
		add := func(desc *prometheus.Desc, value float64) {
			all = append(all, prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...))
		}
		h := w.outcome.Hint
		add(desiredReplicas, float64(h.Desired))
		add(scaleToReplicas, float64(w.outcome.ScaleTo))
		add(currentReplicas, float64(h.Current))
		if h.Current > 0 {
			add(desiredRatio, float64(h.Desired)/float64(h.Current))
		}
		if e := h.Evidence; e.Ready > 0 {
			add(coverage, float64(e.Measured)/float64(e.Ready))
			if e.Measured > 0 {
				add(utilization, e.Utilization/100)
			}
		}
		if w.outcome.Feasibility.State != v1alpha1.FeasibilityUnknown {
			add(nodesNeeded, float64(w.outcome.Feasibility.Nodes))
		}
	}
	for name, m := range pools {
		add := func(desc *prometheus.Desc, value int, labels ...string) {
			all = append(all, prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), append([]string{name}, labels...)...))
		}
		add(poolGPUs, m.content.gpus)
		add(poolFree, m.content.free)
		add(poolStranded, m.content.stranded)
		if p := m.pool.Spec.Price; p != nil {
			if price, err := strconv.ParseFloat(p.PerGPUHour, 64); err == nil {
				all = append(all, prometheus.MustNewConstMetric(poolPrice, prometheus.GaugeValue, price, name, p.Currency))
			}
		}
		for profile, n := range m.content.profiles {
			add(poolFits, n, profile)
		}
	}
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.metrics = all
}

// Describe is that of a prometheus.Collector.
func (g *Gauges) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		desiredReplicas, scaleToReplicas, currentReplicas, desiredRatio, utilization, coverage, nodesNeeded,
		poolGPUs, poolFree, poolFits, poolPrice, poolStranded,
	} {
		descs <- d
	}
}

// Collect is that of a prometheus.Collector.
func (g *Gauges) Collect(metrics chan<- prometheus.Metric) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	for _, m := range g.metrics {
		metrics <- m
	}
}
