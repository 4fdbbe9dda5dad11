package diagnose

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/pelletier/go-toml"
)

// containerRuntime is what the configuration of a node's container runtime says of CDI.
type containerRuntime struct {
	// name is containerd or CRI-O, file its main configuration file.
	name, file string
	// cdi says whether it injects CDI devices; unknown, where only its version would tell.
	cdi, unknown bool
	specDirs     []string
	// defaultRuntime is the program that runs containers which ask for none, where the configuration says so.
	defaultRuntime string
}

const (
	containerdName = "containerd"
	crioName       = "CRI-O"
)

// The directories where runtimes look for CDI specs unless told otherwise (CDI specification).
var defaultSpecDirs = []string{"/etc/cdi", "/var/run/cdi"}

// errNoRuntime says that neither a process nor a configuration file of a known runtime is to be seen.
var errNoRuntime = errors.New("no containerd and no CRI-O is to be seen on the node")

// runtime finds the node's container runtime by its process and, where none is to be seen, by its configuration.
func (f *facts) runtime() (containerRuntime, error) {
	version := ""
	if f.api.node != nil {
		version = f.api.node.Status.NodeInfo.ContainerRuntimeVersion
	}
	for _, p := range f.programs {
		switch {
		case p.name == "containerd" && !strings.HasPrefix(version, "cri-o:"):
			return readContainerd(f.NodeRoot, orDefault(p.option("--config", "-config", "-c"), "/etc/containerd/config.toml"), version)
		case p.name == "crio" && !strings.HasPrefix(version, "containerd:"):
			return readCRIO(f.NodeRoot, orDefault(p.option("--config", "-c"), "/etc/crio/crio.conf"), orDefault(p.option("--config-dir", "-d"), "/etc/crio/crio.conf.d"))
		}
	}
	if _, err := os.Stat(filepath.Join(f.NodeRoot, "etc/containerd/config.toml")); err == nil || strings.HasPrefix(version, "containerd:") {
		return readContainerd(f.NodeRoot, "/etc/containerd/config.toml", version)
	}
	if _, err := os.Stat(filepath.Join(f.NodeRoot, "etc/crio")); err == nil || strings.HasPrefix(version, "cri-o:") {
		return readCRIO(f.NodeRoot, "/etc/crio/crio.conf", "/etc/crio/crio.conf.d")
	}
	return containerRuntime{}, errNoRuntime
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// readContainerd reads containerd's configuration with all that it imports. The
// version is that of the node's status, "containerd://2.1.4", or empty.
func readContainerd(root, file, version string) (containerRuntime, error) {
	r := containerRuntime{name: containerdName, file: file, specDirs: defaultSpecDirs}
	second := strings.HasPrefix(version, "containerd://2.")
	config, err := readTOML(root, file)
	if errors.Is(err, fs.ErrNotExist) {
		config, err = &toml.Tree{}, nil // containerd runs on its defaults.
	}
	if err != nil {
		return r, err
	}
	format, _ := config.Get("version").(int64)
	trees := []*toml.Tree{config}
	imports, err := importsOf(root, file, config)
	if err != nil {
		return r, err
	}
	for _, path := range imports {
		imported, err := readTOML(root, path)
		if err != nil {
			return r, err
		}
		trees = append(trees, imported)
	}
	// Format 3 came with containerd 2.0, which has CDI on by default; 1.7 has it off, and what is older has none.
	second = second || format >= 3
	r.cdi, r.unknown = second, !second && version == ""
	for _, t := range trees {
		// One name in format 2, the other in format 3.
		for _, plugin := range []string{"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"} {
			section, ok := t.GetPath([]string{"plugins", plugin}).(*toml.Tree)
			if !ok {
				continue
			}
			if !second {
				// Before 2.0 a later file replaces the whole section of a plugin.
				r.cdi, r.unknown, r.specDirs, r.defaultRuntime = false, version == "", defaultSpecDirs, ""
			}
			r.readCRI(section)
		}
	}
	return r, nil
}

// readCRI reads the section of containerd's Kubernetes plugin.
func (r *containerRuntime) readCRI(section *toml.Tree) {
	if on, ok := section.Get("enable_cdi").(bool); ok {
		r.cdi, r.unknown = on, false
	}
	if dirs, ok := stringsOf(section.Get("cdi_spec_dirs")); ok {
		r.specDirs = dirs
	}
	if name, ok := section.GetPath([]string{"containerd", "default_runtime_name"}).(string); ok {
		r.defaultRuntime = name
		if program, ok := section.GetPath([]string{"containerd", "runtimes", name, "options", "BinaryName"}).(string); ok {
			r.defaultRuntime = filepath.Base(program)
		}
	}
}

// importsOf are the files that a configuration of containerd's imports, in their
// order: names or patterns, those that are relative beside the file itself.
func importsOf(root, file string, config *toml.Tree) ([]string, error) {
	patterns, _ := stringsOf(config.Get("imports"))
	var files []string
	for _, p := range patterns {
		if !filepath.IsAbs(p) {
			p = filepath.Join(filepath.Dir(file), p)
		}
		found, err := filepath.Glob(filepath.Join(root, p))
		if err != nil {
			return nil, fmt.Errorf("%s: imports %q: %w", file, p, err)
		}
		for _, path := range found {
			files = append(files, strings.TrimPrefix(path, filepath.Clean(root)))
		}
	}
	return files, nil
}

// readCRIO reads CRI-O's configuration: a file, and those of a directory in the
// order of their names. CRI-O has no switch for CDI, only the directories.
func readCRIO(root, file, dir string) (containerRuntime, error) {
	r := containerRuntime{name: crioName, file: file, cdi: true, specDirs: defaultSpecDirs}
	files, err := filepath.Glob(filepath.Join(root, dir, "*"))
	if err != nil {
		return r, err
	}
	slices.Sort(files)
	for i := range files {
		files[i] = filepath.Join(dir, filepath.Base(files[i]))
	}
	programs := map[string]string{}
	for _, path := range append([]string{file}, files...) {
		config, err := readTOML(root, path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return r, err
		}
		if dirs, ok := stringsOf(config.GetPath([]string{"crio", "runtime", "cdi_spec_dirs"})); ok {
			r.specDirs = dirs
		}
		if name, ok := config.GetPath([]string{"crio", "runtime", "default_runtime"}).(string); ok {
			r.defaultRuntime = name
		}
		if runtimes, ok := config.GetPath([]string{"crio", "runtime", "runtimes"}).(*toml.Tree); ok {
			for _, name := range runtimes.Keys() {
				if program, ok := runtimes.GetPath([]string{name, "runtime_path"}).(string); ok {
					programs[name] = filepath.Base(program)
				}
			}
		}
	}
	if program := programs[r.defaultRuntime]; program != "" {
		r.defaultRuntime = program
	}
	return r, nil
}

func readTOML(root, path string) (*toml.Tree, error) {
	// Links lead to other files of the node, not to some of this process' own root.
	full, err := securejoin.SecureJoin(root, path)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(full)
	if err != nil {
		return nil, err
	}
	tree, err := toml.LoadBytes(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return tree, nil
}

func stringsOf(value any) ([]string, bool) {
	all, ok := value.([]any)
	if !ok {
		return nil, false
	}
	texts := []string{}
	for _, v := range all {
		if s, ok := v.(string); ok {
			texts = append(texts, s)
		}
	}
	return texts, true
}

// looksIn reports whether the runtime looks for specs in a directory of the host.
func (r containerRuntime) looksIn(dir string) bool {
	return slices.ContainsFunc(r.specDirs, func(d string) bool { return sameDir(d, dir) })
}

// sameDir compares directories by name. /var/run is a link to /run on every node.
func sameDir(a, b string) bool {
	clean := func(dir string) string {
		dir = filepath.Clean(dir)
		if rest, ok := strings.CutPrefix(dir, "/var/run/"); ok {
			return "/run/" + rest
		}
		return dir
	}
	return clean(a) == clean(b)
}
