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
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/klog/v2"
	specs "tags.cncf.io/container-device-interface/specs-go"

	configv1alpha1 "github.com/kerf-project/kerf/api/config/v1alpha1"
	"github.com/kerf-project/kerf/pkg/cdispec"
	"github.com/kerf-project/kerf/pkg/claims"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/journal"
	"github.com/kerf-project/kerf/pkg/nvml"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
	"github.com/kerf-project/kerf/pkg/plugin"
	"github.com/kerf-project/kerf/pkg/pool"
)

// recoverEvery is how often leftovers are looked for while the plugin runs.
const recoverEvery = time.Minute

type pluginFlags struct {
	nvml, config, runDir, hostRoot, driverRoot, hostDriverRoot, cdiRoot, hookPath string
	kubeletPluginsDir, kubeletRegistryDir, nodeName, driverName, kubeconfig       string
}

func newPluginCommand() *cobra.Command {
	f := pluginFlags{}
	cmd := &cobra.Command{
		Use:   "plugin",
		Short: "Serve the kubelet on a GPU node",
		Example: `  kerf plugin --node-name=$NODE_NAME
  kerf plugin --node-name=$NODE_NAME --nvml=sim:8xH100-SXM5-80GB,state=/var/lib/kerf-sim`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runPlugin(cmd.Context(), f) },
	}
	s := cmd.Flags()
	s.StringVar(&f.nvml, "nvml", "real", "where the GPUs are: real[:path of libnvidia-ml.so.1], or sim:<boards>,state=<directory> for simulated ones")
	s.StringVar(&f.config, "config", "", "file with the NodeConfiguration; empty offers every board with the defaults")
	s.StringVar(&f.runDir, "run-dir", "/run/kerf", "directory of the journal, on a tmpfs")
	s.StringVar(&f.hostRoot, "host-root", "/", "where the host's /proc and /dev are seen")
	s.StringVar(&f.driverRoot, "driver-root", "/", "where the NVIDIA driver's files are seen")
	s.StringVar(&f.hostDriverRoot, "host-driver-root", "", "the same directory as the host names it; empty: as --driver-root")
	s.StringVar(&f.cdiRoot, "cdi-root", kubeletplugin.DefaultCDIDir, "directory of the CDI specs")
	s.StringVar(&f.hookPath, "cdi-hook", "", "nvidia-cdi-hook as the host names it; empty writes no hooks")
	s.StringVar(&f.kubeletPluginsDir, "kubelet-plugins-dir", kubeletplugin.KubeletPluginsDir, "the kubelet's directory of plugins")
	s.StringVar(&f.kubeletRegistryDir, "kubelet-registry-dir", kubeletplugin.KubeletRegistryDir, "the kubelet's directory of registration sockets")
	s.StringVar(&f.nodeName, "node-name", os.Getenv("NODE_NAME"), "name of the node")
	s.StringVar(&f.driverName, "driver-name", pool.DefaultDriver, "name of the DRA driver")
	s.StringVar(&f.kubeconfig, "kubeconfig", "", "file with the access to the API server; empty: the pod's own")
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
	rest, err := clientcmd.BuildConfigFromFlags("", f.kubeconfig)
	if err != nil {
		return fmt.Errorf("access to the API server: %w", err)
	}
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return fmt.Errorf("access to the API server: %w", err)
	}

	lib, extraMounts, err := openLibrary(&f)
	if err != nil {
		return err
	}
	adapter := nvml.New(lib, nvml.WithHostRoot(f.hostRoot))
	if err := adapter.Open(ctx); err != nil {
		return err
	}
	defer func() {
		if err := adapter.Close(); err != nil {
			logger.Error(err, "NVML did not shut down")
		}
	}()
	found, err := adapter.Node(ctx)
	if err != nil {
		return fmt.Errorf("look at the GPUs: %w", err)
	}

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
	engine := claims.New(adapter, records, writer)
	if err := engine.Recover(ctx); err != nil {
		logger.Error(err, "Not all that an earlier process left could be cleaned up; it is tried again")
	}
	foreign, err := foreignInstances(found.GPUs, records)
	if err != nil {
		return err
	}
	node := pool.Node{Name: f.nodeName, Driver: f.driverName, Node: found}
	resources, err := plugin.Resources(node, config, foreign)
	if err != nil {
		return err
	}

	pluginDir := filepath.Join(f.kubeletPluginsDir, f.driverName)
	if err := os.MkdirAll(pluginDir, 0o750); err != nil {
		return fmt.Errorf("make the plugin's directory: %w", err)
	}
	helper, err := kubeletplugin.Start(ctx, plugin.NewDriver(engine, node, fatal),
		kubeletplugin.KubeClient(client), kubeletplugin.NodeName(f.nodeName), kubeletplugin.DriverName(f.driverName),
		kubeletplugin.RegistrarDirectoryPath(f.kubeletRegistryDir), kubeletplugin.PluginDataDirectoryPath(pluginDir),
		kubeletplugin.Serialize(false))
	if err != nil {
		return fmt.Errorf("serve the kubelet: %w", err)
	}
	defer helper.Stop()
	if err := helper.PublishResources(ctx, resources); err != nil {
		return fmt.Errorf("publish the node's pool: %w", err)
	}
	logger.Info("Serving", "node", f.nodeName, "driver", f.driverName, "gpus", len(found.GPUs))

	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if err := engine.Recover(ctx); err != nil {
			logger.Error(err, "Leftovers could not be cleaned up; it is tried again")
		}
	}, recoverEvery)
	if parent.Err() != nil {
		return nil // Asked to stop.
	}
	return context.Cause(ctx)
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
	kind, rest, _ := strings.Cut(f.nvml, ":")
	switch kind {
	case "real":
		if f.hostDriverRoot == "" {
			f.hostDriverRoot = f.driverRoot
		}
		if rest != "" {
			return gonvml.New(gonvml.WithLibraryPath(rest)), nil, nil
		}
		return gonvml.New(), nil, nil
	case "sim":
		spec, err := nvmlsim.Parse(rest)
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

// foreignInstances are those that kerf has no record of, by GPU.
func foreignInstances(gpus []gpu.GPU, records *journal.Journal) (map[string][]gpu.Instance, error) {
	foreign := map[string][]gpu.Instance{}
	for _, g := range gpus {
		for _, i := range g.Instances {
			_, err := records.Instance(i)
			if errors.Is(err, journal.ErrNotFound) {
				foreign[g.UUID] = append(foreign[g.UUID], i)
			} else if err != nil {
				return nil, err
			}
		}
	}
	return foreign, nil
}
