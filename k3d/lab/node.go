// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab/internal/wait"
)

// NodeConfig says what a node is like. The zero value is the node that Up makes, for pods that the caller runs.
type NodeConfig struct {
	// Name is that of its namespaces, its directory below Dir and its logs. "" means "node".
	Name string
	// Number gives the node its addresses: NodeIP4, NodeIP6 and the pod subnets are those of number 0, and the others
	// follow. No two nodes of a lab have the same, up to 9.
	Number int
	// Kubelet makes it fit for a kubelet: /var/lib and /var/log outlive a reboot, mounts propagate as systemd has them,
	// the sysctls that a kubelet sets are the node's own, and pods have IPv4 alone.
	Kubelet bool
	// K3d lays it out as a node of k3d is: /run and /var/run are two directories, and no mount propagates.
	K3d bool
	// CNI is the plugin that connects pods: "bridge" or "ptp". "" means bridge.
	CNI string
	// Containerd is more of containerd's configuration, TOML tables that ours does not hold.
	Containerd string
}

// maxNodes keeps the nodes' addresses below those of the peers.
const maxNodes = 10

func (n NodeConfig) withDefaults() (NodeConfig, error) {
	n.Name, n.CNI = cmp.Or(n.Name, nodeNS), cmp.Or(n.CNI, "bridge")
	switch {
	case !peerName.MatchString(n.Name) || n.Name == netNS:
		return n, fmt.Errorf("node name %q is taken or not lower-case letters and digits; give another", n.Name)
	case n.Number < 0 || n.Number >= maxNodes:
		return n, fmt.Errorf("node number %d is out of range; give one from 0 to %d", n.Number, maxNodes-1)
	case n.CNI != "bridge" && n.CNI != "ptp":
		return n, fmt.Errorf("node %s: CNI plugin %q is none of the lab's; give bridge or ptp", n.Name, n.CNI)
	}
	return n, nil
}

// IP4 and IP6 are the node's addresses on the lab's bridge.
func (n NodeConfig) IP4() string { return nth(NodeIP4, n.Number) }

// IP6 is IP4's other half.
func (n NodeConfig) IP6() string { return nth(NodeIP6, n.Number) }

// PodSubnet4 is where the addresses of the node's pods are from.
func (n NodeConfig) PodSubnet4() string { return fmt.Sprintf("10.86.%d.0/24", n.Number) }

// PodSubnet6 is PodSubnet4's other half.
func (n NodeConfig) PodSubnet6() string {
	if n.Number == 0 {
		return PodSubnet6
	}
	return fmt.Sprintf("fd00:6e72:69:%d::/64", n.Number)
}

// nth is the n-th address after addr.
func nth(addr string, n int) string {
	ip := net.ParseIP(addr)
	ip[len(ip)-1] += byte(n)
	return ip.String()
}

// Node is a node with its runtime.
type Node struct {
	NodeConfig
	cfg        Config
	cri        *CRI
	containerd *Containerd
}

func (c Config) newNode(spec NodeConfig) (*Node, error) {
	cri, err := c.dialCRI(spec)
	if err != nil {
		return nil, err
	}
	return &Node{NodeConfig: spec, cfg: c, cri: cri, containerd: &Containerd{cfg: c, node: spec, cri: cri}}, nil
}

// AddNode makes a node, with containerd up and the lab's images in it. It ends with the lab.
func (l *Lab) AddNode(ctx context.Context, spec NodeConfig) (*Node, error) {
	spec, err := spec.withDefaults()
	if err != nil {
		return nil, err
	}
	node, err := l.cfg.newNode(spec)
	if err != nil {
		return nil, err
	}
	if err := node.build(ctx); err != nil {
		return nil, fmt.Errorf("making node %s: %w", spec.Name, err)
	}
	l.nodes = append(l.nodes, node)
	return node, nil
}

// OpenNode returns a node that another program has added. Its daemons are not this program's.
func (l *Lab) OpenNode(spec NodeConfig) (*Node, error) {
	spec, err := spec.withDefaults()
	if err != nil {
		return nil, err
	}
	node, err := l.cfg.newNode(spec)
	if err == nil {
		l.nodes = append(l.nodes, node)
	}
	return node, err
}

func (n *Node) build(ctx context.Context) error {
	if err := n.cfg.makeNetNode(ctx, n.netNode()); err != nil {
		return err
	}
	if n.Kubelet {
		if err := errors.Join(n.cfg.makeCgroups(n.Name), n.routePods()); err != nil {
			return err
		}
	}
	if err := n.containerd.configure(); err != nil {
		return err
	}
	if err := n.containerd.Start(ctx); err != nil {
		return err
	}
	return n.ImportImages(ctx, n.cfg.images()...)
}

func (n *Node) netNode() netNode {
	return netNode{ns: n.Name, ip4: n.IP4(), ip6: n.IP6(), prepare: func() error {
		if !n.Kubelet {
			return n.cfg.hideMachine(n.cfg.path(n.Name, "run"))
		}
		return n.cfg.mountLayout(n.NodeConfig)
	}}
}

// routePods leads from the control plane to the node's pods. Pods of another node are reached by that way too: the lab's
// bridge has one router.
func (n *Node) routePods() error {
	_, pods, err := net.ParseCIDR(n.PodSubnet4())
	if err != nil {
		return err
	}
	return n.cfg.withLinks(netNS, func(links *netlink.Handle) error {
		link, err := links.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: pods, Gw: net.ParseIP(n.IP4())}
		if err := links.RouteReplace(route); err != nil {
			return fmt.Errorf("routing to the pods of node %s: %w", n.Name, err)
		}
		return nil
	})
}

// CRI is the way to the node's pods.
func (n *Node) CRI() *CRI { return n.cri }

// Runtime is the node's containerd.
func (n *Node) Runtime() *Containerd { return n.containerd }

// Command runs a program in the node's network and mount namespaces; it ends with ctx. The lab's binaries come first in
// its PATH.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return n.cfg.command(ctx, n.Name, name, args...)
}

// Exec runs a command in the node to its end and returns its standard output.
func (n *Node) Exec(ctx context.Context, name string, args ...string) (string, error) {
	return Run(n.Command(ctx, name, args...))
}

// Start starts a daemon in the node, whose log is log/NODE-NAME.log over all its starts.
func (n *Node) Start(name, binary string, args ...string) (*Process, error) {
	return n.cfg.start(n.Name+"-"+name, n.Command(context.Background(), binary, args...))
}

// PodCommand runs a program of this machine in the network namespace of one of the node's pods; it ends with ctx.
func (n *Node) PodCommand(ctx context.Context, podID, name string, args ...string) (*exec.Cmd, error) {
	pod, err := n.cri.PodStatus(ctx, podID)
	if err != nil {
		return nil, err
	}
	if pod.NetNS == "" {
		return nil, fmt.Errorf("pod %s/%s has no network namespace of its own", pod.Spec.Namespace, pod.Spec.Name)
	}
	return n.Command(ctx, "nsenter", append([]string{"--net=" + pod.NetNS, "--", name}, args...)...), nil
}

// StartPlugin starts the plugin (Config.Plugin) in the node, with env in addition to the caller's environment; its log
// is log/NODE-plugin.log over all its starts.
func (n *Node) StartPlugin(env []string, args ...string) (*Process, error) {
	return n.startPlugin(n.Name+"-plugin", env, args...)
}

func (n *Node) startPlugin(log string, env []string, args ...string) (*Process, error) {
	binary, err := n.cfg.PluginPath()
	if err != nil {
		return nil, err
	}
	if err := CheckBuilt("build", binary); err != nil {
		return nil, err
	}
	cmd := n.Command(context.Background(), binary, args...)
	// The image has no other program. Where there is a loginctl, tailscale.com runs it for each backend that is started
	// within a process's first minute, and the start waits for it (v1.104.5, hostinfo/hostinfo_linux.go). That takes some
	// 7 ms. Stock tailscaleds, which start one backend, keep their PATH.
	cmd.Env = append(cmd.Env, "PATH=")
	cmd.Env = append(cmd.Env, env...)
	return n.cfg.start(log, cmd)
}

// Dial connects to an address, written in digits, from within the node's network namespace.
func (n *Node) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = n.cfg.inNetNS(n.Name, func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Path is a file of the node's directory as seen from outside and inside.
func (n *Node) Path(elem ...string) string { return n.cfg.path(append([]string{n.Name}, elem...)...) }

// WriteFile writes a file of the node's directory.
func (n *Node) WriteFile(name string, data []byte) error {
	if err := os.MkdirAll(n.Path(), 0o755); err != nil {
		return fmt.Errorf("writing %s: %w", n.Path(name), err)
	}
	if err := os.WriteFile(n.Path(name), data, 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", n.Path(name), err)
	}
	return nil
}

// CgroupParent is the cgroup that holds all of the node's pods.
func (n *Node) CgroupParent() string { return "/" + n.cfg.Name + "/" + n.Name }

// Crash ends all that runs on the node at once, pods too, and takes its namespaces away, as the loss of power does.
// What lies in /var/lib and /var/log stays, if the node has a kubelet; Boot starts it again.
func (n *Node) Crash() error {
	if err := n.processes().killAll(endPatience); err != nil {
		return fmt.Errorf("crashing node %s: %w", n.Name, err)
	}
	n.containerd.process = nil
	if err := n.cfg.removeNetNode(n.Name); err != nil {
		return fmt.Errorf("crashing node %s: %w", n.Name, err)
	}
	for _, dir := range n.cfg.cgroups() {
		if err := retryBusy(func() error { return removeCgroup(filepath.Join(dir, n.Name)) }); err != nil {
			return fmt.Errorf("removing the cgroups of node %s: %w", n.Name, err)
		}
	}
	return os.RemoveAll(n.Path("run")) // a tmpfs, on a machine
}

// Boot starts a node that has crashed, as far as its runtime.
func (n *Node) Boot(ctx context.Context) error {
	if err := n.build(ctx); err != nil {
		return fmt.Errorf("booting node %s: %w", n.Name, err)
	}
	return nil
}

// processes are the processes of this node alone.
func (n *Node) processes() processes {
	p := processes{cgroup: n.CgroupParent() + "/"}
	for _, ns := range []string{n.Name, mountNS(n.Name)} {
		file := n.cfg.nsFile(ns)
		if info, err := os.Stat(file); err == nil && isNamespace(file) {
			p.namespaces = append(p.namespaces, info)
		}
	}
	return p
}

// removeNetNode takes the namespaces away that makeNetNode has made, and their veth at once rather than with them.
func (c Config) removeNetNode(ns string) error {
	err := c.withLinks(netNS, func(links *netlink.Handle) error {
		link, err := links.LinkByName(portName(ns))
		if err != nil {
			return err
		}
		return links.LinkDel(link)
	})
	if err != nil {
		return fmt.Errorf("unplugging %s: %w", ns, err)
	}
	for _, file := range []string{c.nsFile(mountNS(ns)), c.nsFile(ns)} {
		if err := unix.Unmount(file, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("letting go of namespace %s: %w", file, err)
		}
	}
	return nil
}

// retryBusy does again what fails for a moment after a process has ended.
func retryBusy(do func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), endPatience)
	defer cancel()
	return wait.Until(ctx, pollInterval, func(context.Context) error { return do() })
}
