package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kerf-project/kerf/pkg/explain"
	"github.com/kerf-project/kerf/pkg/fleet"
)

func newExplainCommand() *cobra.Command {
	var files []string
	var namespace, kubeconfig, output string
	cmd := &cobra.Command{
		Use:   "explain [claim/|pod/]NAME",
		Short: "Say why a claim, or a pod with its claims, does not fit on the nodes",
		Long: `Say why a claim, or a pod with its claims, does not fit on the nodes, and what would make it fit.

It asks the scheduler's own allocator, in this process, and changes nothing in the cluster. With --filename it asks no
cluster: the files have the claim or pod, its templates, the claims that hold devices, and a Fleet (docs/simulate.md) or the
ResourceSlices that "kerf export-slices" or "kubectl get resourceslices -o yaml" wrote. Device classes that no file has are those of kerf's chart.

Exit codes: 0 it fits, or is allocated; 2 it does not fit; 1 it could not be found out.`,
		Example: `  kerf explain train-0 -n team-a
  kerf explain pod/train-0 -n team-a -o json
  kerf explain train-0 -f claim.yaml -f slices.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("--output=%s: expected text or json", output)
			}
			objects, namespace, err := explained(cmd, files, kubeconfig, namespace)
			if err != nil {
				return err
			}
			pod, err := objects.Find(namespace, args[0])
			if err != nil {
				return err
			}
			report, err := explain.Explain(cmd.Context(), fleet.New(objects.Snapshot), pod, explain.Options{Progress: progress("node")})
			if err != nil {
				return err
			}
			if err := writeReport(cmd, report, output); err != nil {
				return err
			}
			if !report.Fits {
				return errNoFit
			}
			return nil
		},
	}
	s := cmd.Flags()
	s.StringSliceVarP(&files, "filename", "f", nil, "manifests to use instead of a cluster; - is the standard input")
	s.StringVarP(&namespace, "namespace", "n", "", "namespace of the claim or pod; empty: that of the kubeconfig's context, or default")
	s.StringVar(&kubeconfig, "kubeconfig", "", "file with the access to the API server; empty: as kubectl finds it")
	s.StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// explained reads the files or the cluster, and the namespace that is meant.
func explained(cmd *cobra.Command, files []string, kubeconfig, namespace string) (*fleet.Objects, string, error) {
	if len(files) > 0 {
		if namespace == "" {
			namespace = "default"
		}
		in, err := readInput(files, cmd.InOrStdin())
		if err != nil {
			return nil, "", err
		}
		return &in.Objects, namespace, nil
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	access := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{})
	config, err := access.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("access to the API server: %w", err)
	}
	if namespace == "" {
		if namespace, _, err = access.Namespace(); err != nil {
			return nil, "", err
		}
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, "", err
	}
	objects, err := fleet.ReadCluster(cmd.Context(), client, namespace)
	return objects, namespace, err
}

func writeReport(cmd *cobra.Command, report *explain.Report, output string) error {
	if output == "json" {
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "  ")
		return e.Encode(report)
	}
	return report.WriteText(cmd.OutOrStdout())
}

// progress shows how far long work is, to people alone.
func progress(noun string) func(done, total int) {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return nil
	}
	return func(done, total int) {
		end := "\r"
		if done == total {
			end = "\r\033[K"
		}
		fmt.Fprintf(os.Stderr, "%s %d of %d%s", noun, done, total, end)
	}
}
