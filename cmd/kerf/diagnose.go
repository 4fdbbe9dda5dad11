package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"

	"github.com/kerf-project/kerf/pkg/diagnose"
	"github.com/kerf-project/kerf/pkg/nvml"
	"github.com/kerf-project/kerf/pkg/nvmlsim"
	"github.com/kerf-project/kerf/pkg/pool"
)

// The exit codes of kerf diagnose, for scripts.
const (
	exitWarnings = 1
	exitFailures = 2
	exitBlind    = 3
)

type diagnoseFlags struct {
	nodeFlags
	stateDir, nodeRoot, registryDir, nodeName, driverName, kubeconfig, httpEndpoint string
	output                                                                          string
	strict, ascii, selfCheck                                                        bool
}

func newDiagnoseCommand() *cobra.Command {
	f := diagnoseFlags{}
	cmd := &cobra.Command{
		Use:   "diagnose",
		Short: "Show what is on a node's GPUs, and what is wrong with it",
		Long: `Show what is on the GPUs of this node, slice by slice, and check whether the node is sound: the driver, the GPUs, kerf's
records, the CDI specs, the kubelet, the container runtime, the API, and who else is there. Of all that is wrong it says
why, and what to do.

It changes nothing, and works whether the plugin runs or not. In the plugin's pod it needs no flags. Exit codes: 0 sound,
1 warnings and --strict, 2 failures, 3 the GPUs could not be looked at.`,
		Example: `  kubectl exec --namespace kerf-system daemonset/kerf-plugin -- kerf diagnose
  kerf diagnose --node-name=$(hostname) --kubeconfig=/etc/kubernetes/kubelet.conf --output=html > node.html
  kerf diagnose --nvml=sim:8xH100-SXM5-80GB,state=/run/kerf-sim`,
		Args: func(cmd *cobra.Command, args []string) error { return blind(cobra.NoArgs(cmd, args)) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd.Flags()); err != nil {
				return blind(err)
			}
			return runDiagnose(cmd.Context(), f, cmd.OutOrStdout())
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return blind(err) })
	s := cmd.Flags()
	f.addTo(s)
	s.StringVar(&f.stateDir, "state-dir", "/var/lib/kerf", "directory of what outlives a reboot")
	s.StringVar(&f.nodeRoot, "node-root", "", "where the node's own files and processes are seen; empty: /proc/1/root, which is the node's root also from the plugin's pod, or where that may not be looked into /")
	s.StringVar(&f.registryDir, "kubelet-registry-dir", kubeletplugin.KubeletRegistryDir, "the kubelet's directory of registration sockets")
	s.StringVar(&f.nodeName, "node-name", os.Getenv("NODE_NAME"), "name of the node; default from NODE_NAME")
	s.StringVar(&f.driverName, "driver-name", pool.DefaultDriver, "name of the DRA driver")
	s.StringVar(&f.kubeconfig, "kubeconfig", "", "file with the access to the API server; empty: the pod's own, and outside pods the API is not looked at")
	s.StringVar(&f.httpEndpoint, "http-endpoint", "", "address of the plugin's /readyz; empty: it is not asked")
	s.StringVarP(&f.output, "output", "o", "text", "text, json, yaml or html: one page without references to others")
	s.BoolVar(&f.strict, "strict", false, "end with exit code 1 where there are warnings")
	s.BoolVar(&f.ascii, "ascii", false, "draw with what every terminal has")
	s.BoolVar(&f.selfCheck, "selfcheck", false, "compare the boards with what kerf knows of their models")
	return cmd
}

// blind is the error of a diagnosis that could not look.
func blind(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{code: exitBlind, err: err}
}

func runDiagnose(ctx context.Context, f diagnoseFlags, out io.Writer) error {
	write, err := writer(f, out)
	if err != nil {
		return blind(err)
	}
	sources, closeLibrary, err := f.sources()
	if err != nil {
		return blind(err)
	}
	report := diagnose.Run(ctx, sources)
	if err := errors.Join(write(report), closeLibrary()); err != nil {
		return blind(err)
	}
	if code := exitCode(report, f.strict); code != 0 {
		return &exitError{code: code}
	}
	return nil
}

func exitCode(r *diagnose.Report, strict bool) int {
	switch {
	case !r.Looked():
		return exitBlind
	case r.Status == diagnose.Fail:
		return exitFailures
	case r.Status == diagnose.Warn && strict:
		return exitWarnings
	default:
		return 0
	}
}

// writer is how the report is to be written.
func writer(f diagnoseFlags, out io.Writer) (func(*diagnose.Report) error, error) {
	switch f.output {
	case "text":
		return func(r *diagnose.Report) error {
			return r.WriteText(out, diagnose.TextOptions{Color: colored(out), ASCII: f.ascii})
		}, nil
	case "json":
		return func(r *diagnose.Report) error { return r.WriteJSON(out) }, nil
	case "yaml":
		return func(r *diagnose.Report) error { return r.WriteYAML(out) }, nil
	case "html":
		return func(r *diagnose.Report) error { return r.WriteHTML(out) }, nil
	default:
		return nil, fmt.Errorf("--output=%s: expected text, json, yaml or html", f.output)
	}
}

// colored reports whether what is written there may have colours: on a terminal
// whose user has not said otherwise (no-color.org).
func colored(out io.Writer) bool {
	file, ok := out.(*os.File)
	return ok && term.IsTerminal(int(file.Fd())) && os.Getenv("NO_COLOR") == ""
}

func (f diagnoseFlags) sources() (diagnose.Sources, func() error, error) {
	config, err := readConfig(f.config)
	if err != nil {
		return diagnose.Sources{}, nil, err
	}
	if f.nodeRoot == "" {
		f.nodeRoot = "/proc/1/root"
		if _, err := os.ReadDir(f.nodeRoot); err != nil {
			f.nodeRoot = "/"
		}
	}
	closeLibrary := func() error { return nil }
	// A simulated node is taken as it is: none is made, and nothing of it is put right.
	lib, _, err := f.library(func(spec nvmlsim.Spec) (*nvmlsim.Node, error) {
		node, err := nvmlsim.OpenExisting(spec.StateDir, nvmlsim.AsItIs())
		if err == nil {
			closeLibrary = node.Close
		}
		return node, err
	})
	if err != nil {
		return diagnose.Sources{}, nil, err
	}
	s := diagnose.Sources{
		Hardware: nvml.New(lib, nvml.WithHostRoot(f.hostRoot), nvml.WithDriver(f.driverRoot, f.libraryPath)), Config: config,
		HostRoot: f.hostRoot, NodeRoot: f.nodeRoot, RunDir: f.runDir, StateDir: f.stateDir, CDIRoot: f.cdiRoot,
		RegistryDir: f.registryDir, DevicePluginsDir: filepath.Join(f.nodeRoot, filepath.Dir(f.registryDir), "device-plugins"),
		NodeName: f.nodeName, Driver: f.driverName, Version: version, Now: time.Now,
	}
	s.Simulated = strings.HasPrefix(f.nvml, "sim:")
	if s.Client, err = newClient(f.kubeconfig); err != nil {
		s.NoClient = err.Error()
	}
	if f.httpEndpoint != "" {
		host, port, err := net.SplitHostPort(f.httpEndpoint)
		if err != nil {
			return diagnose.Sources{}, nil, fmt.Errorf("--http-endpoint: %w", err)
		}
		if host == "" {
			host = "127.0.0.1"
		}
		s.Readyz = "http://" + net.JoinHostPort(host, port) + "/readyz"
	}
	if f.selfCheck {
		s.Inferred = nvmlsim.Inferred()
	}
	return s, closeLibrary, nil
}
