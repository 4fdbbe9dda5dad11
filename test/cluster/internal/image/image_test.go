package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// files makes a directory with one of everything.
func files(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"bin/kerf": 0o700, "charts/values.yaml": 0o600, "charts/templates/a.yaml": 0o664} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("text of "+name), mode); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"charts/link.yaml": "values.yaml", "kerf": "bin/kerf"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func spec(dir string) Spec {
	return Spec{
		Name:       "kerf:dev",
		Files:      []Mapping{{dir + "/kerf", "/usr/bin/kerf"}, {dir + "/charts", "/charts"}},
		Links:      map[string]string{"/bin/kerf": "../usr/bin/kerf"},
		Scripts:    map[string]string{"/bin/idle": idle},
		Entrypoint: []string{"/usr/bin/kerf"},
		Env:        []string{"MODE=test"},

		Architecture: "amd64",
	}
}

func TestGolden(t *testing.T) {
	made, err := New(spec(files(t)))
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := made.Write(&archive); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	list(t, &got, archive.Bytes(), "")
	path := filepath.Join("testdata", "image.golden")
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run the test with -update)", err)
	}
	if got.String() != string(want) {
		t.Errorf("%s differs (run the test with -update, and look at the difference):\n%s", path, got.String())
	}
}

// list shows an archive, and the layer in it; it checks that every blob has the name of its digest.
func list(t *testing.T, out io.Writer, archive []byte, indent string) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(out, "%s%c %04o %d:%d %d %4d %s", indent, h.Typeflag, h.Mode, h.Uid, h.Gid, h.ModTime.Unix(), h.Size, h.Name)
		if h.Linkname != "" {
			fmt.Fprintf(out, " -> %s", h.Linkname)
		}
		fmt.Fprintln(out)
		if digest, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok {
			if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != digest {
				t.Errorf("blob %s has another digest", h.Name)
			}
		}
		switch {
		case json.Valid(content):
			fmt.Fprintf(out, "%s  %s\n", indent, content)
		case indent == "":
			list(t, out, content, "    ")
		}
	}
}

func TestSameFilesSameImage(t *testing.T) {
	dir := files(t)
	build := func() []byte {
		made, err := New(spec(dir))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "image.tar")
		if err := made.WriteFile(path); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	before := build()
	kerf := filepath.Join(dir, "bin/kerf")
	if err := errors.Join(os.Chtimes(kerf, time.Time{}, time.Unix(1e9, 0)), os.Chmod(kerf, 0o755)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, build()) {
		t.Error("the time or the owner's permissions of a file change the image")
	}
	if err := os.WriteFile(kerf, []byte("other text"), 0o755); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(before, build()) {
		t.Error("the text of a file does not change the image")
	}
}

func TestChangedWhileWriting(t *testing.T) {
	dir := files(t)
	made, err := New(spec(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/kerf"), make([]byte, 4096), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := made.WriteFile(path); err == nil {
		t.Error("an image of files that changed was written")
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

func TestNormalize(t *testing.T) {
	for short, long := range map[string]string{
		"kerf:dev":                 "docker.io/library/kerf:dev",
		"kerf":                     "docker.io/library/kerf:latest",
		"team/kerf:1":              "docker.io/team/kerf:1",
		"example.com/kerf":         "example.com/kerf:latest",
		"localhost/kerf:dev":       "localhost/kerf:dev",
		"example.com:5000/kerf":    "example.com:5000/kerf:latest",
		"docker.io/library/kerf:1": "docker.io/library/kerf:1",
	} {
		if got := Normalize(short); got != long {
			t.Errorf("Normalize(%q) = %q, want %q", short, got, long)
		}
	}
}

func TestParseMapping(t *testing.T) {
	for text, want := range map[string]Mapping{
		"bin/kerf:/usr/bin/kerf": {"bin/kerf", "/usr/bin/kerf"},
		"bin/kerf:/usr/bin/":     {"bin/kerf", "/usr/bin/kerf"},
		"charts:/a/../charts":    {"charts", "/charts"},
	} {
		if got, err := ParseMapping(text); err != nil || got != want {
			t.Errorf("ParseMapping(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "kerf", "kerf:", ":/kerf", "kerf:relative"} {
		if got, err := ParseMapping(text); err == nil {
			t.Errorf("ParseMapping(%q) = %v, want an error", text, got)
		}
	}
}
