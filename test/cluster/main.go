// Command cluster runs a real one-node Kubernetes in private Linux namespaces, from binaries built out of Go modules.
//
// It needs root, no container runtime and no image registry, and touches nothing of the host but its own run directory
// and cache. docs/local-cluster.md tells how it works.
package main

import (
	"os"

	"github.com/kerf-project/kerf/test/cluster/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
