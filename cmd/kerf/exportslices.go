package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/kerf-project/kerf/pkg/fleet"
	"github.com/kerf-project/kerf/pkg/gpu"
	"github.com/kerf-project/kerf/pkg/pool"
)

func newExportSlicesCommand() *cobra.Command {
	var boards, config, node, driver string
	cmd := &cobra.Command{
		Use:   "export-slices --board BOARDS",
		Short: "Write the ResourceSlices that a node with some boards would publish",
		Long: `Write the ResourceSlices that a node with some boards would publish, while nobody uses it.

No GPU and no cluster is needed: kerf knows the boards. The output is for "kerf explain" and "kerf simulate", or to read.
UUIDs and PCI addresses are made up from the node's name.`,
		Example: `  kerf export-slices --board 8xH100-SXM5-80GB
  kerf export-slices --board 4xH200-SXM-141GB,2xL40S --node-name gpu-1 --config node-configuration.yaml > slices.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := gpu.ParseBoards(boards)
			if err != nil {
				return fmt.Errorf("--board: %w", err)
			}
			configuration, err := readConfig(config)
			if err != nil {
				return err
			}
			slices, err := fleet.Publish(node, driver, found, configuration)
			if err != nil {
				return err
			}
			for _, s := range slices {
				text, err := yaml.Marshal(s)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "---\n%s", text)
			}
			return nil
		},
	}
	s := cmd.Flags()
	s.StringVar(&boards, "board", "", "the boards of the node: 8xH100-SXM5-80GB, or several models with commas between them")
	s.StringVar(&config, "config", "", "file with the NodeConfiguration; empty offers every board with the defaults")
	s.StringVar(&node, "node-name", "node-a", "name of the node")
	s.StringVar(&driver, "driver-name", pool.DefaultDriver, "name of the DRA driver")
	_ = cmd.MarkFlagRequired("board") // It fails for flags that do not exist alone.
	return cmd
}
