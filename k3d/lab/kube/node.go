// SPDX-License-Identifier: BSD-3-Clause

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"

	"tailscale-nri/k3d/lab"
)

// Node is a node of the cluster.
type Node struct {
	*lab.Node
	ProxyMode string

	cluster *Cluster
	kubelet *lab.Process // nil while it is stopped
}

// CoreDNSImage is the cluster's DNS server.
const CoreDNSImage = "tailscale-nri.test/coredns:1"

func (c *Cluster) startNodes(ctx context.Context) error {
	for _, spec := range nodeConfigs() {
		made, err := c.Lab.AddNode(ctx, spec.NodeConfig)
		if err != nil {
			return err
		}
		node := &Node{Node: made, ProxyMode: spec.ProxyMode, cluster: c}
		c.Nodes = append(c.Nodes, node)
		if err := node.ImportImages(ctx, lab.Image{Ref: CoreDNSImage, Binary: c.bin("coredns")}); err != nil {
			return err
		}
		if err := node.configure(); err != nil {
			return fmt.Errorf("configuring node %s: %w", node.Name, err)
		}
		if err := node.start(ctx); err != nil {
			return fmt.Errorf("starting node %s: %w", node.Name, err)
		}
	}
	return nil
}

// start starts the kubelet and kube-proxy.
func (n *Node) start(ctx context.Context) error {
	if err := n.StartKubelet(ctx); err != nil {
		return err
	}
	_, err := n.Start("kube-proxy", n.cluster.bin("kube-proxy"), "--kubeconfig="+n.cluster.path(n.Name+"-proxy.kubeconfig"),
		"--hostname-override="+n.Name, "--proxy-mode="+n.ProxyMode, "--cluster-cidr="+podCIDR,
		// Conntrack's limits are the machine's, and a lab leaves the machine alone.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		"--healthz-bind-address=127.0.0.1", "--metrics-bind-address=127.0.0.1")
	return err
}

// StartKubelet starts the kubelet and returns when it is healthy.
func (n *Node) StartKubelet(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	n.kubelet, err = n.Start("kubelet", n.cluster.bin("kubelet"), "--config="+n.Path("kubelet.json"),
		"--kubeconfig="+n.cluster.path(n.Name+".kubeconfig"), "--hostname-override="+n.Name, "--node-ip="+n.IP4())
	if err != nil {
		return err
	}
	return n.kubelet.Await(ctx, func(ctx context.Context) error {
		_, err := n.Exec(ctx, "labtool", "get", "-timeout", "1s", "http://127.0.0.1:10248/healthz")
		return err
	})
}

// StopKubelet kills the kubelet; its pods stay.
func (n *Node) StopKubelet(ctx context.Context) error {
	if n.kubelet == nil {
		return nil
	}
	err := n.kubelet.Kill(ctx)
	n.kubelet = nil
	return err
}

// Reboot ends all that runs on the node at once, and starts it again. It returns when the kubelet is healthy.
func (n *Node) Reboot(ctx context.Context) error {
	if err := n.Crash(); err != nil {
		return err
	}
	return n.PowerOn(ctx)
}

// PowerOn starts a node that has crashed. It returns when the kubelet is healthy.
func (n *Node) PowerOn(ctx context.Context) error {
	if err := n.Boot(ctx); err != nil {
		return err
	}
	return n.start(ctx)
}

// configure writes what the kubelet and kube-proxy are started with.
func (n *Node) configure() error {
	c := n.cluster
	kubelet := identity{
		name: n.Name, user: "system:node:" + n.Name, groups: []string{"system:nodes"}, ips: []string{n.IP4()}, dns: []string{n.Name},
	}
	if _, err := c.kubeconfig(kubelet); err != nil {
		return err
	}
	if _, err := c.kubeconfig(identity{name: n.Name + "-proxy", user: "system:kube-proxy"}); err != nil {
		return err
	}
	resolv, err := c.write(filepath.Join(n.Name, "resolv.conf"), []byte("nameserver "+lab.NetIP4+"\n"))
	if err != nil {
		return err
	}
	config, err := json.MarshalIndent(n.kubeletConfig(resolv), "", " ")
	if err != nil {
		return err
	}
	return n.WriteFile("kubelet.json", config)
}

// kubeletConfig is a KubeletConfiguration of kubelet.config.k8s.io/v1beta1.
func (n *Node) kubeletConfig(resolvConf string) map[string]any {
	type obj = map[string]any
	c := n.cluster
	return obj{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"cgroupDriver":             "cgroupfs", "cgroupRoot": n.CgroupParent(), "failCgroupV1": false, "failSwapOn": false,
		"address": n.IP4(), "healthzBindAddress": "127.0.0.1", "readOnlyPort": 0,
		"authentication": obj{
			"anonymous": obj{"enabled": false}, "webhook": obj{"enabled": true}, "x509": obj{"clientCAFile": c.pki.ca},
		},
		"authorization": obj{"mode": "Webhook"},
		"tlsCertFile":   c.path(n.Name + ".crt"), "tlsPrivateKeyFile": c.path(n.Name + ".key"),
		"clusterDomain": "cluster.local", "clusterDNS": []string{dnsIP}, "resolvConf": resolvConf,
		"volumePluginDir": "/var/lib/kubelet/volumeplugins",
		// What the machine has to spare is not the lab's to judge, and no image is ever to be removed.
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
		"evictionHard": obj{"memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%"},
		// Without CAP_SYS_RESOURCE a value below that of the lab's own process cannot be set.
		"oomScoreAdj": 0, "maxOpenFiles": 20000,
		// A test waits for these.
		"nodeStatusUpdateFrequency": "4s", "syncFrequency": "10s",
	}
}

// awaitNodes returns when all nodes are ready, and the cluster's DNS is.
func (c *Cluster) awaitNodes(ctx context.Context) error {
	_, err := c.Kubectl(ctx, "wait", "--for=condition=Ready", "nodes", "--all", "--timeout="+startPatience.String())
	if err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, "rollout", "status", "-n", "kube-system", "deployment/coredns", "--timeout="+startPatience.String())
	return err
}
