package diagnose

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registration is a socket at which the kubelet looks for plugins.
type registration struct {
	path string
	// info is what its owner says of itself, nil where it does not answer, and err says why.
	info *registerapi.PluginInfo
	err  error
	// unreachable is why nobody can talk to the plugin that registers there.
	unreachable error
	// program is the name of its owner, empty where that can't be seen.
	program string
}

// registrationsIn asks everybody who registers with the kubelet who he is, as the kubelet does.
func registrationsIn(ctx context.Context, dir, nodeRoot string) []registration {
	sockets, err := filepath.Glob(filepath.Join(dir, "*.sock"))
	if err != nil {
		return nil // The directory's name is no pattern that could match.
	}
	var all []registration
	for _, path := range sockets {
		r := registration{path: path, program: listener(ctx, path, nodeRoot)}
		if r.info, r.err = pluginInfo(ctx, path); r.err == nil {
			r.unreachable = dial(ctx, r.info.Endpoint)
		}
		all = append(all, r)
	}
	return all
}

func pluginInfo(ctx context.Context, socket string) (*registerapi.PluginInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return registerapi.NewRegistrationClient(conn).GetInfo(ctx, &registerapi.InfoRequest{})
}

// dial connects to a socket and lets go of it.
func dial(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return conn.Close()
}

// listener is the name of the program that listens at a socket, empty where nobody does or it can't be seen.
func listener(ctx context.Context, socket, nodeRoot string) string {
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return ""
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return ""
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	// Of a process outside this pid namespace the kernel says 0.
	if errors.Join(err, peerErr) != nil || peer.Pid == 0 {
		return ""
	}
	return readLine(filepath.Join(nodeRoot, "proc", strconv.Itoa(int(peer.Pid)), "comm"))
}

// ours are the registrations of this driver that kerf's plugins hold, and rivals those that others do.
func (f *facts) ours() (ours, rivals []registration) {
	for _, r := range f.registrations {
		if r.info == nil || r.info.Type != registerapi.DRAPlugin || r.info.Name != f.Driver {
			continue
		}
		if r.program == "" || r.program == self {
			ours = append(ours, r)
		} else {
			rivals = append(rivals, r)
		}
	}
	return ours, rivals
}

// devicePluginsIn are the sockets of NVIDIA's device plugins that are alive.
func devicePluginsIn(ctx context.Context, dir string) []string {
	sockets, err := filepath.Glob(filepath.Join(dir, "nvidia-*.sock"))
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(sockets, func(path string) bool { return dial(ctx, path) != nil })
}

// askReady asks the plugin for its readiness: the kubelet has registered it, and its pool is published.
func (f *facts) askReady(ctx context.Context) {
	if f.Readyz == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.Readyz, nil)
	if err != nil {
		f.skip("the plugin's readiness: %v", err)
		return
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		f.notReady = err.Error()
		return
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1000))
	if answer.StatusCode != http.StatusOK || err != nil {
		f.notReady = orDefault(strings.TrimSpace(string(text)), answer.Status)
	}
}
