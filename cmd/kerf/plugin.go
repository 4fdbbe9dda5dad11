package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/klog/v2"
	specs "tags.cncf.io/container-device-interface/specs-go"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/nvml"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

type pluginFlags struct {
	nvml, config, stateDir, runDir, hostRoot, driverRoot, hostDriverRoot, cdiRoot, hookPath                                string
	kubeletPluginsDir, kubeletRegistryDir, kubeletPodResourcesDir, nodeName, driverName, kubeconfig, httpEndpoint, version string
	recoverEvery, staleAfter                                                                                               time.Duration
}

func newPluginCommand() *cobra.Command {
	f := pluginFlags{version: version}
	cmd := &cobra.Command{
		Use:   "plugin",
		Short: "Serve the kubelet on a GPU node",
		Example: `  kerf plugin --node-name=$NODE_NAME
  kerf plugin --node-name=$NODE_NAME --nvml=sim:8xH100-SXM5-80GB,state=/run/kerf-sim`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runPlugin(cmd.Context(), f) },
	}
	s := cmd.Flags()
	s.StringVar(&f.nvml, "nvml", "real", "where the GPUs are: real[:path of libnvidia-ml.so.1; default: looked for below --driver-root], or sim:<boards>,state=<directory>[,seed=N][,mig=on][,faults=<file>][,latency=typical][,lock=global] for simulated ones")
	s.StringVar(&f.config, "config", "", "file with the NodeConfiguration; empty offers every board with the defaults")
	s.StringVar(&f.stateDir, "state-dir", "/var/lib/kerf", "directory of what outlives a reboot: what was published last")
	s.StringVar(&f.runDir, "run-dir", "/run/kerf", "directory of the journal, on a tmpfs")
	s.StringVar(&f.hostRoot, "host-root", "/", "where the host's /proc and /dev are seen")
	s.StringVar(&f.driverRoot, "driver-root", "/", "where the NVIDIA driver's files are seen")
	s.StringVar(&f.hostDriverRoot, "host-driver-root", "", "the same directory as the host names it; empty: as --driver-root")
	s.StringVar(&f.cdiRoot, "cdi-root", kubeletplugin.DefaultCDIDir, "directory of the CDI specs")
	s.StringVar(&f.hookPath, "cdi-hook", "", "nvidia-cdi-hook, which is copied to where the host finds it; empty writes no hooks")
	s.StringVar(&f.kubeletPluginsDir, "kubelet-plugins-dir", kubeletplugin.KubeletPluginsDir, "the kubelet's directory of plugins")
	s.StringVar(&f.kubeletRegistryDir, "kubelet-registry-dir", kubeletplugin.KubeletRegistryDir, "the kubelet's directory of registration sockets")
	s.StringVar(&f.kubeletPodResourcesDir, "kubelet-pod-resources-dir", "/var/lib/kubelet/pod-resources", "the directory of the kubelet's pod resources socket")
	s.StringVar(&f.nodeName, "node-name", os.Getenv("NODE_NAME"), "name of the node; default from NODE_NAME")
	s.StringVar(&f.driverName, "driver-name", pool.DefaultDriver, "name of the DRA driver")
	s.StringVar(&f.kubeconfig, "kubeconfig", "", "file with the access to the API server; empty: the pod's own")
	s.StringVar(&f.httpEndpoint, "http-endpoint", ":8080", "address of /metrics, /healthz and /readyz; empty serves none")
	s.DurationVar(&f.recoverEvery, "recover-every", time.Minute, "how often leftovers of other processes are looked for")
	s.DurationVar(&f.staleAfter, "stale-after", time.Minute, "how long the API server must have been without a claim that nobody uses before it is released")
	for _, name := range []string{"recover-every", "stale-after"} {
		s.Lookup(name).Hidden = true // For tests, which cannot wait that long.
	}
	return cmd
}

func runPlugin(parent context.Context, f pluginFlags) error {
	if f.nodeName == "" {
		return errors.New("--node-name or the variable NODE_NAME is required")
	}
	ctx, fatal := context.WithCancelCause(parent)
	defer fatal(nil)
	logger := klog.FromContext(ctx)

	config, err := readConfig(f.config)
	if err != nil {
		return err
	}
	client, err := newClient(f.kubeconfig)
	if err != nil {
		return fmt.Errorf("access to the API server: %w", err)
	}
	pluginDir := filepath.Join(f.kubeletPluginsDir, f.driverName)
	for _, dir := range []string{pluginDir, f.stateDir} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
	}
	if f.hookPath != "" {
		if f.hookPath, err = cdispec.InstallHook(f.hookPath, pluginDir); err != nil {
			return err
		}
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics := plugin.NewMetrics(registry, f.version)

	lib, extraMounts, err := openLibrary(&f)
	if err != nil {
		return err
	}
	adapter := nvml.New(lib, nvml.WithHostRoot(f.hostRoot), nvml.WithObserver(metrics.Call))
	if err := adapter.Open(ctx); err != nil {
		return err
	}
	defer func() {
		if err := adapter.Close(); err != nil {
			logger.Error(err, "NVML did not shut down")
		}
	}()
	records, err := journal.Open(f.runDir)
	if err != nil {
		return err
	}
	writer, err := cdispec.New(cdispec.Options{
		Lib: lib, CDIRoot: f.cdiRoot, HostRoot: f.hostRoot, DriverRoot: f.driverRoot, HostDriverRoot: f.hostDriverRoot,
		HookPath: f.hookPath, ExtraMounts: extraMounts, Logger: logger,
	})
	if err != nil {
		return err
	}
	boards, locked, written, err := instrument(adapter, metrics.Locks(records), writer)
	if err != nil {
		return err
	}
	engine := claims.New(boards, locked, written, config.Idle)
	if err := engine.Recover(ctx); err != nil {
		logger.Error(err, "Not all that an earlier process left could be cleaned up; it is tried again")
	}
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	events := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kerf", Host: f.nodeName})
	plugin.KeepMIGOn(ctx, adapter, config, engine.TurnMIGOn, &corev1.ObjectReference{Kind: "Node", Name: f.nodeName, UID: types.UID(f.nodeName)}, events)

	node := pool.Node{Name: f.nodeName, Driver: f.driverName}
	server := plugin.Server{Client: client, Node: node}
	publisher := plugin.NewPublisher(ctx, node, adapter, records, server, config, f.stateDir)
	if err := publisher.Look(ctx); err != nil {
		return err
	}
	if err := plugin.CountInstances(registry, records, publisher.Foreign); err != nil {
		return err
	}

	helper, err := kubeletplugin.Start(ctx, plugin.NewDriver(engine, node, publisher, metrics.Operation, fatal),
		kubeletplugin.KubeClient(client), kubeletplugin.NodeName(f.nodeName), kubeletplugin.DriverName(f.driverName),
		kubeletplugin.RegistrarDirectoryPath(f.kubeletRegistryDir), kubeletplugin.PluginDataDirectoryPath(pluginDir),
		kubeletplugin.Serialize(false))
	if err != nil {
		return fmt.Errorf("serve the kubelet: %w", err)
	}
	defer helper.Stop()
	logger.Info("Serving", "version", f.version, "node", f.nodeName, "driver", f.driverName)

	ready := &plugin.Ready{
		Registered: func() bool {
			status := helper.RegistrationStatus()
			return status != nil && status.PluginRegistered
		},
		Published: func(ctx context.Context) error { return server.Complete(ctx, publisher.Resources().Pools[node.Name]) },
	}
	stale := &plugin.Stale{
		Client: client, Records: records, Release: engine.Unprepare, Proc: "/proc", After: f.staleAfter,
		InPods: plugin.PodResources(filepath.Join(f.kubeletPodResourcesDir, "kubelet.sock")),
	}
	var work errgroup.Group
	run := func(part func() error) {
		work.Go(func() error {
			err := part()
			fatal(err) // One part that ends ends all.
			return err
		})
	}
	run(func() error { return publisher.Run(ctx, helper.PublishResources) })
	run(func() error {
		plugin.Recover(ctx, f.recoverEvery, func(ctx context.Context) error { return errors.Join(engine.Recover(ctx), stale.Sweep(ctx)) }, records, publisher.Wake)
		return nil
	})
	if f.httpEndpoint != "" {
		socket := filepath.Join(f.kubeletRegistryDir, f.driverName+"-reg.sock")
		run(func() error {
			return plugin.Serve(ctx, f.httpEndpoint, registry, plugin.Reachable(socket), ready.Check)
		})
	}
	if err := work.Wait(); err != nil || parent.Err() != nil {
		return err // nil: asked to stop.
	}
	return context.Cause(ctx)
}

// newClient uses the pod's own access where no file is named.
func newClient(kubeconfig string) (kubernetes.Interface, error) {
	read := rest.InClusterConfig
	if kubeconfig != "" {
		read = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", kubeconfig) }
	}
	config, err := read()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

func readConfig(path string) (*configv1alpha1.NodeConfiguration, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	config, err := configv1alpha1.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return config, nil
}

// openLibrary returns the real NVML or a simulated one, which brings a host of its own.
func openLibrary(f *pluginFlags) (gonvml.Interface, []specs.Mount, error) {
	kind, argument, _ := strings.Cut(f.nvml, ":")
	switch kind {
	case "real":
		if f.hostDriverRoot == "" {
			f.hostDriverRoot = f.driverRoot
		}
		if argument == "" {
			argument = nvml.LibraryPath(f.driverRoot)
		}
		return gonvml.New(gonvml.WithLibraryPath(argument)), nil, nil
	case "sim":
		spec, err := nvmlsim.Parse(argument)
		if err != nil {
			return nil, nil, err
		}
		simulated, err := nvmlsim.Open(spec)
		if err != nil {
			return nil, nil, err
		}
		f.hostRoot, f.driverRoot, f.hostDriverRoot = simulated.HostRoot(), simulated.DriverRoot(), simulated.DriverRoot()
		return simulated.Interface(), simulated.ExtraMounts(f.hostDriverRoot), nil
	}
	return nil, nil, fmt.Errorf("--nvml=%s: expected real[:path] or sim:<boards>,state=<directory>", f.nvml)
}
