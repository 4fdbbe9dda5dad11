package plugin

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
)

// MIGConfigLabel is the label of a node by which NVIDIA's MIG manager is told what layout to make.
const MIGConfigLabel = "nvidia.com/mig.config"

// Neighbours are others on a node who hand out or change the same GPUs.
type Neighbours struct {
	Client kubernetes.Interface
	Events record.EventRecorder
	// Node and Driver are the names of the node and of the DRA driver.
	Node, Driver string
	// Program is this program's name as the kernel has it, which all plugins of kerf have.
	Program string
	// RegistryDir is the kubelet's directory of registration sockets, and below NodeRoot is the node's /proc.
	RegistryDir, NodeRoot string

	told []string
}

// ProgramName is the name of this process's program as the kernel has it, empty where that can't be seen.
func ProgramName() string {
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(comm))
}

// Refuse returns an error if another program registers the same driver: the kubelet
// asks whichever registered last, so claims would be prepared by either.
func (n *Neighbours) Refuse(ctx context.Context) error {
	_, rivals := Rivals(Registrations(ctx, n.RegistryDir, n.NodeRoot), n.Driver, n.Program)
	if len(rivals) == 0 {
		return nil
	}
	err := fmt.Errorf("another program, %s, serves the driver %s on this node (%s): uninstall it, keep it off this node, or give kerf another driver name", rivals[0].Program, n.Driver, rivals[0].Path)
	n.Events.Event(NodeReference(n.Node), corev1.EventTypeWarning, "DriverTaken", err.Error())
	return err
}

// Warn tells in events of the node, once each, who else is there now. That it can't
// be told is no reason to stop, nor trouble of the claims.
func (n *Neighbours) Warn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	node, err := n.Client.CoreV1().Nodes().Get(ctx, n.Node, metav1.GetOptions{})
	if err != nil {
		klog.FromContext(ctx).Error(err, "Who else hands out the node's GPUs is not known; it is looked for again")
		return
	}
	var found []string
	tell := func(reason, text string) {
		if !slices.Contains(n.told, text) {
			n.Events.Event(NodeReference(n.Node), corev1.EventTypeWarning, reason, text)
		}
		found = append(found, text)
	}
	_, rivals := Rivals(Registrations(ctx, n.RegistryDir, n.NodeRoot), n.Driver, n.Program)
	for _, r := range rivals {
		tell("DriverTaken", fmt.Sprintf("another program, %s, serves the driver %s too (%s), and the kubelet asks whichever registered last: uninstall it or keep it off this node", r.Program, n.Driver, r.Path))
	}
	var offered []string
	for name, quantity := range node.Status.Allocatable {
		if strings.HasPrefix(string(name), "nvidia.com/") && !quantity.IsZero() {
			offered = append(offered, fmt.Sprintf("%s: %s", name, quantity.String()))
		}
	}
	if slices.Sort(offered); len(offered) > 0 {
		tell("DevicePluginPresent", fmt.Sprintf("a device plugin offers the same GPUs (%s), and neither knows what the other has given out: uninstall it or keep it off this node", strings.Join(offered, ", ")))
	}
	if layout := node.Labels[MIGConfigLabel]; layout != "" {
		tell("MIGManagerPresent", fmt.Sprintf("the label %s=%s asks NVIDIA's MIG manager for a layout, and it destroys instances for that: keep it off this node and remove the label", MIGConfigLabel, layout))
	}
	n.told = found
}
