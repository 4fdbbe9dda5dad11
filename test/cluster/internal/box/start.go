package box

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kerf-project/kerf/test/cluster/internal/kube"
	"github.com/kerf-project/kerf/test/cluster/internal/pki"
	"github.com/kerf-project/kerf/test/cluster/internal/steps"
)

// startTimeout ends a start in which something waits for ever. A loaded machine may need a minute.
const startTimeout = 5 * time.Minute

// writeConfig renders the configuration into the run directory.
func writeConfig(spec kube.Spec) error {
	addresses := []net.IP{net.IPv4(127, 0, 0, 1), net.ParseIP(kube.NodeIP), net.ParseIP(kube.ServiceIP)}
	names := []string{"localhost", spec.NodeName, "kubernetes", "kubernetes.default", "kubernetes.default.svc"}
	files, err := pki.New(time.Now(), names, addresses)
	if err != nil {
		return err
	}
	rendered, err := spec.Files(pki.Token)
	if err != nil {
		return err
	}
	for name, text := range rendered {
		files[name] = text
	}
	if err := os.MkdirAll(spec.ConfigDir, 0o700); err != nil {
		return fmt.Errorf("create the configuration directory: %w", err)
	}
	for name, text := range files {
		if err := os.WriteFile(spec.File(name), text, 0o600); err != nil {
			return fmt.Errorf("write the configuration: %w", err)
		}
	}
	if err := os.Symlink(spec.File("cni.conflist"), "/etc/cni/net.d/00-kerf.conflist"); err != nil {
		return fmt.Errorf("install the CNI configuration: %w", err)
	}
	// The kubelet takes the first file by name, so other configurations of the host's layer do not matter. Nor does a
	// containerd of the host: the standard socket is in /run, which is new.
	return nil
}

// startComponents starts everything, in the order of dependence. What does not depend on the API server starts while it
// does, and is waited for in a later step.
func (b *box) startComponents(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	components := map[string]kube.Component{}
	for _, c := range b.spec.Kube.Components() {
		components[c.Name] = c
	}
	start := func(names ...string) error {
		for _, name := range names {
			if err := b.supervisor.start(components[name]); err != nil {
				return err
			}
		}
		return nil
	}
	client, err := newClient(b.spec.Kube)
	if err != nil {
		return err
	}
	if err := serve(b.spec.Socket, b.supervisor, client); err != nil {
		return err
	}

	group, gctx := errgroup.WithContext(ctx)
	for _, s := range []struct {
		name steps.Step
		do   func() error
	}{
		{steps.Etcd, func() error {
			if err := start(kube.Etcd, kube.Containerd); err != nil {
				return err
			}
			group.Go(func() error { return b.importImages(gctx) })
			return b.wait(ctx, "etcd to serve", tcp("127.0.0.1:2379"))
		}},
		{steps.APIServer, func() error {
			if err := start(kube.APIServer); err != nil {
				return err
			}
			return b.wait(ctx, "the API server to be ready", client.ready)
		}},
		{steps.Containerd, func() error {
			return b.wait(ctx, "containerd to serve", dial("unix", kube.ContainerdSocket))
		}},
		{steps.Control, func() error {
			return start(kube.ControllerManager, kube.Scheduler, kube.Proxy)
		}},
		{steps.Kubelet, func() error {
			if err := start(kube.Kubelet); err != nil {
				return err
			}
			return b.wait(ctx, "the kubelet to serve", tcp("127.0.0.1:10248"))
		}},
		{steps.Images, group.Wait},
		{steps.Node, func() error {
			return b.wait(ctx, "the node to be ready", client.usable)
		}},
	} {
		if err := b.send.Do(s.name, s.do); err != nil {
			return err
		}
	}
	return nil
}

func (b *box) importImages(ctx context.Context) error {
	if err := b.wait(ctx, "containerd to serve", dial("unix", kube.ContainerdSocket)); err != nil {
		return err
	}
	for _, archive := range b.spec.Images {
		err := b.supervisor.command(ctx, "ctr", "--address", kube.ContainerdSocket, "--namespace", "k8s.io",
			"images", "import", archive)
		if err != nil {
			return fmt.Errorf("import %s: %w", filepath.Base(archive), err)
		}
	}
	return nil
}

// wait polls until the check succeeds, fails when a component dies meanwhile, and says what it waited for.
func (b *box) wait(ctx context.Context, what string, check func(context.Context) error) error {
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if died := b.supervisor.died(); died != nil {
			return died
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait for %s: %w", what, ctx.Err()), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func tcp(address string) func(context.Context) error { return dial("tcp", address) }

func dial(network, address string) func(context.Context) error {
	return func(ctx context.Context) error {
		connection, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, address)
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		return connection.Close()
	}
}
