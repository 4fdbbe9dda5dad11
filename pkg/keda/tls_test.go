package keda

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	template, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	return authority{template, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue returns a certificate and its key for a server on this host, or for a client.
func (a authority) issue(t *testing.T) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kerf-controller"},
		DNSNames:  []string{"kerf-controller.kerf-system"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.certificate, private.Public(), a.key)
	require.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// credentialsOf is what KEDA makes of caCert, and of tlsClientCert and tlsClientKey.
func credentialsOf(t *testing.T, trusts authority, signed *authority) credentials.TransportCredentials {
	t.Helper()
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "kerf-controller.kerf-system", MinVersion: tls.VersionTLS12}
	config.RootCAs.AddCert(trusts.certificate)
	if signed != nil {
		pair, err := tls.X509KeyPair(signed.issue(t))
		require.NoError(t, err)
		config.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(config)
}

// mount writes the files of a Secret as the kubelet does: a new folder, a link that is moved to it in one step, and then
// the old folder goes.
func mount(t *testing.T, dir string, server, clients authority) *TLS {
	t.Helper()
	version, err := os.MkdirTemp(dir, "..version-")
	require.NoError(t, err)
	certificate, key := server.issue(t)
	for name, data := range map[string][]byte{"tls.crt": certificate, "tls.key": key, "ca.crt": clients.pem} {
		require.NoError(t, os.WriteFile(filepath.Join(version, name), data, 0o600))
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); !os.IsExist(err) {
			require.NoError(t, err)
		}
	}
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	require.NoError(t, os.Symlink(filepath.Base(version), filepath.Join(dir, "..next")))
	require.NoError(t, os.Rename(filepath.Join(dir, "..next"), filepath.Join(dir, "..data")))
	if old != "" {
		require.NoError(t, os.RemoveAll(filepath.Join(dir, old)))
	}
	return &TLS{
		CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), ClientCAFile: filepath.Join(dir, "ca.crt"),
	}
}

func TestTLS(t *testing.T) {
	noLeaks(t)
	hints := list(answered("a", 2, 5))
	servers, clients, stranger := newAuthority(t), newAuthority(t), newAuthority(t)
	mutual := mount(t, t.TempDir(), servers, clients)
	plain := start(t, &Server{Hints: hints}).address
	oneWay := start(t, &Server{Hints: hints, TLS: &TLS{CertFile: mutual.CertFile, KeyFile: mutual.KeyFile}}).address
	both := start(t, &Server{Hints: hints, TLS: mutual}).address
	for name, c := range map[string]struct {
		address string
		client  credentials.TransportCredentials
		answers bool
	}{
		"plain":                                {plain, nil, true},
		"plain, and the client wants TLS":      {plain, credentialsOf(t, servers, nil), false},
		"server":                               {oneWay, credentialsOf(t, servers, nil), true},
		"server, a certificate it ignores":     {oneWay, credentialsOf(t, servers, &stranger), true},
		"server, of another authority":         {oneWay, credentialsOf(t, stranger, nil), false},
		"server, and the client is plain":      {oneWay, nil, false},
		"mutual":                               {both, credentialsOf(t, servers, &clients), true},
		"mutual, client without a certificate": {both, credentialsOf(t, servers, nil), false},
		"mutual, client of another authority":  {both, credentialsOf(t, servers, &stranger), false},
		"mutual, server of another authority":  {both, credentialsOf(t, stranger, &clients), false},
	} {
		t.Run(name, func(t *testing.T) {
			replicas, err := poll(t.Context(), dial(t, c.address, c.client), scaledObject("a"))
			if !c.answers {
				require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, 5.0, replicas)
		})
	}
}

// New connections see new files; the one that is open goes on.
func TestCertificatesRotate(t *testing.T) {
	noLeaks(t)
	dir := t.TempDir()
	before, after, clientsBefore, clientsAfter := newAuthority(t), newAuthority(t), newAuthority(t), newAuthority(t)
	address := start(t, &Server{Hints: list(answered("a", 2, 5)), TLS: mount(t, dir, before, clientsBefore)}).address
	open := dial(t, address, credentialsOf(t, before, &clientsBefore))
	stream, err := open.StreamIsActive(t.Context(), scaledObject("a"))
	require.NoError(t, err)
	_, err = stream.Recv()
	require.NoError(t, err)

	mount(t, dir, after, clientsAfter)
	require.Eventually(t, func() bool {
		_, err := poll(t.Context(), dial(t, address, credentialsOf(t, after, &clientsAfter)), scaledObject("a"))
		return err == nil
	}, soon, 50*time.Millisecond)
	for name, old := range map[string]credentials.TransportCredentials{
		"the old authority of servers": credentialsOf(t, before, &clientsAfter),
		"the old authority of clients": credentialsOf(t, after, &clientsBefore),
	} {
		_, err = poll(t.Context(), dial(t, address, old), scaledObject("a"))
		require.Equal(t, codes.Unavailable, status.Code(err), "%s: %v", name, err)
	}
	_, err = poll(t.Context(), open, scaledObject("a"))
	require.NoError(t, err)

	// Files that are broken meanwhile cost those who connect meanwhile, and let nobody in.
	good, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("half"), 0o600))
	_, err = poll(t.Context(), dial(t, address, credentialsOf(t, after, &clientsAfter)), scaledObject("a"))
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.crt"), good, 0o600))
	_, err = poll(t.Context(), dial(t, address, credentialsOf(t, after, &clientsAfter)), scaledObject("a"))
	require.NoError(t, err)
}

func TestStartFails(t *testing.T) {
	noLeaks(t)
	dir := t.TempDir()
	good := mount(t, dir, newAuthority(t), newAuthority(t))
	taken := start(t, &Server{Hints: list()}).address
	for name, c := range map[string]struct {
		server *Server
		want   string
	}{
		"address in use":  {&Server{Address: taken}, "listen for KEDA"},
		"no certificate":  {&Server{Address: "127.0.0.1:0", TLS: &TLS{CertFile: filepath.Join(dir, "none"), KeyFile: good.KeyFile}}, "certificates of the server for KEDA"},
		"key of another":  {&Server{Address: "127.0.0.1:0", TLS: &TLS{CertFile: good.ClientCAFile, KeyFile: good.KeyFile}}, "private key does not match"},
		"no client CA":    {&Server{Address: "127.0.0.1:0", TLS: &TLS{CertFile: good.CertFile, KeyFile: good.KeyFile, ClientCAFile: filepath.Join(dir, "none")}}, "no such file"},
		"client CA a key": {&Server{Address: "127.0.0.1:0", TLS: &TLS{CertFile: good.CertFile, KeyFile: good.KeyFile, ClientCAFile: good.KeyFile}}, "has no certificate in PEM"},
	} {
		require.ErrorContains(t, c.server.Start(t.Context()), c.want, name)
		require.Error(t, c.server.Ready(nil), name)
	}
}
