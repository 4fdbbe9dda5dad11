// Command kerf is the DRA driver for GPU partitioning: the node plugin and the
// tools around it. Each subcommand has a file of its own here; the work is in pkg.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set at link time.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	code := 1
	var exit *exitError
	if errors.As(err, &exit) {
		code, err = exit.code, exit.err
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kerf:", err)
	}
	os.Exit(code)
}

// exitError ends the program with a code of its own. Without an error, all that
// is to be said has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "kerf",
		Short:         "Partition and share GPUs in Kubernetes, claim by claim",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: displayName(os.Args[0])},
	}
	root.AddCommand(newPluginCommand(), newControllerCommand(), newDiagnoseCommand(), newExplainCommand(), newSimulateCommand(), newExportSlicesCommand(),
		newHintCommand(), newCleanupCommand(), newSimCommand())
	return root
}

// displayName is how help names the program: kubectl runs kubectl-kerf as "kubectl kerf".
func displayName(program string) string {
	if strings.HasPrefix(filepath.Base(program), "kubectl-kerf") {
		return "kubectl kerf"
	}
	return "kerf"
}
