package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/kerf-project/kerf/test/cluster/internal/box"
	"github.com/kerf-project/kerf/test/cluster/internal/cluster"
)

// stopVariable names a step at which "up" kills itself, for the tests of what that leaves behind.
const stopVariable = "KERF_CLUSTER_KILL_AT"

func (a *app) build() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build the tools of a cluster into the cache",
		Args:  cobra.NoArgs,
	}
	a.kubernetesFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := interruptible(cmd.Context())
		defer stop()
		kit, err := cluster.NewKit(a.kubernetes, a.streams.Out)
		if err != nil {
			return err
		}
		host, err := kit.Check()
		if err != nil {
			return err
		}
		parts, err := kit.Make(ctx, host)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.streams.Out, "%d executables are in %s\n", len(parts.Binaries), kit.Cache)
		return err
	}
	return cmd
}

func (a *app) up() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster and return when it can be used",
		Args:  cobra.NoArgs,
	}
	var options cluster.Options
	a.nameFlag(cmd)
	a.kubernetesFlag(cmd)
	cmd.Flags().StringVar(&options.FeatureGates, "feature-gates", "", "feature gates of all components, A=true,B=false")
	cmd.Flags().StringVar(&options.RuntimeConfig, "runtime-config", "", "API versions to serve, resource.k8s.io/v1beta2=true")
	cmd.Flags().IntVar(&options.Verbosity, "verbosity", 2, "log level of the components")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := interruptible(cmd.Context())
		defer stop()
		c, err := a.cluster()
		if err != nil {
			return err
		}
		if options.Kit, err = cluster.NewKit(a.kubernetes, a.streams.Out); err != nil {
			return err
		}
		if options.AtStep, err = cluster.StopAt(os.Getenv(stopVariable)); err != nil {
			return fmt.Errorf("%s: %w", stopVariable, err)
		}
		return cluster.Up(ctx, c, options)
	}
	return cmd
}

func (a *app) down() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop a cluster and remove everything of it",
		Args:  cobra.NoArgs,
	}
	a.nameFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := interruptible(cmd.Context())
		defer stop()
		c, err := a.cluster()
		if err != nil {
			return err
		}
		was, err := cluster.Down(ctx, c)
		if err != nil {
			return err
		}
		text := "cluster %s was not up\n"
		if was {
			text = "cluster %s is down\n"
		}
		_, err = fmt.Fprintf(a.streams.Out, text, a.name)
		return err
	}
	return cmd
}

func (a *app) status() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the processes of a cluster, and fail when it cannot be used",
		Args:  cobra.NoArgs,
	}
	a.nameFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := interruptible(cmd.Context())
		defer stop()
		c, err := a.cluster()
		if err != nil {
			return err
		}
		return cluster.Status(ctx, c, a.streams.Out)
	}
	return cmd
}

func (a *app) restart() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restart COMPONENT",
		Short: "Kill a component of a cluster, such as kubelet or kube-apiserver, and start it again",
		Args:  cobra.ExactArgs(1),
	}
	a.nameFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.cluster()
		if err != nil {
			return err
		}
		return box.Restart(cmd.Context(), c.Socket(), args[0])
	}
	return cmd
}

func (a *app) logs() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "logs [COMPONENT]",
		Short: "Show the log of a component, or list the components that have one",
		Args:  cobra.MaximumNArgs(1),
	}
	a.nameFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		c, err := a.cluster()
		if err != nil {
			return err
		}
		if len(args) == 1 {
			return cluster.Log(c, args[0], a.streams.Out)
		}
		names, err := cluster.Logs(c)
		if err != nil {
			return err
		}
		for _, name := range names {
			if _, err := fmt.Fprintf(a.streams.Out, "%-28s %s\n", name, c.Log(name)); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}
