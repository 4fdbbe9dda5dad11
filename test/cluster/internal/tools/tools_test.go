package tools

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// module makes a tool of a module in a directory of its own, and a go command that is the given script.
func module(t *testing.T, script string) (Builder, Tool) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module m\n\nrequire (\n\texample.com/tool v1.2.3\n\texample.com/tool/other v9.9.9\n)\n",
		"go.sum": "sum\n",
		"go":     "#!/bin/sh\n" + script,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tool := Tool{
		Name: "tool", Dir: dir, Pins: "example.com/tool",
		Packages:  map[string]string{"tool": "example.com/tool/cmd/tool"},
		Variables: []string{"v.version=VERSION", "v.minor=MINOR"},
	}
	return Builder{Tools: []Tool{tool}, Cache: t.TempDir(), Out: io.Discard, Go: filepath.Join(dir, "go")}, tool
}

// succeed is a go command that writes to the file after -o, and counts its calls.
const succeed = `
echo call >> "$(dirname "$0")/calls"
sleep 0.2
while [ "$1" != -o ]; do shift; done
echo binary > "$2"
`

func TestBuildOnceForManyCallers(t *testing.T) {
	builder, tool := module(t, succeed)
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			binaries, err := builder.Build(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			if raw, err := os.ReadFile(binaries["tool"]); err != nil || string(raw) != "binary\n" {
				t.Errorf("the executable is %q, %v", raw, err)
			}
		})
	}
	wait.Wait()
	calls, err := os.ReadFile(filepath.Join(tool.Dir, "calls"))
	if err != nil || string(calls) != "call\n" {
		t.Errorf("go was called %d times, %v; want once", strings.Count(string(calls), "call"), err)
	}
	if missing, err := builder.Missing(); err != nil || len(missing) > 0 {
		t.Errorf("missing after the build: %v, %v", missing, err)
	}
}

func TestFailedBuildIsNotCached(t *testing.T) {
	builder, _ := module(t, succeed+"echo cannot compile >&2; exit 1")
	_, err := builder.Build(t.Context())
	if err == nil || !strings.Contains(err.Error(), "cannot compile") {
		t.Errorf("error %v does not show the compiler's", err)
	}
	if missing, err := builder.Missing(); err != nil || len(missing) != 1 {
		t.Errorf("missing after a failed build: %v, %v; want the tool", missing, err)
	}
}

func TestCancelledBuildEndsItsChildren(t *testing.T) {
	builder, _ := module(t, "sleep 60")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := builder.Build(ctx); err == nil {
		t.Error("a cancelled build succeeded")
	}
	// Its output would be waited for as long as a child holds it.
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %s to end", took)
	}
}

func TestVersionAndID(t *testing.T) {
	_, tool := module(t, succeed)
	version, err := tool.Version()
	if err != nil || version != "v1.2.3" {
		t.Fatalf("version %q, %v; want v1.2.3", version, err)
	}
	if args := tool.args(version); !slices.Contains(args, "-ldflags=-s -w -X v.version=v1.2.3 -X v.minor=2") {
		t.Errorf("the linker is not told the version: %q", args)
	}
	before, err := tool.id(version)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tool.Dir, "go.sum"), []byte("other\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	after, err := tool.id(version)
	if err != nil || before == after {
		t.Errorf("another go.sum has the same build %q, %v", after, err)
	}
}

func TestCatalogIsPinned(t *testing.T) {
	source, err := Source()
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range Catalog(source, DefaultKubernetes) {
		version, err := tool.Version()
		if err != nil {
			t.Error(err)
		}
		if tool.Name == "kubernetes" && version != "v"+DefaultKubernetes {
			t.Errorf("tools/kubernetes pins %s, but DefaultKubernetes is %s", version, DefaultKubernetes)
		}
		if _, err := tool.id(version); err != nil {
			t.Error(err)
		}
	}
	if _, err := Catalog(source, "1.2.3")[0].Version(); err == nil || !strings.Contains(err.Error(), "tools/kubernetes-1.2.3") {
		t.Errorf("error %v does not say where the module of another version belongs", err)
	}
}
