// Package image owns container images made from files of this machine: no daemon, no registry, no base image.
//
// The same files always make the same image, bit by bit.
package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kerf-project/kerf/test/cluster/internal/elfdeps"
)

// Mapping puts a file, a directory or a symbolic link of this machine at an absolute path of the image. A Dst that ends
// with a slash is a directory in which the source keeps its name.
type Mapping struct {
	Src, Dst string
}

// ParseMapping reads SRC:DST.
func ParseMapping(text string) (Mapping, error) {
	src, dst, ok := strings.Cut(text, ":")
	if !ok || src == "" || !path.IsAbs(dst) {
		return Mapping{}, fmt.Errorf("%q: expected SRC:DST with an absolute DST", text)
	}
	if strings.HasSuffix(dst, "/") {
		dst = path.Join(dst, filepath.Base(src))
	}
	return Mapping{Src: src, Dst: path.Clean(dst)}, nil
}

// entry is one file of the layer. Owner, time and all but the executable bit are fixed, so that neither the clock nor
// the umask changes an image.
type entry struct {
	mode   int64
	source string // a file of this machine
	text   string // contents that no file has
	link   string
}

// tree is the layer: path without leading slash -> entry.
type tree map[string]entry

const (
	dirMode        = 0o755
	fileMode       = 0o644
	executableMode = 0o755
)

// newTree collects the files of an image, with the shared libraries that they need.
func newTree(spec Spec, resolver elfdeps.Resolver) (tree, error) {
	t := tree{}
	t.put("/tmp", entry{mode: 0o1777 | tarDir})
	t.put("/etc/passwd", entry{mode: fileMode, text: "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"})
	t.put("/etc/group", entry{mode: fileMode, text: "root:x:0:\nnobody:x:65534:\n"})
	for _, m := range spec.Files {
		if err := t.add(m); err != nil {
			return nil, err
		}
	}
	for dst, target := range spec.Links {
		t.put(dst, entry{mode: 0o777, link: target})
	}
	for dst, text := range spec.Scripts {
		t.put(dst, entry{mode: executableMode, text: text})
	}
	var sources []string
	for _, e := range t {
		if e.source != "" {
			sources = append(sources, e.source)
		}
	}
	slices.Sort(sources)
	libraries, err := resolver.Resolve(slices.Compact(sources))
	if err != nil {
		return nil, err
	}
	for _, l := range libraries {
		if _, ok := t[strings.TrimPrefix(l.Dest, "/")]; !ok {
			t.put(l.Dest, entry{mode: executableMode, source: l.Source})
		}
	}
	return t, nil
}

// tarDir marks directories in entry.mode; tar itself has a type flag for it.
const tarDir = 1 << 30

func (t tree) put(dst string, e entry) {
	dst = strings.TrimPrefix(path.Clean(dst), "/")
	for dir := path.Dir(dst); dir != "."; dir = path.Dir(dir) {
		if _, ok := t[dir]; !ok {
			t[dir] = entry{mode: dirMode | tarDir}
		}
	}
	t[dst] = e
}

func (t tree) add(m Mapping) error {
	// The source itself may be a link to what is meant; links below it are copied as links.
	src, err := filepath.EvalSymlinks(m.Src)
	if err != nil {
		return fmt.Errorf("add a file to the image: %w", err)
	}
	return filepath.WalkDir(src, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("add files to the image: %w", err)
		}
		relative, err := filepath.Rel(src, file)
		if err != nil {
			return fmt.Errorf("add files to the image: %w", err)
		}
		e, err := describe(file, d)
		if err != nil {
			return err
		}
		t.put(path.Join(m.Dst, filepath.ToSlash(relative)), e)
		return nil
	})
}

func describe(file string, d fs.DirEntry) (entry, error) {
	info, err := d.Info()
	if err != nil {
		return entry{}, fmt.Errorf("add a file to the image: %w", err)
	}
	switch {
	case info.IsDir():
		return entry{mode: dirMode | tarDir}, nil
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(file)
		if err != nil {
			return entry{}, fmt.Errorf("add a link to the image: %w", err)
		}
		return entry{mode: 0o777, link: target}, nil
	case info.Mode().IsRegular():
		if info.Mode()&0o111 != 0 {
			return entry{mode: executableMode, source: file}, nil
		}
		return entry{mode: fileMode, source: file}, nil
	}
	return entry{}, fmt.Errorf("add %s to the image: neither a file, a directory nor a symbolic link", file)
}

// epoch is the time of every file.
var epoch = time.Unix(0, 0)

// write writes the layer.
func (t tree) write(out io.Writer) error {
	w := tar.NewWriter(out)
	var names []string
	for name := range t {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := t[name].write(w, name); err != nil {
			return fmt.Errorf("write /%s to the image: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("finish the layer: %w", err)
	}
	return nil
}

func (e entry) write(w *tar.Writer, name string) (err error) {
	header := &tar.Header{Name: name, Mode: e.mode &^ tarDir, ModTime: epoch, Format: tar.FormatPAX}
	switch {
	case e.mode&tarDir != 0:
		header.Typeflag, header.Name = tar.TypeDir, name+"/"
		return w.WriteHeader(header)
	case e.link != "":
		header.Typeflag, header.Linkname = tar.TypeSymlink, e.link
		return w.WriteHeader(header)
	case e.source == "":
		header.Typeflag, header.Size = tar.TypeReg, int64(len(e.text))
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		_, err := io.WriteString(w, e.text)
		return err
	}
	file, err := os.Open(e.source)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	header.Typeflag, header.Size = tar.TypeReg, info.Size()
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(w, file)
	return err
}
