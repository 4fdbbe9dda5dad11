package cluster

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kerf-project/kerf/test/cluster/internal/image"
	"github.com/kerf-project/kerf/test/cluster/internal/kube"
	"github.com/kerf-project/kerf/test/cluster/internal/layout"
	"github.com/kerf-project/kerf/test/cluster/internal/prereq"
	"github.com/kerf-project/kerf/test/cluster/internal/tools"
)

// Kit makes the parts of a cluster: executables and images.
type Kit struct {
	// Cache keeps them; Source is the directory test/cluster.
	Cache, Source string
	// Kubernetes is a version without v.
	Kubernetes string
	// Out gets the progress.
	Out io.Writer
}

// NewKit finds the cache and the sources.
func NewKit(kubernetes string, out io.Writer) (Kit, error) {
	cache, err := layout.Cache()
	if err != nil {
		return Kit{}, err
	}
	source, err := tools.Source()
	if err != nil {
		return Kit{}, err
	}
	return Kit{Cache: cache, Source: source, Kubernetes: kubernetes, Out: out}, nil
}

// Parts are ready to use.
type Parts struct {
	// Binaries maps the name of an executable to its path.
	Binaries map[string]string
	// Images are archives.
	Images []string
}

// Path lists the directories of the executables, as for PATH.
func (p Parts) Path() string {
	var dirs []string
	for _, path := range p.Binaries {
		dirs = append(dirs, filepath.Dir(path))
	}
	slices.Sort(dirs)
	return strings.Join(slices.Compact(dirs), ":")
}

func (k Kit) builder() tools.Builder {
	return tools.Builder{Tools: tools.Catalog(k.Source, k.Kubernetes), Cache: k.Cache, Out: k.Out}
}

// Check looks for what the machine must have, including compilers when something is to be built.
func (k Kit) Check() (prereq.Host, error) {
	missing, err := k.builder().Missing()
	if err != nil {
		return prereq.Host{}, err
	}
	return prereq.Finder{}.Find(len(missing) > 0)
}

// Make builds what the cache lacks.
func (k Kit) Make(ctx context.Context, host prereq.Host) (Parts, error) {
	binaries, err := k.builder().Build(ctx)
	if err != nil {
		return Parts{}, err
	}
	parts := Parts{Binaries: maps.Clone(binaries)}
	workload, err := image.Workload(ctx, kube.WorkloadImage, host.Busybox)
	if err != nil {
		return Parts{}, err
	}
	for _, spec := range []image.Spec{image.Pause(kube.PauseImage, binaries["pause"]), workload} {
		archive, err := k.archive(spec)
		if err != nil {
			return Parts{}, err
		}
		parts.Images = append(parts.Images, archive)
	}
	return parts, nil
}

// archive writes an image to the cache, under its digest.
func (k Kit) archive(spec image.Spec) (string, error) {
	made, err := image.New(spec)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(k.Cache, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("create the cache: %w", err)
	}
	name, _, _ := strings.Cut(filepath.Base(made.Name), ":")
	path := filepath.Join(dir, name+"-"+strings.TrimPrefix(made.Digest, "sha256:")[:12]+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, made.WriteFile(path)
}
