// SPDX-License-Identifier: BSD-3-Clause

package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"tailscale-nri/k3d/lab"
)

// Config says where a cluster stands. The zero value is a usable cluster.
type Config struct {
	// Lab is the lab below it. Its Name is DefaultName unless it is given, its Bare is ignored.
	Lab lab.Config
}

// DefaultName is that of a cluster's lab.
const DefaultName = "tsnri-cluster"

// NodeConfig is a node and how its kube-proxy works.
type NodeConfig struct {
	lab.NodeConfig
	ProxyMode string // "nftables" or "iptables"
}

// nodeConfigs are the nodes that every cluster has.
func nodeConfigs() []NodeConfig {
	return []NodeConfig{
		{lab.NodeConfig{Name: "n1", Number: 1, Kubelet: true, CNI: "bridge", Containerd: validatorTOML}, "nftables"},
		{lab.NodeConfig{Name: "n2", Number: 2, Kubelet: true, CNI: "ptp", K3d: true}, "iptables"},
	}
}

// validatorTOML has containerd heed the annotation with which a pod requires an NRI plugin.
const validatorTOML = `[plugins.'io.containerd.nri.v1.nri'.default_validator]
  enable = true
`

// Cluster is a running cluster.
type Cluster struct {
	Lab   *lab.Lab
	Nodes []*Node
	dir   string // of what is the cluster's alone
	build string
	log   *slog.Logger
	pki   pki
}

// Up removes what an earlier cluster of this Config left, and builds a new one: the lab, the Kubernetes control plane,
// nodes that are ready and a cluster DNS. The lab's tailnet is started apart. When it fails, nothing remains.
func Up(ctx context.Context, cfg Config) (_ *Cluster, err error) {
	cfg.Lab = labConfig(cfg.Lab)
	if err := checkTools(cfg.Lab); err != nil {
		return nil, err
	}
	if err := loadBridgeFilter(ctx); err != nil {
		return nil, err
	}
	begin := time.Now()
	running, err := lab.Up(ctx, cfg.Lab)
	if err != nil {
		return nil, err
	}
	c, err := newCluster(running, cfg.Lab)
	if err == nil {
		err = c.start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, running.Down())
	}
	c.log.Info("cluster is up", "took", time.Since(begin).Round(time.Millisecond))
	return c, nil
}

func labConfig(cfg lab.Config) lab.Config {
	if cfg.Name == "" {
		cfg.Name = DefaultName
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Bare = true
	return cfg
}

func newCluster(running *lab.Lab, cfg lab.Config) (*Cluster, error) {
	build, err := cfg.BuildDir()
	if err != nil {
		return nil, err
	}
	return &Cluster{Lab: running, dir: filepath.Join(running.Dir(), "kube"), build: build, log: cfg.Logger}, nil
}

// Open returns the cluster of this Config that another program has left running. Its daemons are that program's: they
// cannot be restarted from here.
func Open(cfg Config) (*Cluster, error) {
	cfg.Lab = labConfig(cfg.Lab)
	running, err := lab.Open(cfg.Lab)
	if err != nil {
		return nil, err
	}
	c, err := newCluster(running, cfg.Lab)
	if err != nil {
		return nil, err
	}
	for _, spec := range nodeConfigs() {
		node, err := running.OpenNode(spec.NodeConfig)
		if err != nil {
			return nil, err
		}
		c.Nodes = append(c.Nodes, &Node{Node: node, ProxyMode: spec.ProxyMode, cluster: c})
	}
	return c, nil
}

// Down removes all that a cluster of this Config has made, whatever state it was left in. That there is none is not an error.
func Down(cfg Config) error { return lab.Down(labConfig(cfg.Lab)) }

// Remains lists what is left of a cluster of this Config. After a Down there is nothing.
func Remains(cfg Config) ([]string, error) { return lab.Remains(labConfig(cfg.Lab)) }

// Down ends the cluster and removes all that it made. Pods get no orderly end.
func (c *Cluster) Down() error { return c.Lab.Down() }

// Close lets go of the cluster and leaves it running.
func (c *Cluster) Close() error { return c.Lab.Close() }

func (c *Cluster) start(ctx context.Context) error {
	steps := []struct {
		what string
		do   func(context.Context) error
	}{
		{"making certificates", func(context.Context) error { return c.makePKI() }},
		{"starting the control plane", c.startControlPlane},
		{"starting the nodes", c.startNodes},
		{"starting the cluster's DNS", c.startDNS},
		{"waiting for the nodes", c.awaitNodes},
	}
	for _, step := range steps {
		begin := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		c.log.Info(step.what, "took", time.Since(begin).Round(time.Millisecond))
	}
	return nil
}

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

func (c *Cluster) bin(name string) string { return filepath.Join(c.build, "bin", name) }

// write writes a file of the cluster's and returns its path.
func (c *Cluster) write(name string, data []byte) (string, error) {
	file := c.path(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", fmt.Errorf("writing %s: %w", file, err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return "", fmt.Errorf("writing %s: %w", file, err)
	}
	return file, nil
}

// loadBridgeFilter loads br_netfilter where the kernel has it as a module: without it the answer of a Service's pod to a
// pod of the same bridge passes kube-proxy's rules by. The machine's own bridges stay as they were, since the module's
// settings are each network namespace's own.
func loadBridgeFilter(ctx context.Context) error {
	const settings = "/proc/sys/net/bridge"
	if _, err := os.Stat(settings); err == nil {
		return nil
	}
	if out, err := exec.CommandContext(ctx, "modprobe", "br_netfilter").CombinedOutput(); err != nil {
		return fmt.Errorf("loading the kernel module br_netfilter, which Services need; do it by hand with: modprobe br_netfilter: %w: %s",
			err, bytes.TrimSpace(out))
	}
	for _, key := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"} {
		if err := os.WriteFile(filepath.Join(settings, key), []byte("0"), 0); err != nil {
			return fmt.Errorf("keeping br_netfilter from this machine's own bridges: %w", err)
		}
	}
	return nil
}

// checkTools says which binary is missing before anything is made.
func checkTools(cfg lab.Config) error {
	build, err := cfg.BuildDir()
	if err != nil {
		return err
	}
	var files []string
	for _, name := range []string{
		"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl", "coredns",
	} {
		files = append(files, filepath.Join(build, "bin", name))
	}
	return lab.CheckBuilt("lab-kube", files...)
}
