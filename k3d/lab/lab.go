// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"
)

// Lab is a running lab.
type Lab struct {
	cfg   Config
	lock  net.Listener // nil after Open
	node  *Node        // nil with Config.Bare
	nodes []*Node      // those of AddNode
}

// Up removes what an earlier lab of this Config left and builds a new one: namespaces, bridge, and unless it is to be
// bare a node, which is containerd with its images. The control plane, the plugin and peers are started apart. When it fails, nothing remains.
func Up(ctx context.Context, cfg Config) (_ *Lab, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := cfg.checkTools(); err != nil {
		return nil, err
	}
	lock, err := cfg.lock()
	if err != nil {
		return nil, err
	}
	lab := &Lab{cfg: cfg, lock: lock}
	if err := cfg.down(); err != nil {
		return nil, errors.Join(fmt.Errorf("removing an earlier lab: %w", err), lab.Close())
	}
	if err := lab.build(ctx); err != nil {
		return nil, errors.Join(err, lab.Down())
	}
	return lab, nil
}

func (l *Lab) build(ctx context.Context) error {
	begin := time.Now()
	steps := []func() error{
		l.cfg.makeDir,
		l.cfg.makeNamespaceDir,
		l.cfg.makeBridgeNS,
		l.open,
		func() error { return l.buildNode(ctx) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	l.cfg.Logger.Info("lab is up", "dir", l.cfg.Dir, "took", time.Since(begin).Round(time.Millisecond))
	return nil
}

func (l *Lab) buildNode(ctx context.Context) error {
	if l.node == nil {
		return nil
	}
	return l.node.build(ctx)
}

// Open returns the lab of this Config that another program has left running. Its daemons are not this program's: it
// can use them, and Down, but not restart them.
func Open(cfg Config) (*Lab, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(cfg.path(markFile)); err != nil {
		return nil, fmt.Errorf("no lab in %s; start one first", cfg.Dir)
	}
	lab := &Lab{cfg: cfg}
	return lab, lab.open()
}

func (l *Lab) open() error {
	if l.cfg.Bare {
		return nil
	}
	spec, err := NodeConfig{}.withDefaults()
	if err != nil {
		return err
	}
	l.node, err = l.cfg.newNode(spec)
	return err
}

// Close lets go of the lab and leaves it running.
func (l *Lab) Close() error {
	for _, n := range l.nodes {
		n.cri.close()
	}
	if l.node != nil {
		l.node.cri.close()
	}
	if l.lock != nil {
		return l.lock.Close()
	}
	return nil
}

// Down ends the lab and removes all that it made. Pods do not get an orderly end: for that, stop them first.
func (l *Lab) Down() error {
	return errors.Join(l.cfg.down(), l.Close())
}

// Dir is the lab's directory.
func (l *Lab) Dir() string { return l.cfg.Dir }

// CRI is the way to the node's pods.
func (l *Lab) CRI() *CRI { return l.node.cri }

// Containerd is the node's runtime.
func (l *Lab) Containerd() *Containerd { return l.node.containerd }

// NRISocket is containerd's NRI socket as seen from outside the node; inside it is /run/nri/nri.sock. Each start of
// containerd makes a new file.
func (l *Lab) NRISocket() string { return l.cfg.path(nodeNS, "run", "nri", "nri.sock") }

// NodeRun is where the node's /run is seen from outside, but for what is mounted inside of it.
func (l *Lab) NodeRun() string { return l.cfg.path(nodeNS, "run") }

// ToolPath is labtool on this machine, a static binary to be run in any namespace.
func (l *Lab) ToolPath() string { return l.cfg.image("labtool") }

// NodeCommand runs a program in the node's network and mount namespaces, where the pods' network namespaces are below
// /run/netns. The lab's binaries come first in its PATH. It ends with ctx.
func (l *Lab) NodeCommand(ctx context.Context, name string, args ...string) *exec.Cmd {
	return l.cfg.command(ctx, nodeNS, name, args...)
}

// NetCommand runs a program where the control plane is.
func (l *Lab) NetCommand(ctx context.Context, name string, args ...string) *exec.Cmd {
	return l.cfg.command(ctx, netNS, name, args...)
}

// PodCommand runs a program of this machine in a pod's network namespace; its output comes as it is written, other
// than with CRI.Exec.
func (l *Lab) PodCommand(ctx context.Context, podID, name string, args ...string) (*exec.Cmd, error) {
	return l.node.PodCommand(ctx, podID, name, args...)
}

// StartNet starts a daemon where the control plane is; its log is log/NAME.log over all its starts.
func (l *Lab) StartNet(name, binary string, args ...string) (*Process, error) {
	return l.cfg.start(name, l.NetCommand(context.Background(), binary, args...))
}

// CommandIn runs a program in "node", in "net", in a peer by its name, or in a pod by its ID.
func (l *Lab) CommandIn(ctx context.Context, where, name string, args ...string) (*exec.Cmd, error) {
	if isNamespace(l.cfg.nsFile(where)) {
		return l.cfg.command(ctx, where, name, args...), nil
	}
	return l.PodCommand(ctx, where, name, args...)
}

// InNode runs a command in the node to its end and returns its standard output.
func (l *Lab) InNode(ctx context.Context, name string, args ...string) (string, error) {
	return Run(l.NodeCommand(ctx, name, args...))
}

// InPod runs a program of this machine in a pod's network namespace to its end and returns its standard output.
func (l *Lab) InPod(ctx context.Context, podID, name string, args ...string) (string, error) {
	cmd, err := l.PodCommand(ctx, podID, name, args...)
	if err != nil {
		return "", err
	}
	return Run(cmd)
}

// StartPlugin starts the plugin (Config.Plugin) in the node, with env added to the caller's environment; its log is
// log/plugin.log over all its starts.
func (l *Lab) StartPlugin(env []string, args ...string) (*Process, error) {
	return l.node.startPlugin("plugin", env, args...)
}
