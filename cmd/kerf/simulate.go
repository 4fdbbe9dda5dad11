package main

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kerf-project/kerf/pkg/simulate"
)

func newSimulateCommand() *cobra.Command {
	var files, orders []string
	var output string
	cmd := &cobra.Command{
		Use:   "simulate -f FLEET -f WORKLOADS",
		Short: "Try workloads on a fleet that need not exist",
		Long: `Try workloads on a fleet that need not exist: what is placed where, what does not fit and why, and how many memory slices
are used and stranded over time.

The fleet is a Fleet object, which names boards, or ResourceSlices that "kerf export-slices" or "kubectl get resourceslices -o
yaml" wrote. The workloads are manifests of pods, deployments, stateful sets and jobs with the templates of their claims, which
all come at once and stay, or a trace: a CSV file with the columns at, duration and template. Nodes are tried in their order,
with the scheduler's own allocator. CPU and memory count for nothing.

Exit codes: 0 everything was placed; 2 something never was; 1 it could not be found out.`,
		Example: `  kerf simulate -f fleet.yaml -f deployments/examples/3g-4g-one-gpu.yaml
  kerf simulate -f fleet.yaml -f templates.yaml -f trace.csv --order least-blocking,ascending,descending
  kerf simulate -f fleet.yaml -f workloads.yaml -o html > report.html`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains([]string{"text", "json", "html"}, output) {
				return fmt.Errorf("--output=%s: expected text, json or html", output)
			}
			in, err := readInput(files, cmd.InOrStdin())
			if err != nil {
				return err
			}
			var report simulate.Report
			for _, text := range orders {
				order, err := simulate.ParseOrder(text)
				if err != nil {
					return fmt.Errorf("--order: %w", err)
				}
				result, err := simulate.Run(cmd.Context(), in, order, progress("job"))
				if err != nil {
					return err
				}
				report.Results = append(report.Results, result)
			}
			if err := writeSimulation(cmd, report, output); err != nil {
				return err
			}
			if !report.Fits() {
				return errNoFit
			}
			return nil
		},
	}
	s := cmd.Flags()
	s.StringSliceVarP(&files, "filename", "f", nil, "fleet, workloads, templates and traces (.csv); - is the standard input")
	s.StringSliceVar(&orders, "order", []string{string(simulate.LeastBlocking)}, "orders to publish the placements in, to compare: least-blocking, ascending, descending")
	s.StringVarP(&output, "output", "o", "text", "text, json or html")
	_ = cmd.MarkFlagRequired("filename") // It fails for flags that do not exist alone.
	return cmd
}

func writeSimulation(cmd *cobra.Command, report simulate.Report, output string) error {
	switch output {
	case "json":
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "  ")
		return e.Encode(report)
	case "html":
		return report.WriteHTML(cmd.OutOrStdout())
	}
	return report.WriteText(cmd.OutOrStdout())
}
