package tools

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// Source finds the directory test/cluster of the repository, from which the tools are built: the one that this program
// was compiled from, or that of the working directory where it has moved.
func Source() (string, error) {
	var candidates []string
	if dir := os.Getenv("KERF_CLUSTER_SOURCE"); dir != "" {
		candidates = append(candidates, dir)
	}
	if _, file, _, ok := runtime.Caller(0); ok {
		candidates = append(candidates, filepath.Join(filepath.Dir(file), "../.."))
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the working directory: %w", err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		candidates = append(candidates, dir, filepath.Join(dir, "test/cluster"))
	}
	for _, candidate := range candidates {
		if _, err := os.Stat(filepath.Join(candidate, "tools/kubernetes/go.mod")); err == nil {
			return filepath.Abs(candidate)
		}
	}
	return "", fmt.Errorf("the sources of the cluster are not at %s: run this inside the repository, "+
		"or set KERF_CLUSTER_SOURCE to its directory test/cluster", candidates[0])
}
