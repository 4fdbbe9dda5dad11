package image

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/kerf-project/kerf/test/cluster/internal/elfdeps"
)

// Spec says what an image is.
type Spec struct {
	// Name with tag; see Normalize.
	Name string
	// Files of this machine.
	Files []Mapping
	// Links maps paths of the image to the targets of symbolic links.
	Links map[string]string
	// Scripts maps paths of the image to the text of executable scripts.
	Scripts map[string]string

	Entrypoint, Cmd, Env []string
	User, WorkingDir     string

	// Architecture of the executables, in Go's names; empty for this machine's.
	Architecture string
}

// Image is ready to be written.
type Image struct {
	// Name is the normalized name, under which the kubelet looks for it.
	Name string
	// Digest of the manifest: it differs when anything in the image does.
	Digest string

	tree     tree
	layer    descriptor
	config   blob
	manifest blob
	index    []byte
}

// Normalize writes a short name in full, as the kubelet does before it looks for an image: kerf:dev becomes
// docker.io/library/kerf:dev.
func Normalize(name string) string {
	first, _, path := strings.Cut(name, "/")
	switch {
	case !path:
		name = "docker.io/library/" + name
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		name = "docker.io/" + name
	}
	if !strings.Contains(name[strings.LastIndex(name, "/"):], ":") {
		name += ":latest"
	}
	return name
}

// New reads all files once, to know the digests.
func New(spec Spec) (*Image, error) {
	image := &Image{Name: Normalize(spec.Name)}
	var err error
	if image.tree, err = newTree(spec, elfdeps.Resolver{}); err != nil {
		return nil, err
	}
	hash, size := sha256.New(), counter(0)
	if err := image.tree.write(io.MultiWriter(hash, &size)); err != nil {
		return nil, err
	}
	image.layer = descriptor{
		MediaType: "application/vnd.oci.image.layer.v1.tar",
		Digest:    "sha256:" + hex.EncodeToString(hash.Sum(nil)),
		Size:      int64(size),
	}
	if err := image.describe(spec); err != nil {
		return nil, err
	}
	return image, nil
}

// WriteFile writes the image to a file, whole or not at all.
func (i *Image) WriteFile(path string) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("create an image file: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	if err := errors.Join(i.Write(file), file.Chmod(fileMode), file.Close()); err != nil {
		return fmt.Errorf("write the image %s: %w", i.Name, err)
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return fmt.Errorf("write the image %s: %w", i.Name, err)
	}
	return nil
}

// Write writes the image as a tar archive of an OCI layout, which "ctr images import" reads.
func (i *Image) Write(out io.Writer) error {
	w := tar.NewWriter(out)
	file := func(name string, size int64, write func(io.Writer) error) error {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: fileMode, Size: size, ModTime: epoch, Format: tar.FormatPAX}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		return write(w)
	}
	text := func(name string, text []byte) error {
		return file(name, int64(len(text)), func(w io.Writer) error {
			_, err := w.Write(text)
			return err
		})
	}
	steps := []func() error{
		func() error { return text("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)) },
		func() error { return text("index.json", i.index) },
		func() error { return text(blobPath(i.manifest.Digest), i.manifest.data) },
		func() error { return text(blobPath(i.config.Digest), i.config.data) },
		// A file that changed since New makes the layer longer or shorter, which the tar writer refuses, or breaks its
		// digest, which the importer refuses.
		func() error { return file(blobPath(i.layer.Digest), i.layer.Size, i.tree.write) },
		w.Close,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("write an image archive: %w", err)
		}
	}
	return nil
}

// Paths lists the files of the image, for tests and curious people.
func (i *Image) Paths() []string {
	var all []string
	for name := range i.tree {
		all = append(all, "/"+name)
	}
	slices.Sort(all)
	return all
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type blob struct {
	descriptor
	data []byte
}

func newBlob(mediaType string, value any) (blob, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return blob{}, fmt.Errorf("encode an image: %w", err)
	}
	sum := sha256.Sum256(data)
	return blob{descriptor{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(data))}, data}, nil
}

func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

// describe makes the configuration, the manifest and the index.
func (i *Image) describe(spec Spec) (err error) {
	architecture := spec.Architecture
	if architecture == "" {
		architecture = runtime.GOARCH
	}
	config := map[string]any{
		"architecture": architecture,
		"os":           "linux",
		"config": map[string]any{
			"Entrypoint": spec.Entrypoint,
			"Cmd":        spec.Cmd,
			"Env":        append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, spec.Env...),
			"User":       spec.User,
			"WorkingDir": spec.WorkingDir,
		},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{i.layer.Digest}},
	}
	if i.config, err = newBlob("application/vnd.oci.image.config.v1+json", config); err != nil {
		return err
	}
	manifest := map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.manifest.v1+json",
		"config":        i.config.descriptor,
		"layers":        []descriptor{i.layer},
	}
	if i.manifest, err = newBlob("application/vnd.oci.image.manifest.v1+json", manifest); err != nil {
		return err
	}
	i.Digest = i.manifest.Digest
	named := i.manifest.descriptor
	named.Annotations = map[string]string{"io.containerd.image.name": i.Name}
	i.index, err = json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{named}})
	if err != nil {
		return fmt.Errorf("encode an image: %w", err)
	}
	return nil
}

// counter counts the bytes written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
