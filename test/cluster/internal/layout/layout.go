// Package layout owns the names and paths of a cluster: its run directory, its files and the cache of built tools.
//
// It creates and removes nothing.
package layout

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// Base holds one run directory for each cluster. It is outside the box; each box sees only its own run directory.
const Base = "/run/kerf-cluster"

// NameVariable marks every process that a cluster's guardian starts, so that a leftover can be told from a stranger.
const NameVariable = "KERF_CLUSTER_NAME"

// CgroupPrefix begins the name of a cluster's cgroup in every hierarchy.
const CgroupPrefix = "kerf-"

// A name becomes a directory, a cgroup and part of log lines: a DNS label that is short enough for a socket path.
var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

// Cluster knows where everything of one named cluster lies.
type Cluster struct {
	// Name is what the user calls the cluster.
	Name string
	base string
}

// New checks the name and returns the cluster's paths.
func New(name string) (Cluster, error) {
	return NewIn(Base, name)
}

// NewIn is New below another base directory, for tests.
func NewIn(base, name string) (Cluster, error) {
	if !validName.MatchString(name) {
		return Cluster{}, fmt.Errorf("cluster name %q: use up to 32 lower case letters, digits and dashes", name)
	}
	return Cluster{Name: name, base: base}, nil
}

// Dir is the run directory. It is removed when the cluster goes down.
func (c Cluster) Dir() string { return filepath.Join(c.base, c.Name) }

// Parent holds the run directories of all clusters.
func (c Cluster) Parent() string { return c.base }

// State is the file that names the processes and cgroups of the cluster.
func (c Cluster) State() string { return filepath.Join(c.Dir(), "state.json") }

// Spec is the file from which the guardian and the box's init start.
func (c Cluster) Spec() string { return filepath.Join(c.Dir(), "spec.json") }

// Socket is where the box's init tells its status.
func (c Cluster) Socket() string { return filepath.Join(c.Dir(), "status.sock") }

// Config is the directory of the rendered configuration files and certificates.
func (c Cluster) Config() string { return filepath.Join(c.Dir(), "config") }

// Kubeconfig is the administrator's kubeconfig. Its server address is reachable inside the box only.
func (c Cluster) Kubeconfig() string { return filepath.Join(c.Config(), "admin.kubeconfig") }

// Logs is the directory of the components' logs.
func (c Cluster) Logs() string { return filepath.Join(c.Dir(), "logs") }

// Log is the log file of one component.
func (c Cluster) Log(component string) string { return filepath.Join(c.Logs(), component+".log") }

// Cgroup is the name of the cluster's cgroup in every hierarchy.
func (c Cluster) Cgroup() string { return CgroupPrefix + c.Name }

// Cache is where built tools and images are kept between runs.
func Cache() (string, error) {
	if dir := os.Getenv("KERF_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a cache directory (set KERF_CACHE to choose one): %w", err)
	}
	return filepath.Join(dir, "kerf"), nil
}
