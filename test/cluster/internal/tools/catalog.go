// Package tools owns the executables of a cluster: which there are, at which version, and the cache of built ones.
//
// Each comes from a tool module below test/cluster/tools that pins it. A built tool is kept under the hash of what it was
// built from; a build that did not finish is never taken for one.
package tools

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
)

// DefaultKubernetes names the version that tools/kubernetes pins; other versions have a module directory of their own.
const DefaultKubernetes = "1.37.2"

// Tool is a set of executables that are built together, from one module.
type Tool struct {
	// Name is for people and for the cache.
	Name string
	// Dir is the directory of the module.
	Dir string
	// Pins is the module path whose version is the tool's version.
	Pins string
	// Packages maps the name of an executable to its package.
	Packages map[string]string
	// Tags are build tags.
	Tags string
	// Env is added to the environment of the build.
	Env []string
	// Variables are set by the linker; "VERSION" in a value stands for the tool's version.
	Variables []string
}

// Catalog lists all tools. source is the directory test/cluster.
func Catalog(source, kubernetes string) []Tool {
	const containerd = "github.com/containerd/containerd/v2/"
	dir := filepath.Join(source, "tools", "kubernetes")
	if kubernetes != DefaultKubernetes {
		dir += "-" + kubernetes
	}
	return []Tool{
		{
			// All in one build, for they share most of their packages.
			Name: "kubernetes", Dir: dir, Pins: "k8s.io/kubernetes",
			Packages: commands("k8s.io/kubernetes/cmd/", "kube-apiserver", "kube-controller-manager", "kube-scheduler",
				"kube-proxy", "kubelet", "kubectl"),
			Variables: kubernetesVariables(),
		},
		{
			Name: "etcd", Dir: filepath.Join(source, "tools/etcd"), Pins: "go.etcd.io/etcd/server/v3",
			Packages: map[string]string{"etcd": "go.etcd.io/etcd/server/v3"},
		},
		{
			Name: "runc", Dir: filepath.Join(source, "tools/runc"), Pins: "github.com/opencontainers/runc",
			Packages:  map[string]string{"runc": "github.com/opencontainers/runc"},
			Tags:      "seccomp",
			Variables: []string{"main.version=VERSION"},
		},
		{
			Name: "containerd", Dir: filepath.Join(source, "tools/containerd"), Pins: "github.com/containerd/containerd/v2",
			Packages:  commands(containerd+"cmd/", "containerd", "containerd-shim-runc-v2", "ctr"),
			Tags:      "no_btrfs,no_devmapper,no_zfs,no_aufs",
			Variables: []string{containerd + "version.Version=VERSION"},
		},
		{
			Name: "helm", Dir: filepath.Join(source, "tools/helm"), Pins: "helm.sh/helm/v4",
			Packages:  map[string]string{"helm": "helm.sh/helm/v4/cmd/helm"},
			Variables: []string{"helm.sh/helm/v4/internal/version.version=VERSION"},
		},
		{
			// Our own module has no version; the hash of its sources tells one build from another.
			Name: "pause", Dir: source,
			Packages: map[string]string{"pause": "./images/pause"},
			Env:      []string{"CGO_ENABLED=0"},
		},
	}
}

func commands(prefix string, names ...string) map[string]string {
	all := map[string]string{}
	for _, name := range names {
		all[name] = prefix + name
	}
	return all
}

// kubernetesVariables say the version: without them the API server reports v0.0.0, which clients and charts refuse.
func kubernetesVariables() []string {
	var all []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		all = append(all, pkg+".gitVersion=VERSION", pkg+".gitMajor=MAJOR", pkg+".gitMinor=MINOR", pkg+".gitTreeState=clean")
	}
	return all
}

// Version reads what the module pins.
func (t Tool) Version() (string, error) {
	if t.Pins == "" {
		return "v0", nil
	}
	raw, err := os.ReadFile(filepath.Join(t.Dir, "go.mod"))
	if os.IsNotExist(err) {
		return "", fmt.Errorf("%s has no tool module at %s: copy that of another version and change the versions in it", t.Name, t.Dir)
	}
	if err != nil {
		return "", fmt.Errorf("read the version of %s: %w", t.Name, err)
	}
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(fields) >= 2 && fields[0] == t.Pins && strings.HasPrefix(fields[1], "v") {
			return fields[1], nil
		}
	}
	return "", fmt.Errorf("%s/go.mod does not require %s", t.Dir, t.Pins)
}

// args are those of the build, but for the output.
func (t Tool) args(version string) []string {
	major, minor := "", ""
	if parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3); len(parts) == 3 {
		major, minor = parts[0], parts[1]
	}
	values := strings.NewReplacer("VERSION", version, "MAJOR", major, "MINOR", minor)
	flags := []string{"-s", "-w"}
	for _, v := range t.Variables {
		flags = append(flags, "-X", values.Replace(v))
	}
	args := []string{"build", "-buildvcs=false", "-ldflags=" + strings.Join(flags, " ")}
	if t.Tags != "" {
		args = append(args, "-tags="+t.Tags)
	}
	return args
}

// id names a build in the cache: the version for people, and the hash of all that goes into it.
func (t Tool) id(version string) (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, runtime.GOOS, runtime.GOARCH, t.args(version), t.Env)
	files := []string{"go.mod", "go.sum"}
	for _, pkg := range t.Packages {
		if strings.HasPrefix(pkg, "./") {
			sources, err := filepath.Glob(filepath.Join(t.Dir, path.Clean(pkg), "*.go"))
			if err != nil {
				return "", fmt.Errorf("list the sources of %s: %w", t.Name, err)
			}
			// The sources alone: a change of our module's dependencies is none of a program without dependencies.
			files = nil
			for _, source := range sources {
				relative, err := filepath.Rel(t.Dir, source)
				if err != nil {
					return "", fmt.Errorf("list the sources of %s: %w", t.Name, err)
				}
				files = append(files, relative)
			}
		}
	}
	for _, file := range files {
		raw, err := os.ReadFile(filepath.Join(t.Dir, file))
		if err != nil {
			return "", fmt.Errorf("read what %s is built from: %w", t.Name, err)
		}
		fmt.Fprintln(hash, file, len(raw))
		hash.Write(raw)
	}
	return fmt.Sprintf("%s-%s-%s", t.Name, version, hex.EncodeToString(hash.Sum(nil))[:12]), nil
}
