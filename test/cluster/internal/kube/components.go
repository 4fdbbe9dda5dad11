package kube

import "strconv"

// The components, in the order in which they depend on one another.
const (
	Etcd              = "etcd"
	Containerd        = "containerd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Proxy             = "kube-proxy"
	Kubelet           = "kubelet"
)

// Component is a process of the cluster.
type Component struct {
	// Name of the component, of its executable and of its log.
	Name string
	Args []string
}

// Components lists all of them.
func (s Spec) Components() []Component {
	return []Component{
		{Name: Etcd, Args: s.etcd()},
		{Name: Containerd, Args: []string{"--config=" + s.File("containerd.toml")}},
		{Name: APIServer, Args: s.kubernetes(s.apiServer())},
		{Name: ControllerManager, Args: s.kubernetes(s.controllerManager())},
		{Name: Scheduler, Args: s.kubernetes(s.scheduler())},
		{Name: Proxy, Args: []string{"--config=" + s.File("kube-proxy.yaml"), s.verbosity()}},
		{Name: Kubelet, Args: s.kubelet()},
	}
}

func (s Spec) etcd() []string {
	return []string{
		"--name=kerf",
		"--data-dir=" + DataDir + "/etcd",
		"--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
		// The data is on a tmpfs and gone with the box.
		"--unsafe-no-fsync",
		// Alone, it elects itself; the defaults make it wait a second for others.
		"--heartbeat-interval=20",
		"--election-timeout=200",
		"--log-level=warn",
	}
}

func (s Spec) apiServer() []string {
	args := []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--secure-port=" + APIPort,
		// Not loopback: it becomes the endpoint of the service "kubernetes", which pods call.
		"--advertise-address=" + NodeIP,
		"--service-cluster-ip-range=" + ServiceCIDR,
		"--tls-cert-file=" + s.File("server.crt"),
		"--tls-private-key-file=" + s.File("server.key"),
		"--token-auth-file=" + s.File("tokens.csv"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + s.File("service-account.key"),
		"--service-account-signing-key-file=" + s.File("service-account.key"),
		// The node's host name is known to no resolver.
		"--kubelet-preferred-address-types=InternalIP",
		"--kubelet-certificate-authority=" + s.File("ca.crt"),
		"--kubelet-client-certificate=" + s.File("kubelet-client.crt"),
		"--kubelet-client-key=" + s.File("kubelet-client.key"),
	}
	if s.RuntimeConfig != "" {
		args = append(args, "--runtime-config="+s.RuntimeConfig)
	}
	return args
}

// controllerManager uses the administrator's token for all its controllers: with a service account for each it would
// start four seconds later.
func (s Spec) controllerManager() []string {
	return []string{
		"--kubeconfig=" + s.File("admin.kubeconfig"),
		"--authentication-kubeconfig=" + s.File("admin.kubeconfig"),
		"--authorization-kubeconfig=" + s.File("admin.kubeconfig"),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--root-ca-file=" + s.File("ca.crt"),
		"--service-account-private-key-file=" + s.File("service-account.key"),
		"--kube-api-qps=100",
		"--kube-api-burst=200",
	}
}

func (s Spec) scheduler() []string {
	return []string{
		"--kubeconfig=" + s.File("scheduler.kubeconfig"),
		"--authentication-kubeconfig=" + s.File("scheduler.kubeconfig"),
		"--authorization-kubeconfig=" + s.File("scheduler.kubeconfig"),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
	}
}

func (s Spec) kubelet() []string {
	return []string{
		"--kubeconfig=" + s.File("kubelet.kubeconfig"),
		"--config=" + s.File("kubelet.yaml"),
		"--hostname-override=" + s.NodeName,
		"--node-ip=" + NodeIP,
		s.verbosity(),
	}
}

func (s Spec) kubernetes(args []string) []string {
	if s.FeatureGates != "" {
		args = append(args, "--feature-gates="+s.FeatureGates)
	}
	return append(args, s.verbosity())
}

func (s Spec) verbosity() string { return "--v=" + strconv.Itoa(s.Verbosity) }
