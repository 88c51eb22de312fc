// SPDX-License-Identifier: BSD-3-Clause

package kube

import (
	"context"
	"time"

	"tailscale-nri/k3d/lab"
)

const (
	serverURL   = "https://" + lab.NetIP4 + ":6443"
	etcdURL     = "http://" + lab.NetIP4 + ":2379"
	serviceCIDR = "10.96.0.0/16"
	serverIP    = "10.96.0.1" // of the Service kubernetes
	dnsIP       = "10.96.0.10"
	podCIDR     = "10.86.0.0/16" // of all nodes: lab.NodeConfig.PodSubnet4

	// Issuer is that of the cluster's ServiceAccount tokens.
	Issuer = "https://kubernetes.default.svc"
)

// startPatience is how long a daemon may take to come up on a loaded machine.
const startPatience = 3 * time.Minute

// startControlPlane starts etcd and what stands on it, in the lab's network namespace "net".
func (c *Cluster) startControlPlane(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if _, err := c.Lab.StartNet("etcd", c.bin("etcd"), "--data-dir="+c.path("etcd"), "--name=lab", "--unsafe-no-fsync",
		"--log-level=warn", "--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=lab=http://127.0.0.1:2380"); err != nil {
		return err
	}
	server, err := c.startServer()
	if err != nil {
		return err
	}
	if err := server.Await(ctx, c.serverReady); err != nil {
		return err
	}
	return c.startControllers()
}

func (c *Cluster) startServer() (*lab.Process, error) {
	err := c.issue(identity{
		name: "apiserver", user: "kube-apiserver", ips: []string{lab.NetIP4, serverIP, "127.0.0.1"},
		dns: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
	})
	if err != nil {
		return nil, err
	}
	if _, err := c.kubeconfig(identity{name: "admin", user: "lab-admin", groups: []string{"system:masters"}}); err != nil {
		return nil, err
	}
	return c.Lab.StartNet("kube-apiserver", c.bin("kube-apiserver"),
		"--etcd-servers="+etcdURL, "--bind-address="+lab.NetIP4, "--advertise-address="+lab.NetIP4,
		"--tls-cert-file="+c.path("apiserver.crt"), "--tls-private-key-file="+c.path("apiserver.key"),
		"--client-ca-file="+c.pki.ca, "--cert-dir="+c.path("apiserver"),
		"--service-cluster-ip-range="+serviceCIDR, "--service-account-issuer="+Issuer,
		"--service-account-key-file="+c.path("sa.pub"), "--service-account-signing-key-file="+c.path("sa.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--kubelet-client-certificate="+c.path("admin.crt"), "--kubelet-client-key="+c.path("admin.key"),
		"--kubelet-certificate-authority="+c.pki.ca, "--kubelet-preferred-address-types=InternalIP", "--profiling=false")
}

func (c *Cluster) serverReady(ctx context.Context) error {
	_, err := c.Kubectl(ctx, "get", "--raw", "/readyz")
	return err
}

func (c *Cluster) startControllers() error {
	manager, err := c.kubeconfig(identity{name: "controller-manager", user: "system:kube-controller-manager"})
	if err != nil {
		return err
	}
	scheduler, err := c.kubeconfig(identity{name: "scheduler", user: "system:kube-scheduler"})
	if err != nil {
		return err
	}
	if _, err := c.Lab.StartNet("kube-controller-manager", c.bin("kube-controller-manager"), "--kubeconfig="+manager,
		"--bind-address="+lab.NetIP4, "--cert-dir="+c.path("controller-manager"), "--root-ca-file="+c.pki.ca,
		"--service-account-private-key-file="+c.path("sa.key"), "--use-service-account-credentials=true",
		"--flex-volume-plugin-dir="+c.path("volumeplugins"), // made if it is not there, on this machine
		"--cluster-signing-cert-file="+c.pki.ca, "--cluster-signing-key-file="+c.path("ca.key"),
		"--leader-elect=false", "--allocate-node-cidrs=false", "--node-monitor-grace-period=20s", "--profiling=false"); err != nil {
		return err
	}
	_, err = c.Lab.StartNet("kube-scheduler", c.bin("kube-scheduler"), "--kubeconfig="+scheduler,
		"--bind-address="+lab.NetIP4, "--cert-dir="+c.path("scheduler"), "--leader-elect=false", "--profiling=false")
	return err
}
