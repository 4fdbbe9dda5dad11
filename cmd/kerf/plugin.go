package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	metadatav1beta1 "k8s.io/dynamic-resource-allocation/api/metadata/v1beta1"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/klog/v2"

	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/health"
	"github.com/kerf-project/kerf/pkg/nvml"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

// cleanupTimeout bounds what a plugin that is asked to stop still cleans up.
const cleanupTimeout = 30 * time.Second

// driverEvery is how often the plugin looks whether the NVIDIA driver was replaced.
const driverEvery = 5 * time.Second

type pluginFlags struct {
	nodeFlags
	stateDir, hook, kubeletPluginsDir, kubeletRegistryDir, kubeletPodResourcesDir string
	nodeName, driverName, kubeconfig, httpEndpoint, podUID                        string
	deviceMetadata, reloadExporter                                                bool
	recoverEvery, staleAfter, sampleEvery                                         time.Duration
}

func newPluginCommand() *cobra.Command {
	f := pluginFlags{}
	cmd := &cobra.Command{
		Use:   "plugin",
		Short: "Serve the kubelet on a GPU node",
		Example: `  kerf plugin --node-name=$NODE_NAME
  kerf plugin --node-name=$NODE_NAME --nvml=sim:8xH100-SXM5-80GB,state=/run/kerf-sim`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd.Flags()); err != nil {
				return err
			}
			return runPlugin(cmd.Context(), f)
		},
	}
	s := cmd.Flags()
	f.addTo(s)
	s.StringVar(&f.stateDir, "state-dir", "/var/lib/kerf", "directory of what outlives a reboot: what was published last, and what is wrong with the GPUs")
	s.StringVar(&f.hook, "cdi-hook", "", "nvidia-cdi-hook, which is copied to where the host finds it; empty writes no hooks")
	s.StringVar(&f.kubeletPluginsDir, "kubelet-plugins-dir", kubeletplugin.KubeletPluginsDir, "the kubelet's directory of plugins")
	s.StringVar(&f.kubeletRegistryDir, "kubelet-registry-dir", kubeletplugin.KubeletRegistryDir, "the kubelet's directory of registration sockets")
	s.StringVar(&f.kubeletPodResourcesDir, "kubelet-pod-resources-dir", "/var/lib/kubelet/pod-resources", "the directory of the kubelet's pod resources socket")
	s.StringVar(&f.nodeName, "node-name", os.Getenv("NODE_NAME"), "name of the node; default from NODE_NAME")
	s.StringVar(&f.driverName, "driver-name", pool.DefaultDriver, "name of the DRA driver")
	s.BoolVar(&f.deviceMetadata, "device-metadata", true, "mount a file with the attributes of its devices into every container")
	s.StringVar(&f.kubeconfig, "kubeconfig", "", "file with the access to the API server; empty: the pod's own")
	s.StringVar(&f.podUID, "pod-uid", os.Getenv("POD_UID"), "UID of the plugin's pod, with which two plugins can serve a node during an update; default from POD_UID")
	s.StringVar(&f.httpEndpoint, "http-endpoint", ":8080", "address of /metrics, /healthz and /readyz; empty serves none")
	s.DurationVar(&f.sampleEvery, "sample-every", 15*time.Second, "how often the MIG instances of claims are measured; 0 measures none")
	s.BoolVar(&f.reloadExporter, "reload-dcgm-exporter", false, "send SIGHUP to the node's dcgm-exporter after MIG instances were made, so that it lists them; needs the host's pid namespace")
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
	if f.sampleEvery != 0 && f.sampleEvery < time.Second {
		return fmt.Errorf("--sample-every=%s: it is 0, or at least a second", f.sampleEvery)
	}
	ctx, fatal := context.WithCancelCause(parent)
	defer fatal(nil)
	logger := klog.FromContext(ctx)

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
	if f.hook != "" {
		if f.hook, err = cdispec.InstallHook(f.hook, pluginDir); err != nil {
			return err
		}
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics := plugin.NewMetrics(registry, version)

	here, err := f.open(ctx, f.hook, metrics)
	if err != nil {
		return err
	}
	defer here.close(ctx)
	loaded := nvml.LoadedDriver(here.driverRoot, here.hostRoot)
	events, stopEvents := newEvents(ctx, client, f.nodeName)
	defer stopEvents()
	neighbours := &plugin.Neighbours{Client: client, Events: events, Node: f.nodeName, Driver: f.driverName, Program: plugin.ProgramName(), RegistryDir: f.kubeletRegistryDir, NodeRoot: "/"}
	if err := neighbours.Refuse(ctx); err != nil {
		return err
	}
	node := pool.Node{Name: f.nodeName, Driver: f.driverName}
	server := plugin.Server{Client: client, Node: node}
	monitor := health.New(ctx, here.adapter, server.ClearHealth, here.config.HealthPolicy(), f.stateDir, here.hostRoot)
	engine := here.engine(monitor.Concerns)
	metadata := plugin.Metadata{Driver: f.driverName, CDIRoot: f.cdiRoot, PluginDir: pluginDir, Records: here.records}
	if err := errors.Join(engine.Recover(ctx), metadata.Sweep()); err != nil {
		logger.Error(err, "Not all that an earlier process left could be cleaned up; it is tried again")
	}
	self := plugin.NodeReference(f.nodeName)
	plugin.KeepMIGOn(ctx, here.adapter, here.config, engine.TurnMIGOn, self, events)

	publisher := plugin.NewPublisher(ctx, node, here.adapter, here.records, server, monitor, here.config, f.stateDir)
	if err := publisher.Look(ctx); err != nil {
		return err
	}
	if err := errors.Join(plugin.CountInstances(registry, here.records, publisher.Foreign), plugin.ClaimInfo(registry, here.records)); err != nil {
		return err
	}
	sampler, err := plugin.NewSampler(registry, here.adapter, here.records)
	if err != nil {
		return err
	}
	status := plugin.NewStatus(client, f.driverName, here.records)
	reload := plugin.NewReload(here.records, func() (int, error) { return plugin.TellExporters("/proc") })
	changed := func(namespace, name, uid string) {
		status.Changed(namespace, name, uid)
		reload.Changed()
	}
	helper, err := kubeletplugin.Start(ctx, plugin.NewDriver(engine, node, publisher, metrics.Operation, changed, events, fatal),
		kubeletplugin.KubeClient(client), kubeletplugin.NodeName(f.nodeName), kubeletplugin.DriverName(f.driverName),
		kubeletplugin.RegistrarDirectoryPath(f.kubeletRegistryDir), kubeletplugin.PluginDataDirectoryPath(pluginDir),
		kubeletplugin.RollingUpdate(types.UID(f.podUID)), kubeletplugin.Serialize(false),
		kubeletplugin.EnableDeviceMetadata(f.deviceMetadata, []schema.GroupVersion{metadatav1beta1.SchemeGroupVersion}), kubeletplugin.CDIDirectory(f.cdiRoot))
	if err != nil {
		return fmt.Errorf("serve the kubelet: %w", err)
	}
	defer helper.Stop()
	presence, err := here.records.Enter()
	if err != nil {
		return err
	}
	logger.Info("Serving", "version", version, "node", f.nodeName, "driver", f.driverName)

	ready := &plugin.Ready{
		Registered: func() bool {
			answer := helper.RegistrationStatus()
			return answer != nil && answer.PluginRegistered
		},
		Published: func(ctx context.Context) error {
			if !publisher.Publishing() {
				return nil // Another process does, whose pool may be a different one.
			}
			return server.Complete(ctx, publisher.Resources().Pools[node.Name])
		},
	}
	stale := &plugin.Stale{
		Client: client, Records: here.records, Release: engine.Unprepare, Proc: "/proc", After: f.staleAfter,
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
	run(func() error { return publisher.Run(ctx, here.records, helper.PublishResources) })
	run(func() error {
		recover := func(ctx context.Context) error {
			return errors.Join(engine.Recover(ctx), stale.Sweep(ctx), metadata.Sweep())
		}
		plugin.Recover(ctx, f.recoverEvery, recover, here.records, publisher.Wake)
		return nil
	})
	run(func() error {
		wait.UntilWithContext(ctx, neighbours.Warn, f.recoverEvery)
		return nil
	})
	run(func() error {
		monitor.Run(ctx, publisher, plugin.HealthEvents(self, events))
		return nil
	})
	run(func() error {
		status.Run(ctx)
		return nil
	})
	if f.sampleEvery > 0 {
		run(func() error {
			sampler.Run(ctx, f.sampleEvery)
			return nil
		})
	}
	if f.reloadExporter {
		run(func() error {
			reload.Run(ctx)
			return nil
		})
	}
	run(func() error { return loaded.Watch(ctx, driverEvery) })
	if f.httpEndpoint != "" {
		socket := f.driverName + "-reg.sock"
		if f.podUID != "" {
			socket = kubeletplugin.RollingUpdateRegistrarSocketFile(f.kubeletRegistryDir, f.driverName, types.UID(f.podUID))
		}
		socket = filepath.Join(f.kubeletRegistryDir, socket)
		run(func() error {
			return plugin.Serve(ctx, f.httpEndpoint, registry, plugin.Reachable(socket), ready.Check)
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	if parent.Err() == nil {
		return context.Cause(ctx)
	}
	// Asked to stop. Idle instances must not outlive the last process of the node,
	// which may be the end of kerf on it; during an update another is there already.
	helper.Stop()
	last, err := presence.Leave()
	if !last || err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := engine.Cleanup(ctx); err != nil {
		logger.Error(err, "Not all could be cleaned up; the next process goes on")
	}
	return nil
}

// newEvents makes a recorder of events, and what ends it.
func newEvents(ctx context.Context, client kubernetes.Interface, node string) (record.EventRecorder, func()) {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kerf", Host: node}), broadcaster.Shutdown
}

// newClient uses the pod's own access where no file is named.
func newClient(kubeconfig string) (kubernetes.Interface, error) {
	config, err := newConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	// A node full of small instances can start a hundred pods at once, and the library's limit of 5 requests a second would
	// hold their claims up.
	config.QPS, config.Burst = 50, 100
	return kubernetes.NewForConfig(config)
}

// newConfig is the access to the API server: that of the file, or the pod's own.
func newConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		return clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	return rest.InClusterConfig()
}
