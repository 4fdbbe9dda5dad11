// Package kube owns what the cluster consists of: the components, their flags and their configuration files.
//
// It renders values and starts nothing.
package kube

import (
	"bytes"
	"embed"
	"fmt"
	"path/filepath"
	"strings"
	"text/template"
)

// Addresses inside the box. Every cluster has the same ones, for each has its own network namespace.
const (
	NodeIP      = "10.89.0.1"
	NodeNetwork = "10.89.0.1/24"
	APIPort     = "6443"
	PodCIDR     = "10.244.0.0/24"
	ServiceCIDR = "10.96.0.0/24"
	ServiceIP   = "10.96.0.1"
)

// Images that every cluster has.
const (
	PauseImage    = "docker.io/library/pause:v1"
	WorkloadImage = "docker.io/library/workload:v1"
)

// Directories inside the box.
const (
	DataDir          = "/var/lib/kerf-cluster"
	ContainerdSocket = "/run/containerd/containerd.sock"
)

// Spec is what differs between clusters.
type Spec struct {
	// NodeName is the name of the only node.
	NodeName string `json:"nodeName"`
	// ConfigDir is where the rendered files are written.
	ConfigDir string `json:"configDir"`
	// Binary maps the name of an executable to its path.
	Binary map[string]string `json:"binary"`
	// CNIDir has the CNI plugins.
	CNIDir string `json:"cniDir"`
	// FeatureGates are set on all components of Kubernetes, "A=true,B=false".
	FeatureGates string `json:"featureGates,omitempty"`
	// RuntimeConfig turns API versions on or off.
	RuntimeConfig string `json:"runtimeConfig,omitempty"`
	// Verbosity of the components of Kubernetes.
	Verbosity int `json:"verbosity"`
}

// User is somebody with a token of his own, and a kubeconfig.
type User struct {
	Name, UID, Groups string
	Kubeconfig        string
}

// Users lists who may call the API. The kubelet's groups put it under the Node authorizer and NodeRestriction.
func (s Spec) Users() []User {
	return []User{
		{Name: "admin", UID: "1", Groups: "system:masters", Kubeconfig: "admin.kubeconfig"},
		{Name: "system:kube-scheduler", UID: "2", Kubeconfig: "scheduler.kubeconfig"},
		{Name: "system:kube-proxy", UID: "3", Kubeconfig: "proxy.kubeconfig"},
		{Name: "system:node:" + s.NodeName, UID: "4", Groups: "system:nodes", Kubeconfig: "kubelet.kubeconfig"},
	}
}

// File is the path of a rendered file.
func (s Spec) File(name string) string { return filepath.Join(s.ConfigDir, name) }

//go:embed templates
var templates embed.FS

// Files renders the configuration. token makes the secret of a user.
func (s Spec) Files(token func() string) (map[string][]byte, error) {
	all, err := template.New("").Option("missingkey=error").ParseFS(templates, "templates/*.tmpl")
	if err != nil {
		return nil, fmt.Errorf("parse the configuration templates: %w", err)
	}
	files := map[string][]byte{}
	render := func(name, template string, data any) error {
		var out bytes.Buffer
		if err := all.ExecuteTemplate(&out, template, data); err != nil {
			return fmt.Errorf("render %s: %w", name, err)
		}
		files[name] = out.Bytes()
		return nil
	}
	for _, name := range []string{"kubelet.yaml", "kube-proxy.yaml", "containerd.toml", "cni.conflist"} {
		if err := render(name, name+".tmpl", s.values()); err != nil {
			return nil, err
		}
	}
	var tokens strings.Builder
	for _, u := range s.Users() {
		secret := token()
		fmt.Fprintf(&tokens, "%s,%s,%s,%q\n", secret, u.Name, u.UID, u.Groups)
		values := s.values()
		values["User"], values["Token"] = u.Name, secret
		if err := render(u.Kubeconfig, "kubeconfig.tmpl", values); err != nil {
			return nil, err
		}
	}
	files["tokens.csv"] = []byte(tokens.String())
	return files, nil
}

func (s Spec) values() map[string]any {
	return map[string]any{
		"Spec":             s,
		"ConfigDir":        s.ConfigDir,
		"NodeIP":           NodeIP,
		"APIServer":        "https://127.0.0.1:" + APIPort,
		"PodCIDR":          PodCIDR,
		"PauseImage":       PauseImage,
		"ContainerdSocket": ContainerdSocket,
		"Gates":            gates(s.FeatureGates),
	}
}

// gates turns "A=true,B=false" into pairs, in the order given.
func gates(list string) [][2]string {
	var pairs [][2]string
	for gate := range strings.SplitSeq(list, ",") {
		if name, value, ok := strings.Cut(gate, "="); ok {
			pairs = append(pairs, [2]string{name, value})
		}
	}
	return pairs
}
