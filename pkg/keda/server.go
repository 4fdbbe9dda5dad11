// Package keda answers KEDA's external scalers with what GPUScalingHints say. It
// owns the gRPC server and the rule of when a hint counts. It never decides how
// many replicas there should be, keeps no state of its own, and never writes to
// the API, so that each replica of the controller can serve, leader or not.
package keda

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
)

// grace is how long calls may take to end once the server is to stop.
const grace = 2 * time.Second

// Server is the gRPC server that KEDA's triggers of type external and
// external-push ask. It is a manager's Runnable. Set the fields before Start.
type Server struct {
	// Hints that it answers from.
	Hints Hints
	// Address to listen on, such as ":9443".
	Address string
	// TLS is nil for plain text.
	TLS *TLS

	listening atomic.Bool
}

// TLS names the files, in PEM, that a connection is secured with. They are read
// again when they change; connections that are open keep what they began with.
type TLS struct {
	// CertFile and KeyFile are the server's certificate and its key.
	CertFile, KeyFile string
	// ClientCAFile has the authorities of the clients' certificates. If it is
	// named, a client without such a certificate is refused.
	ClientCAFile string
}

// NeedLeaderElection is false: the answers are the same from every replica.
func (s *Server) NeedLeaderElection() bool { return false }

// Ready is a check for a manager's readyz: an error unless the server listens.
func (s *Server) Ready(*http.Request) error {
	if !s.listening.Load() {
		return errors.New("the server for KEDA does not listen")
	}
	return nil
}

// Start serves until ctx is done, and then ends streams, waits two seconds for
// calls, and cuts what is left. It returns nil then, and an error if it cannot
// listen or read the certificates.
func (s *Server) Start(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.Address)
	if err != nil {
		return fmt.Errorf("listen for KEDA: %w", err)
	}
	return s.serve(ctx, listener)
}

// serve closes the listener.
func (s *Server) serve(ctx context.Context, listener net.Listener) error {
	defer listener.Close()
	options := []grpc.ServerOption{
		// A KEDA whose node is gone says nothing more: without pings its streams would stay for two hours.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		// KEDA 2.21 does not ping, and its connection may be idle between polls: one that does is not to be cut off.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
	var watcher *certwatcher.CertWatcher
	if s.TLS != nil {
		config, w, err := s.TLS.config()
		if err != nil {
			return fmt.Errorf("certificates of the server for KEDA: %w", err)
		}
		options, watcher = append(options, grpc.Creds(credentials.NewTLS(config))), w
	}

	group, ctx := errgroup.WithContext(ctx)
	server := grpc.NewServer(options...)
	pb.RegisterExternalScalerServer(server, &scaler{hints: s.Hints, stopping: ctx.Done()})

	if watcher != nil {
		group.Go(func() error {
			if err := watcher.Start(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("watch the certificate of the server for KEDA: %w", err)
			}
			return nil
		})
	}
	s.listening.Store(true)
	group.Go(func() error {
		if err := server.Serve(listener); err != nil && ctx.Err() == nil {
			return fmt.Errorf("serve KEDA: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		s.listening.Store(false)
		cut := time.AfterFunc(grace, server.Stop)
		defer cut.Stop()
		server.GracefulStop()
		return nil
	})
	return group.Wait()
}

// config is for the server, with the watcher that has to be started for it.
func (t *TLS) config() (*tls.Config, *certwatcher.CertWatcher, error) {
	if t.ClientCAFile != "" {
		if _, err := t.clientCAs(); err != nil {
			return nil, nil, err
		}
	}
	watcher, err := certwatcher.New(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: watcher.GetCertificate}
	if t.ClientCAFile != "" {
		// The authorities are read for each connection, of which KEDA has one: no watcher is needed for them.
		config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			authorities, err := t.clientCAs()
			if err != nil {
				return nil, err
			}
			mutual := config.Clone()
			mutual.ClientAuth, mutual.ClientCAs = tls.RequireAndVerifyClientCert, authorities
			return mutual, nil
		}
	}
	return config, watcher, nil
}

func (t *TLS) clientCAs() (*x509.CertPool, error) {
	pem, err := os.ReadFile(t.ClientCAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in PEM", t.ClientCAFile)
	}
	return pool, nil
}
