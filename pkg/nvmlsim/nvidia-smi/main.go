// Command nvidia-smi is the one of a simulated node's driver. It runs in
// containers, where the real one would ask the driver, and tells what the device
// nodes that the container really holds stand for. On the node itself it also sets
// time slice and compute mode. It is static and uses the standard library alone,
// because it meets any container image.
package main

import (
	"os"
	"path/filepath"

	"github.com/kerf-project/kerf/pkg/nvmlsim/identity"
)

func main() {
	// Beside the program, so that it works in the driver's root as well as where a container sees it.
	path, state := filepath.Join(identity.Dir, identity.File), ""
	if self, err := os.Executable(); err == nil {
		if beside := filepath.Join(filepath.Dir(self), "../share", filepath.Base(identity.Dir), identity.File); exists(beside) {
			path = beside
		}
		// Of the node's state directory the driver's root is "driver"; a container has no more than the program.
		state = filepath.Join(filepath.Dir(self), "../../../state.json")
	}
	t := tool{devices: nodes{root: "/dev"}, identity: path, state: state, out: os.Stdout}
	os.Exit(t.run(os.Args[1:]))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
