package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/kerf-project/kerf/test/cluster/internal/box"
	"github.com/kerf-project/kerf/test/cluster/internal/image"
	"github.com/kerf-project/kerf/test/cluster/internal/kube"
	"github.com/kerf-project/kerf/test/cluster/internal/layout"
	"github.com/kerf-project/kerf/test/cluster/internal/nsenter"
)

// Streams are a command's standard streams.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exec runs a command inside the cluster's box, with the tools in its PATH and KUBECONFIG set, in the directory of the
// caller. A command that fails is an *exec.ExitError.
func Exec(ctx context.Context, c layout.Cluster, streams Streams, args []string) error {
	s, err := readState(c)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cluster %s is not up", c.Name)
	}
	if err != nil {
		return err
	}
	init, ok := s.Init.open()
	if !ok {
		return fmt.Errorf("cluster %s is not up: its box has ended", c.Name)
	}
	defer init.close()
	spec, err := box.ReadSpec(c.Spec())
	if err != nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find the working directory: %w", err)
	}
	cmd := &exec.Cmd{
		Args: args, Dir: dir, Env: environment(c, spec),
		Stdin: streams.In, Stdout: streams.Out, Stderr: streams.Err,
	}
	return nsenter.Box{Init: init.fd, Helper: EnterCommand}.Run(ctx, cmd)
}

// environment is the caller's, and what belongs to the cluster.
func environment(c layout.Cluster, spec box.Spec) []string {
	return append(slices.Clone(os.Environ()),
		"PATH="+spec.Tools+":"+os.Getenv("PATH")+":"+box.SystemPath,
		"KUBECONFIG="+c.Kubeconfig(),
		"CONTAINERD_ADDRESS="+kube.ContainerdSocket,
		"CONTAINERD_NAMESPACE=k8s.io",
		"NODE_NAME="+spec.Kube.NodeName,
		layout.NameVariable+"="+c.Name,
	)
}

// Import makes the image known to the node, unless it has it already; it reports whether it did anything.
func Import(ctx context.Context, c layout.Cluster, made *image.Image) (bool, error) {
	var list, complaint bytes.Buffer
	streams := Streams{Out: &list, Err: &complaint}
	if err := Exec(ctx, c, streams, []string{"ctr", "images", "ls", "name==" + made.Name}); err != nil {
		return false, fmt.Errorf("ask for the image %s: %w %s", made.Name, err, complaint.String())
	}
	if strings.Contains(list.String(), made.Digest) {
		return false, nil
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return false, fmt.Errorf("import the image %s: %w", made.Name, err)
	}
	written := make(chan error, 1)
	go func() { written <- errors.Join(made.Write(writer), writer.Close()) }()
	streams = Streams{In: reader, Out: io.Discard, Err: &complaint}
	imported := Exec(ctx, c, streams, []string{"ctr", "images", "import", "-"})
	// Closed before the writer is waited for: an importer that failed reads no more.
	closed := reader.Close()
	if imported != nil {
		return false, fmt.Errorf("import the image %s: %w %s", made.Name, imported, complaint.String())
	}
	return true, errors.Join(<-written, closed)
}
