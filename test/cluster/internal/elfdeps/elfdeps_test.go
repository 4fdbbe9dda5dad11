package elfdeps

import (
	"debug/elf"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// host is a root with a loader, libraries in several places, and a program that uses them.
func host(t *testing.T) (root, program string) {
	t.Helper()
	root = t.TempDir()
	at := func(path string) string { return filepath.Join(root, path) }
	object{}.write(t, at("/lib64/ld-linux-x86-64.so.2"))
	object{needed: []string{"libm.so.6"}}.write(t, at("/lib/x86_64-linux-gnu/libc.so.6"))
	object{}.write(t, at("/usr/lib/x86_64-linux-gnu/libm.so.6"))
	// The same name for another machine comes first in the search and must be passed over.
	object{machine: elf.EM_386}.write(t, at("/opt/tool/libextra.so.1"))
	object{}.write(t, at("/usr/local/lib/libextra.so.1"))
	object{}.write(t, at("/app/lib/libown.so"))
	program = at("/app/bin/program")
	object{
		loader:  "/lib64/ld-linux-x86-64.so.2",
		needed:  []string{"libc.so.6", "libextra.so.1", "libown.so"},
		runPath: "$ORIGIN/../lib",
	}.write(t, program)
	for file, text := range map[string]string{
		"/etc/ld.so.conf":               "include /etc/ld.so.conf.d/*.conf\n",
		"/etc/ld.so.conf.d/tool.conf":   "# comment\n/opt/tool\n",
		"/etc/ld.so.conf.d/locals.conf": "/usr/local/lib # trailing\n\n",
	} {
		if err := os.MkdirAll(filepath.Dir(at(file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at(file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root, program
}

func TestResolve(t *testing.T) {
	root, program := host(t)
	libraries, err := Resolver{Root: root}.Resolve([]string{program})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range libraries {
		got = append(got, l.Dest+" <- "+strings.TrimPrefix(l.Source, root))
	}
	want := []string{
		"/lib/x86_64-linux-gnu/libc.so.6 <- /lib/x86_64-linux-gnu/libc.so.6",
		"/lib64/ld-linux-x86-64.so.2 <- /lib64/ld-linux-x86-64.so.2",
		// Neither directory is one that a loader searches without configuration.
		"/usr/lib/libextra.so.1 <- /usr/local/lib/libextra.so.1",
		"/usr/lib/libown.so <- /app/lib/libown.so",
		"/usr/lib/x86_64-linux-gnu/libm.so.6 <- /usr/lib/x86_64-linux-gnu/libm.so.6",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestResolveNothing(t *testing.T) {
	dir := t.TempDir()
	static := filepath.Join(dir, "static")
	object{}.write(t, static)
	script := filepath.Join(dir, "script")
	empty := filepath.Join(dir, "empty")
	for file, text := range map[string]string{script: "#!/bin/sh\n", empty: ""} {
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	libraries, err := Resolver{Root: dir}.Resolve([]string{static, script, empty})
	if err != nil || len(libraries) != 0 {
		t.Errorf("got %v, %v; want nothing", libraries, err)
	}
}

func TestResolveMissing(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	object{needed: []string{"libgone.so.3"}}.write(t, program)
	_, err := Resolver{Root: dir}.Resolve([]string{program})
	if err == nil || !strings.Contains(err.Error(), "libgone.so.3") || !strings.Contains(err.Error(), program) {
		t.Errorf("error %v does not name the library and who needs it", err)
	}
}
