// Package steps owns the list of what happens when a cluster starts, in order, and how it is told to the user.
//
// The list is data, so that tests can interrupt a start at every step without naming any.
package steps

// Step is one named part of a start.
type Step string

// The steps of a start. Keep All complete: a start that reports a step outside of it fails.
const (
	Check      Step = "check prerequisites"
	Tools      Step = "tools and images"
	Guardian   Step = "guardian"
	Cgroups    Step = "cgroups and namespaces"
	Mounts     Step = "mounts"
	Network    Step = "network"
	Config     Step = "certificates and configuration"
	Etcd       Step = "etcd"
	APIServer  Step = "kube-apiserver"
	Containerd Step = "containerd"
	Control    Step = "controllers, scheduler and proxy"
	Kubelet    Step = "kubelet"
	Images     Step = "images"
	Node       Step = "node ready"
)

// All lists the steps in the order in which they happen.
func All() []Step {
	return []Step{
		Check, Tools, Guardian, Cgroups, Mounts, Network, Config, Etcd, APIServer, Containerd, Control, Kubelet, Images, Node,
	}
}

// Index is the position of a step, counted from 1, or 0 for an unknown one.
func Index(step Step) int {
	for i, s := range All() {
		if s == step {
			return i + 1
		}
	}
	return 0
}
