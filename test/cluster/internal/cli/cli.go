// Package cli owns the command line: flags, and the exit code.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kerf-project/kerf/test/cluster/internal/cluster"
	"github.com/kerf-project/kerf/test/cluster/internal/layout"
	"github.com/kerf-project/kerf/test/cluster/internal/nsenter"
	"github.com/kerf-project/kerf/test/cluster/internal/tools"
)

// Main runs one command and returns its exit code: that of the command inside the box, where there is one.
func Main(args []string, in io.Reader, out, errOut io.Writer) int {
	ctx := context.Background()
	root := newRoot(cluster.Streams{In: in, Out: out, Err: errOut})
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var failed *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &failed):
		if status, ok := failed.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal())
		}
		return failed.ExitCode()
	}
	fmt.Fprintln(errOut, "cluster:", err)
	return 1
}

// app is what the commands share.
type app struct {
	streams    cluster.Streams
	name       string
	kubernetes string
}

func newRoot(streams cluster.Streams) *cobra.Command {
	a := &app{streams: streams}
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "A real one-node Kubernetes in private Linux namespaces",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(a.build(), a.up(), a.down(), a.status(), a.restart(), a.logs(), a.image(), a.exec())
	for _, tool := range []string{"kubectl", "helm", "ctr"} {
		root.AddCommand(a.tool(tool))
	}
	root.AddCommand(a.internal()...)
	return root
}

func (a *app) nameFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.name, "name", "kerf", "name of the cluster; clusters with different names run side by side")
}

func (a *app) kubernetesFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.kubernetes, "kubernetes", tools.DefaultKubernetes, "version of Kubernetes; others than the default need a tool module of their own")
}

func (a *app) cluster() (layout.Cluster, error) { return layout.New(a.name) }

// interruptible ends its context on the signals that ask a program to end.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
}

// internal are the commands by which this program calls itself.
func (a *app) internal() []*cobra.Command {
	guardian := &cobra.Command{Use: cluster.GuardianCommand, Hidden: true, Args: cobra.NoArgs}
	guardian.RunE = func(cmd *cobra.Command, _ []string) error {
		// No signal may be ignored here: the containers of the cluster would inherit that.
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM)
		defer stop()
		c, err := a.cluster()
		if err != nil {
			return err
		}
		return cluster.Guard(ctx, c)
	}
	init := &cobra.Command{Use: cluster.InitCommand, Hidden: true, Args: cobra.NoArgs}
	init.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.cluster()
		if err != nil {
			return err
		}
		return cluster.Init(cmd.Context(), c)
	}
	a.nameFlag(guardian)
	a.nameFlag(init)
	enter := &cobra.Command{
		Use: cluster.EnterCommand, Hidden: true,
		RunE: func(_ *cobra.Command, args []string) error { return nsenter.Arrive(args) },
	}
	return []*cobra.Command{guardian, init, enter}
}
