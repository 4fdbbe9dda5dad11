package kube

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestGolden(t *testing.T) {
	spec := Spec{
		NodeName:  "kerf-node",
		ConfigDir: "/run/kerf-cluster/golden/config",
		Binary: map[string]string{
			"containerd-shim-runc-v2": "/cache/containerd/containerd-shim-runc-v2",
			"runc":                    "/cache/runc/runc",
		},
		CNIDir:    "/usr/lib/cni",
		Verbosity: 2,
	}
	gated := spec
	gated.FeatureGates, gated.RuntimeConfig = "A=true,B=false", "resource.k8s.io/v1beta2=true"
	for name, s := range map[string]Spec{"default": spec, "gated": gated} {
		t.Run(name, func(t *testing.T) {
			secrets := 0
			files, err := s.Files(func() string { secrets++; return fmt.Sprintf("secret%d", secrets) })
			if err != nil {
				t.Fatal(err)
			}
			var all strings.Builder
			for _, file := range slices.Sorted(maps.Keys(files)) {
				fmt.Fprintf(&all, "==> %s\n%s\n", file, files[file])
			}
			for _, c := range s.Components() {
				fmt.Fprintf(&all, "==> %s\n%s\n\n", c.Name, strings.Join(c.Args, "\n"))
			}
			golden(t, name+".golden", all.String())
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run the test with -update)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run the test with -update, and look at the difference):\n%s", path, got)
	}
}
