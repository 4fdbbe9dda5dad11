package plugin

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// socketTimeout bounds each question to a process of the node.
const socketTimeout = 2 * time.Second

// Registration is a socket at which the kubelet looks for plugins.
type Registration struct {
	Path string
	// Info is what its owner says of itself, nil where it does not answer, and Err says why.
	Info *registerapi.PluginInfo
	Err  error
	// Unreachable is why nobody can talk to the plugin that registers there.
	Unreachable error
	// Program is the name of its owner, empty where that can't be seen.
	Program string
}

// Registrations asks everybody who registers with the kubelet who he is, as the kubelet does.
func Registrations(ctx context.Context, dir, nodeRoot string) []Registration {
	sockets, err := filepath.Glob(filepath.Join(dir, "*.sock"))
	if err != nil {
		return nil // The directory's name is no pattern that could match.
	}
	var all []Registration
	for _, path := range sockets {
		r := Registration{Path: path, Program: listener(ctx, path, nodeRoot)}
		if r.Info, r.Err = pluginInfo(ctx, path); r.Err == nil {
			r.Unreachable = Dial(ctx, r.Info.Endpoint)
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

// Dial connects to a socket and lets go of it.
func Dial(ctx context.Context, socket string) error {
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
	comm, err := os.ReadFile(filepath.Join(nodeRoot, "proc", strconv.Itoa(int(peer.Pid)), "comm"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(comm))
}

// Rivals are those of the registrations of a driver that other programs than the named one hold, and ours the rest. Whose
// program cannot be seen is taken for ours.
func Rivals(all []Registration, driver, program string) (ours, rivals []Registration) {
	for _, r := range all {
		if r.Info == nil || r.Info.Type != registerapi.DRAPlugin || r.Info.Name != driver {
			continue
		}
		if r.Program == "" || r.Program == program {
			ours = append(ours, r)
		} else {
			rivals = append(rivals, r)
		}
	}
	return ours, rivals
}
