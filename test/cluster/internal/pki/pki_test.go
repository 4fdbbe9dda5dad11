package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"testing"
	"time"
)

func TestCertificatesAreGoodForWhatTheyAreFor(t *testing.T) {
	now := time.Now()
	files, err := New(now, []string{"kerf-node"}, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(files[CA]) {
		t.Fatal("the authority is no certificate")
	}
	for _, c := range []struct {
		cert, key string
		usage     x509.ExtKeyUsage
		names     []string
	}{
		{ServerCert, ServerKey, x509.ExtKeyUsageServerAuth, []string{"kerf-node", "127.0.0.1"}},
		{KubeletCert, KubeletKey, x509.ExtKeyUsageClientAuth, nil},
	} {
		pair, err := tls.X509KeyPair(files[c.cert], files[c.key])
		if err != nil {
			t.Fatalf("%s: %v", c.cert, err)
		}
		options := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{c.usage}, CurrentTime: now}
		if _, err := pair.Leaf.Verify(options); err != nil {
			t.Errorf("%s: %v", c.cert, err)
		}
		for _, name := range c.names {
			if err := pair.Leaf.VerifyHostname(name); err != nil {
				t.Errorf("%s: %v", c.cert, err)
			}
		}
	}
	block, _ := pem.Decode(files[ServiceAccount])
	if block == nil {
		t.Fatal("the service accounts' key is not PEM")
	}
	if _, err := x509.ParseECPrivateKey(block.Bytes); err != nil {
		t.Errorf("the service accounts' key: %v", err)
	}
	if first, second := Token(), Token(); first == second {
		t.Error("two tokens are the same")
	}
}
