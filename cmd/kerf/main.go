// Command kerf is the DRA driver for GPU partitioning: the node plugin and the
// tools around it. Each subcommand has a file of its own here; the work is in pkg.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set at link time.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kerf:", err)
		os.Exit(1)
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "kerf",
		Short:         "Partition and share GPUs in Kubernetes, claim by claim",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newPluginCommand(), newCleanupCommand(), newExportSlicesCommand(), newSimCommand())
	return root
}
