package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/api"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/config"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/kerf-project/kerf/pkg/controller"
	"github.com/kerf-project/kerf/pkg/keda"
	"github.com/kerf-project/kerf/pkg/pool"
	"github.com/kerf-project/kerf/pkg/scaling"
)

type controllerFlags struct {
	driverName, kubeconfig, namespace, prometheusURL string
	scrape                                           []string
	prometheusConfig                                 string
	httpEndpoint, probeEndpoint                      string
	kedaEndpoint, kedaTLSDir                         string
	interval, collectInterval                        time.Duration
	leaderElect, scale, deletionCosts                bool
}

func newControllerCommand() *cobra.Command {
	f := controllerFlags{}
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Say from DCGM's metrics which workloads should grow, shrink or change shape",
		Example: `  kerf controller --prometheus-url=http://prometheus-operated.monitoring:9090
  kerf controller --scrape=9400/app.kubernetes.io/name=dcgm-exporter`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd.Flags()); err != nil {
				return err
			}
			return runController(cmd.Context(), f)
		},
	}
	s := cmd.Flags()
	s.StringVar(&f.driverName, "driver-name", pool.DefaultDriver, "name of the DRA driver")
	s.StringVar(&f.kubeconfig, "kubeconfig", "", "file with the access to the API server; empty: the pod's own")
	s.StringVar(&f.namespace, "namespace", os.Getenv("POD_NAMESPACE"), "namespace of the lease by which one controller leads; default from POD_NAMESPACE")
	s.StringVar(&f.prometheusURL, "prometheus-url", "", "Prometheus that has kerf's recording rules; empty: only what --scrape names is read")
	s.StringVar(&f.prometheusConfig, "prometheus-http-config", "", "file with TLS and login for it, as Prometheus' own http_config")
	s.StringArrayVar(&f.scrape, "scrape", nil, "exporters that are read where Prometheus cannot be, as PORT/SELECTOR of their pods; can be repeated")
	s.StringVar(&f.httpEndpoint, "http-endpoint", ":8080", "address of /metrics; 0 serves none")
	s.StringVar(&f.probeEndpoint, "probe-endpoint", ":8081", "address of /healthz and /readyz; 0 serves none")
	s.StringVar(&f.kedaEndpoint, "keda-endpoint", "", "address of KEDA's external scaler; empty serves none")
	s.StringVar(&f.kedaTLSDir, "keda-tls-dir", "", "directory with tls.crt and tls.key for it, and with ca.crt if KEDA has to show a certificate; empty: plain text")
	s.DurationVar(&f.interval, "interval", 15*time.Second, "how often it is decided")
	s.DurationVar(&f.collectInterval, "collect-interval", scaling.DefaultInterval, "the interval in which the exporters collect; what is older than three is stale")
	s.BoolVar(&f.leaderElect, "leader-elect", true, "decide only as the leader of several controllers")
	s.BoolVar(&f.scale, "scale", false, "set the replicas of targets whose hints have mode Scale")
	s.BoolVar(&f.deletionCosts, "deletion-costs", false, "mark the pods that are to go, so that they are deleted first")
	return cmd
}

func runController(ctx context.Context, f controllerFlags) error {
	if f.leaderElect && f.namespace == "" {
		return errors.New("--leader-elect needs --namespace, or the variable POD_NAMESPACE")
	}
	scheme, err := controller.Scheme()
	if err != nil {
		return err
	}
	access, err := newConfig(f.kubeconfig)
	if err != nil {
		return fmt.Errorf("access to the API server: %w", err)
	}
	// A tick of thousands of hints writes a minute's worth of statuses.
	access.QPS, access.Burst = 100, 200
	ctrl.SetLogger(klog.Background())
	mgr, err := ctrl.NewManager(access, manager.Options{
		Scheme: scheme, Cache: controller.CacheOptions(), Logger: klog.Background(),
		LeaderElection: f.leaderElect, LeaderElectionID: "kerf-controller", LeaderElectionNamespace: f.namespace,
		// Whoever ends gives the lease back: everything ends with the manager.
		LeaderElectionReleaseOnCancel: true,
		Metrics:                       metricsserver.Options{BindAddress: f.httpEndpoint}, HealthProbeBindAddress: f.probeEndpoint,
	})
	if err != nil {
		return err
	}
	taintRules, err := controller.HasTaintRules(mgr.GetRESTMapper())
	if err != nil {
		return err
	}
	for _, kind := range controller.Cached(taintRules) {
		if _, err := mgr.GetCache().GetInformer(ctx, kind); err != nil {
			return fmt.Errorf("watch %T: %w", kind, err)
		}
	}
	source, err := f.source(mgr)
	if err != nil {
		return err
	}
	err = mgr.Add(&controller.Controller{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Source: source, Events: mgr.GetEventRecorder("kerf-controller"),
		Gauges: controller.NewGauges(ctrlmetrics.Registry), Clock: clock.RealClock{}, Driver: f.driverName,
		Interval: f.interval, Collect: f.collectInterval, TaintRules: taintRules, Scale: f.scale, DeletionCosts: f.deletionCosts,
	})
	synced := func(r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if !mgr.GetCache().WaitForCacheSync(ctx) {
			return errors.New("the cache is not filled yet")
		}
		return nil
	}
	if err := errors.Join(err, f.addKEDA(ctx, mgr), mgr.AddHealthzCheck("ping", healthz.Ping), mgr.AddReadyzCheck("cache", synced)); err != nil {
		return err
	}
	return mgr.Start(ctx)
}

// addKEDA serves KEDA's external scaler, from every replica.
func (f controllerFlags) addKEDA(ctx context.Context, mgr manager.Manager) error {
	if f.kedaEndpoint == "" {
		return nil
	}
	hints, err := keda.NewCachedHints(ctx, mgr.GetCache())
	if err != nil {
		return err
	}
	server := &keda.Server{Hints: hints, Address: f.kedaEndpoint}
	if f.kedaTLSDir != "" {
		server.TLS = &keda.TLS{CertFile: filepath.Join(f.kedaTLSDir, "tls.crt"), KeyFile: filepath.Join(f.kedaTLSDir, "tls.key")}
		if ca := filepath.Join(f.kedaTLSDir, "ca.crt"); exists(ca) {
			server.TLS.ClientCAFile = ca
		}
	}
	return errors.Join(mgr.Add(server), mgr.AddReadyzCheck("keda", server.Ready))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// source is where measurements come from.
func (f controllerFlags) source(mgr manager.Manager) (*controller.Measurements, error) {
	m := &controller.Measurements{Timeout: controller.ReadTimeout}
	if f.prometheusURL != "" {
		given := &config.HTTPClientConfig{FollowRedirects: true, EnableHTTP2: true}
		if f.prometheusConfig != "" {
			var err error
			if given, _, err = config.LoadHTTPConfigFile(f.prometheusConfig); err != nil {
				return nil, fmt.Errorf("--prometheus-http-config: %w", err)
			}
		}
		transport, err := config.NewRoundTripperFromConfig(*given, "prometheus")
		if err != nil {
			return nil, fmt.Errorf("--prometheus-http-config: %w", err)
		}
		client, err := api.NewClient(api.Config{Address: f.prometheusURL, RoundTripper: transport})
		if err != nil {
			return nil, fmt.Errorf("--prometheus-url: %w", err)
		}
		m.Prometheus = promv1.NewAPI(client)
	}
	if len(f.scrape) > 0 {
		m.Exporters = &controller.Exporters{Client: mgr.GetClient(), HTTP: http.DefaultClient}
		for _, text := range f.scrape {
			target, err := controller.ParseScrapeTarget(text)
			if err != nil {
				return nil, fmt.Errorf("--scrape: %w", err)
			}
			m.Exporters.Targets = append(m.Exporters.Targets, target)
		}
	}
	return m, nil
}
