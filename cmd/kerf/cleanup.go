package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/plugin"
)

func newCleanupCommand() *cobra.Command {
	f := nodeFlags{}
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Destroy the MIG instances that kerf keeps for nobody",
		Long: `Destroy the MIG instances that kerf keeps for nobody: idle ones, and those that a killed plugin has left.

The instances of claims that are in use stay, and so do those that kerf did not make. The plugin may run meanwhile. A plugin
that is asked to stop does the same, so this is for nodes on which it was killed and is not to come back.`,
		Example: `  kubectl exec --namespace kerf-system POD -- kerf cleanup
  kerf cleanup --nvml=sim:8xH100-SXM5-80GB,state=/run/kerf-sim`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd.Flags()); err != nil {
				return err
			}
			here, err := f.open(cmd.Context(), "", plugin.NewMetrics(prometheus.NewRegistry(), version))
			if err != nil {
				return err
			}
			defer here.close(cmd.Context())
			nothing := func(gpu.Device) bool { return false } // and if it were: what is idle goes in any case
			return here.engine(nothing).Cleanup(cmd.Context())
		},
	}
	f.addTo(cmd.Flags())
	return cmd
}
