// Package elfdeps finds the shared libraries and the loader that dynamically linked executables need, as the loader itself
// would, so that they can be packed beside them.
//
// What a program opens by name while it runs (dlopen) is not seen here.
package elfdeps

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Library is a file to pack.
type Library struct {
	// Source is where it lies on this machine.
	Source string
	// Dest is where the loader finds it without a cache or configuration.
	Dest string
}

// Resolver looks for libraries below a root.
type Resolver struct {
	// Root is "/" when empty.
	Root string
}

// triplets name the multiarch directories, which Debian's loaders search without configuration.
var triplets = map[elf.Machine]string{
	elf.EM_X86_64:  "x86_64-linux-gnu",
	elf.EM_AARCH64: "aarch64-linux-gnu",
}

// Resolve returns the libraries of all given files and, recursively, of those libraries, sorted by Dest. Files that are
// not ELF have none. The files are paths of this machine, not below the root.
func (r Resolver) Resolve(files []string) ([]Library, error) {
	configured, err := r.configured("/etc/ld.so.conf")
	if err != nil {
		return nil, err
	}
	found := map[string]Library{}
	queue := slices.Clone(files)
	for len(queue) > 0 {
		file := queue[0]
		queue = queue[1:]
		libraries, err := r.direct(file, configured)
		if err != nil {
			return nil, err
		}
		for _, l := range libraries {
			if _, ok := found[l.Dest]; !ok {
				found[l.Dest] = l
				queue = append(queue, l.Source)
			}
		}
	}
	var all []Library
	for _, l := range found {
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b Library) int { return strings.Compare(a.Dest, b.Dest) })
	return all, nil
}

// direct returns the loader and the libraries that a file itself names.
func (r Resolver) direct(file string, configured []string) ([]Library, error) {
	opened, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("look for shared libraries: %w", err)
	}
	defer opened.Close()
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := io.ReadFull(opened, magic); err != nil || string(magic) != elf.ELFMAG {
		return nil, nil //nolint:nilerr // too short for a magic number is not ELF
	}
	object, err := elf.NewFile(opened)
	if err != nil {
		return nil, fmt.Errorf("look for shared libraries of %s: %w", file, err)
	}
	var all []Library
	loader, err := interpreter(object)
	if err != nil {
		return nil, fmt.Errorf("read the loader of %s: %w", file, err)
	}
	if loader != "" {
		all = append(all, Library{Source: r.path(loader), Dest: loader})
	}
	needed, err := object.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("read the shared libraries of %s: %w", file, err)
	}
	if len(needed) == 0 {
		return all, nil
	}
	own, err := runPath(object, file)
	if err != nil {
		return nil, err
	}
	for _, name := range needed {
		library, err := r.find(name, object, own, configured)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, library)
	}
	return all, nil
}

// find looks where the loader would. A library outside of the loader's own directories is packed into one of them: the
// image has neither the cache nor the directory layout that the other place depends on.
func (r Resolver) find(name string, user *elf.File, own, configured []string) (Library, error) {
	defaults := []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib"}
	if triplet := triplets[user.Machine]; triplet != "" {
		defaults = append([]string{"/lib/" + triplet, "/usr/lib/" + triplet}, defaults...)
	}
	for _, dir := range own {
		if path := filepath.Join(dir, name); fits(path, user) {
			return Library{Source: path, Dest: filepath.Join("/usr/lib", name)}, nil
		}
	}
	for _, dir := range append(configured, defaults...) {
		path := r.path(filepath.Join(dir, name))
		if !fits(path, user) {
			continue
		}
		if !slices.Contains(defaults, dir) {
			dir = "/usr/lib"
		}
		return Library{Source: path, Dest: filepath.Join(dir, name)}, nil
	}
	return Library{}, fmt.Errorf("shared library %s is in no directory that the loader searches", name)
}

// fits says whether the library exists and is for the same kind of machine: a 32-bit library may bear the same name.
func fits(path string, user *elf.File) bool {
	library, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer library.Close()
	return library.Class == user.Class && library.Machine == user.Machine
}

func interpreter(object *elf.File) (string, error) {
	for _, p := range object.Progs {
		if p.Type == elf.PT_INTERP {
			raw, err := io.ReadAll(p.Open())
			return strings.TrimRight(string(raw), "\x00"), err
		}
	}
	return "", nil
}

func runPath(object *elf.File, file string) ([]string, error) {
	origin, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		return nil, fmt.Errorf("find the directory of %s: %w", file, err)
	}
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		values, err := object.DynString(tag)
		if err != nil {
			return nil, fmt.Errorf("read the search path of %s: %w", file, err)
		}
		for _, value := range values {
			for dir := range strings.SplitSeq(value, ":") {
				dirs = append(dirs, strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(dir))
			}
		}
	}
	return dirs, nil
}

// configured reads the loader's configuration file, which names directories and includes other files.
func (r Resolver) configured(file string) ([]string, error) {
	raw, err := os.ReadFile(r.path(file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the loader's configuration: %w", err)
	}
	var dirs []string
	for line := range strings.Lines(string(raw)) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		pattern, include := strings.CutPrefix(line, "include ")
		switch {
		case line == "":
		case include:
			matches, err := filepath.Glob(r.path(strings.TrimSpace(pattern)))
			if err != nil {
				return nil, fmt.Errorf("read the loader's configuration: %w", err)
			}
			for _, match := range matches {
				more, err := r.configured(strings.TrimPrefix(match, strings.TrimSuffix(r.path("/"), "/")))
				if err != nil {
					return nil, err
				}
				dirs = append(dirs, more...)
			}
		default:
			dirs = append(dirs, line)
		}
	}
	return dirs, nil
}

func (r Resolver) path(path string) string { return filepath.Join("/", r.Root, path) }
