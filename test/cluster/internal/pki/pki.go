// Package pki owns the certificates and keys of a cluster: one authority, one serving certificate for everything that
// serves, one client certificate with which the API server calls the kubelet, one key that signs service account tokens.
//
// It works in memory; who calls it writes the files.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// The files that New makes.
const (
	CA             = "ca.crt"
	ServerCert     = "server.crt"
	ServerKey      = "server.key"
	KubeletCert    = "kubelet-client.crt"
	KubeletKey     = "kubelet-client.key"
	ServiceAccount = "service-account.key"
)

// The cluster is for tests and lives for hours; a year also survives a machine whose clock is wrong by months.
const lifetime = 365 * 24 * time.Hour

// New makes all files, for a server known by these names and addresses.
func New(now time.Time, names []string, addresses []net.IP) (map[string][]byte, error) {
	caKey, err := newKey()
	if err != nil {
		return nil, err
	}
	ca := template(now, pkix.Name{CommonName: "kerf-cluster-ca"})
	ca.IsCA = true
	ca.BasicConstraintsValid = true
	ca.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	files := map[string][]byte{}
	if files[CA], err = sign(ca, ca, caKey, caKey); err != nil {
		return nil, err
	}
	server := template(now, pkix.Name{CommonName: "kerf-cluster"})
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.DNSNames = names
	server.IPAddresses = addresses
	if err := issue(files, ServerCert, ServerKey, server, ca, caKey); err != nil {
		return nil, err
	}
	client := template(now, pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}})
	client.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if err := issue(files, KubeletCert, KubeletKey, client, ca, caKey); err != nil {
		return nil, err
	}
	accounts, err := newKey()
	if err != nil {
		return nil, err
	}
	if files[ServiceAccount], err = encodeKey(accounts); err != nil {
		return nil, err
	}
	return files, nil
}

// Token makes a random bearer token.
func Token() string {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails, see its documentation
	return hex.EncodeToString(raw[:])
}

func template(now time.Time, subject pkix.Name) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      subject,
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

func issue(files map[string][]byte, certFile, keyFile string, cert, ca *x509.Certificate, caKey *ecdsa.PrivateKey) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	if files[certFile], err = sign(cert, ca, key, caKey); err != nil {
		return err
	}
	files[keyFile], err = encodeKey(key)
	return err
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

func sign(cert, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), parentKey)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", cert.Subject.CommonName, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}
