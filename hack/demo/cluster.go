package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// cluster is a local cluster as its program reaches it.
type cluster struct {
	program, name string
}

func (c cluster) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.program, args...)
	// It takes down what it has begun.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// up starts the cluster, unless it runs, and passes on what is printed.
func (c cluster) up(ctx context.Context, out io.Writer) error {
	cmd := c.command(ctx, "up", "--name", c.name)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the cluster did not start, see above: %w", err)
	}
	return nil
}

// image gives an image made of files, SRC:DST, to the cluster and returns its digest.
func (c cluster) image(ctx context.Context, tag string, files ...string) (string, error) {
	out, err := c.output(ctx, nil, append([]string{"image", "--name", c.name, "--tag", tag}, files...)...)
	if err != nil {
		return "", err
	}
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "sha256:") {
			return word, nil
		}
	}
	return "", fmt.Errorf("%s image tells no digest: %q", c.program, out)
}

// tool runs kubectl or helm in the cluster.
func (c cluster) tool(ctx context.Context, in io.Reader, tool string, args ...string) ([]byte, error) {
	return c.output(ctx, in, append([]string{tool, "--name", c.name, "--"}, args...)...)
}

func (c cluster) kubectl(ctx context.Context, args ...string) ([]byte, error) {
	return c.tool(ctx, nil, "kubectl", args...)
}

// get reads objects: the arguments are those of kubectl get.
func get[T any](ctx context.Context, c cluster, args ...string) (T, error) {
	var value T
	out, err := c.kubectl(ctx, append([]string{"get", "--output=json"}, args...)...)
	if err != nil {
		return value, err
	}
	if err := json.Unmarshal(out, &value); err != nil {
		return value, fmt.Errorf("kubectl get %s: %w", strings.Join(args, " "), err)
	}
	return value, nil
}

func (c cluster) output(ctx context.Context, in io.Reader, args ...string) ([]byte, error) {
	var stderr bytes.Buffer
	cmd := c.command(ctx, args...)
	cmd.Stdin, cmd.Stderr = in, &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s %s: %w\n%s", c.program, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}
