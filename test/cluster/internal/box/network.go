package box

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"github.com/kerf-project/kerf/test/cluster/internal/kube"
)

// nodeLink bears the node's address. It is a bridge without ports, which every kernel has that can run pods on a bridge;
// a dummy device would need one more module.
const nodeLink = "node0"

// setUpNetwork makes the network namespace look like a node's: an address, and a default route, without which neither
// service addresses could be called nor components find their own address. The route leads nowhere.
func setUpNetwork() error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("set the loopback device up: %w", err)
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = nodeLink
	node := &netlink.Bridge{LinkAttrs: attributes}
	if err := netlink.LinkAdd(node); err != nil {
		return fmt.Errorf("create the node's network device: %w", err)
	}
	address, err := netlink.ParseAddr(kube.NodeNetwork)
	if err != nil {
		return fmt.Errorf("parse the node's address: %w", err)
	}
	if err := netlink.AddrAdd(node, address); err != nil {
		return fmt.Errorf("set the node's address: %w", err)
	}
	if err := netlink.LinkSetUp(node); err != nil {
		return fmt.Errorf("set the node's network device up: %w", err)
	}
	everything := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: node.Attrs().Index, Dst: everything}); err != nil {
		return fmt.Errorf("set the default route: %w", err)
	}
	for name, value := range map[string]string{
		"ipv4/ip_forward": "1",
		// Traffic from pod to pod through a service crosses the bridge, and must be translated there.
		"bridge/bridge-nf-call-iptables": "1",
	} {
		err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0o644)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set a network setting of the box: %w", err)
		}
	}
	return nil
}
