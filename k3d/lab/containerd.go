// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Containerd is a node's container runtime. Pods outlive it, as they do on a real node.
type Containerd struct {
	cfg     Config
	node    NodeConfig
	cri     *CRI
	process *Process // nil unless this program has started it
}

// LogPath is the file that holds containerd's log over all its starts.
func (r *Containerd) LogPath() string { return r.cfg.path("log", r.logName()+".log") }

// logName is containerd's name among the lab's processes: that of the usual node's is plain.
func (r *Containerd) logName() string {
	if r.node.Name == nodeNS {
		return "containerd"
	}
	return r.node.Name + "-containerd"
}

// Process is the running containerd, nil while it is stopped.
func (r *Containerd) Process() *Process { return r.process }

// Start starts containerd and returns when it is ready for pods.
func (r *Containerd) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	cmd := r.cfg.command(context.WithoutCancel(ctx), r.node.Name, r.cfg.bin("containerd"), "--config", r.configPath())
	process, err := r.cfg.start(r.logName(), cmd)
	if err != nil {
		return err
	}
	r.process = process
	return process.Await(ctx, r.cri.ready)
}

// startPatience is how long a daemon of the lab may take to come up; on a loaded machine of two cores containerd has
// been seen to take 3 s.
const startPatience = 60 * time.Second

// Stop ends containerd with sig, unix.SIGTERM or unix.SIGKILL, and leaves its pods alone.
func (r *Containerd) Stop(ctx context.Context, sig unix.Signal) error {
	if r.process == nil {
		return fmt.Errorf("stopping containerd: this program has not started it")
	}
	if err := r.process.End(ctx, sig); err != nil {
		return err
	}
	r.process = nil
	return nil
}

// Restart is Stop and Start.
func (r *Containerd) Restart(ctx context.Context, sig unix.Signal) error {
	if err := r.Stop(ctx, sig); err != nil {
		return err
	}
	return r.Start(ctx)
}

func (r *Containerd) configPath() string { return r.cfg.path(r.node.Name, "containerd.toml") }

// configure writes containerd's and its CNI network's configuration. All paths but those of binaries and of the
// configuration are containerd's own defaults: the node has a /run and a /var/lib of its own.
func (r *Containerd) configure() error {
	cni := r.cfg.path(r.node.Name, "cni")
	if err := os.MkdirAll(cni, 0o755); err != nil {
		return fmt.Errorf("making the CNI directory: %w", err)
	}
	files := map[string]string{
		r.configPath(): fmt.Sprintf(containerdTOML, pauseImage, cni, filepath.Join(r.cfg.Build, "cni"),
			r.cfg.bin("runc"), r.cfg.NRIRequestTimeout) + r.node.Containerd,
		filepath.Join(cni, "10-lab.conflist"): r.node.cniConfig(),
	}
	for file, text := range files {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return fmt.Errorf("configuring containerd: %w", err)
		}
	}
	return nil
}

// imports is empty so that the machine's /etc/containerd says nothing here, and opt is where /var/lib is, since containerd
// makes that directory. restrict_oom_score_adj is for machines without CAP_SYS_RESOURCE, where runc could not lower the
// value. The plugin directories do not exist.
const containerdTOML = `version = 4
imports = []
[plugins.'io.containerd.internal.v1.opt']
  path = '/var/lib/containerd-opt'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '%s'
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true
  enable_selinux = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  conf_dir = '%s'
  bin_dirs = ['%s']
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = '%s'
  SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.other]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.other.options]
  BinaryName = '%[4]s'
  SystemdCgroup = false
[plugins.'io.containerd.nri.v1.nri']
  disable = false
  socket_path = '/var/run/nri/nri.sock'
  plugin_path = '/var/run/nri/plugins'
  plugin_config_path = '/var/run/nri/conf.d'
  plugin_registration_timeout = '5s'
  plugin_request_timeout = '%[5]s'
`

// cniConfig connects pods without masquerading: they reach each other and the nodes, nothing else.
func (n NodeConfig) cniConfig() string {
	ranges := fmt.Sprintf(`[{"subnet":%q}]`, n.PodSubnet4())
	if hasIPv6() && !n.Kubelet {
		ranges += fmt.Sprintf(`,[{"subnet":%q}]`, n.PodSubnet6())
	}
	connect := `"type":"bridge","bridge":"cni0","isDefaultGateway":true,"hairpinMode":true`
	routes := ""
	if n.CNI == "ptp" {
		connect, routes = `"type":"ptp"`, `,"routes":[{"dst":"0.0.0.0/0"}]`
	}
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":"lab","plugins":[{%s,"ipMasq":false,`+
		`"ipam":{"type":"host-local","ranges":[%s]%s}}]}`+"\n", connect, ranges, routes)
}
