// Command demo shows kerf at work without a GPU: it brings a local cluster up,
// installs the chart with simulated GPUs, runs the examples and prints what each
// container was given and what it sees.
//
// It goes the way of a user, through the command lines of the cluster program,
// kubectl and helm, and can be repeated. It takes nothing down.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	var c cluster
	flag.StringVar(&c.program, "cluster", "bin/cluster", "the cluster program")
	flag.StringVar(&c.name, "name", "demo", "name of the cluster")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, c)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, c cluster) error {
	if os.Geteuid() != 0 {
		return errors.New("root is needed, for the namespaces and mounts of the local cluster: " +
			"run it with sudo, or as root in a virtual machine")
	}
	return newDemo(c, os.Stdout).run(ctx)
}
