package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	gonvml "github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/spf13/pflag"
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
)

// nodeFlags say where a node's GPUs, records and CDI specs are.
type nodeFlags struct {
	nvml, config, runDir, hostRoot, driverRoot, hostDriverRoot, cdiRoot string
	// libraryPath is the NVML library that was chosen, for the driver's own programs; empty where they need none.
	libraryPath string
}

func (f *nodeFlags) addTo(s *pflag.FlagSet) {
	s.StringVar(&f.nvml, "nvml", "real", "where the GPUs are: real[:path of libnvidia-ml.so.1; default: looked for below --driver-root], or sim:<boards>,state=<directory>[,seed=N][,mig=on][,faults=<file>][,latency=typical][,lock=global] for simulated ones")
	s.StringVar(&f.config, "config", "", "file with the NodeConfiguration; empty offers every board with the defaults")
	s.StringVar(&f.runDir, "run-dir", "/run/kerf", "directory of the journal, on a tmpfs")
	s.StringVar(&f.hostRoot, "host-root", "/", "where the host's /proc and /dev are seen")
	s.StringVar(&f.driverRoot, "driver-root", "/", "where the NVIDIA driver's files are seen")
	s.StringVar(&f.hostDriverRoot, "host-driver-root", "", "the same directory as the host names it; empty: as --driver-root")
	s.StringVar(&f.cdiRoot, "cdi-root", kubeletplugin.DefaultCDIDir, "directory of the CDI specs")
}

// fromEnvironment gives the flags that were not given the values of variables:
// of --host-root that of KERF_HOST_ROOT. So what runs in the plugin's pod finds
// the node where the plugin does.
func fromEnvironment(flags *pflag.FlagSet) error {
	var errs []error
	flags.VisitAll(func(flag *pflag.Flag) {
		name := "KERF_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
		if value, ok := os.LookupEnv(name); ok && !flag.Changed {
			if err := flag.Value.Set(value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	})
	return errors.Join(errs...)
}

// localNode is what works on the node itself.
type localNode struct {
	config  *configv1alpha1.NodeConfiguration
	adapter *nvml.Adapter
	records *journal.Journal
	// engine makes the engine, which is told what is not well.
	engine func(claims.Unwell) *claims.Engine
	// hostRoot is where the host's files are seen, and driverRoot where the driver's are, those of a simulated one too.
	hostRoot, driverRoot string
}

// open begins a session with the driver. The hook is as the host names it.
func (f nodeFlags) open(ctx context.Context, hook string, metrics *plugin.Metrics) (*localNode, error) {
	config, err := readConfig(f.config)
	if err != nil {
		return nil, err
	}
	lib, extraMounts, err := f.library(func(spec nvmlsim.Spec) (*nvmlsim.Node, error) { return nvmlsim.Open(spec) })
	if err != nil {
		return nil, err
	}
	here := &localNode{config: config, hostRoot: f.hostRoot, driverRoot: f.driverRoot, adapter: nvml.New(lib, nvml.WithHostRoot(f.hostRoot), nvml.WithDriver(f.driverRoot, f.libraryPath), nvml.WithObserver(metrics.Call))}
	if here.records, err = journal.Open(f.runDir); err != nil {
		return nil, err
	}
	writer, err := cdispec.New(cdispec.Options{
		Lib: lib, CDIRoot: f.cdiRoot, HostRoot: f.hostRoot, DriverRoot: f.driverRoot, HostDriverRoot: f.hostDriverRoot,
		HookPath: hook, ExtraMounts: extraMounts, Logger: klog.FromContext(ctx),
	})
	if err != nil {
		return nil, err
	}
	hardware, locked, written, err := instrument(here.adapter, metrics.Locks(here.records), writer)
	if err != nil {
		return nil, err
	}
	here.engine = func(unwell claims.Unwell) *claims.Engine {
		return claims.New(hardware, locked, written, config.For, unwell)
	}
	return here, here.adapter.Open(ctx)
}

func (n *localNode) close(ctx context.Context) {
	if err := n.adapter.Close(); err != nil {
		klog.FromContext(ctx).Error(err, "NVML did not shut down")
	}
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

// library returns the real NVML or a simulated one, which brings a host of its own.
func (f *nodeFlags) library(simulate func(nvmlsim.Spec) (*nvmlsim.Node, error)) (gonvml.Interface, []specs.Mount, error) {
	kind, argument, _ := strings.Cut(f.nvml, ":")
	switch kind {
	case "real":
		if f.hostDriverRoot == "" {
			f.hostDriverRoot = f.driverRoot
		}
		if argument == "" {
			argument = nvml.LibraryPath(f.driverRoot)
		}
		f.libraryPath = argument
		return gonvml.New(gonvml.WithLibraryPath(argument)), nil, nil
	case "sim":
		spec, err := nvmlsim.Parse(argument)
		if err != nil {
			return nil, nil, err
		}
		simulated, err := simulate(spec)
		if err != nil {
			return nil, nil, err
		}
		f.hostRoot, f.driverRoot, f.hostDriverRoot = simulated.HostRoot(), simulated.DriverRoot(), simulated.DriverRoot()
		return simulated.Interface(), simulated.ExtraMounts(f.hostDriverRoot), nil
	}
	return nil, nil, fmt.Errorf("--nvml=%s: expected real[:path] or sim:<boards>,state=<directory>", f.nvml)
}
