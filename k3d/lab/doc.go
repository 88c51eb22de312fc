// SPDX-License-Identifier: BSD-3-Clause

// Package lab runs a real containerd, a tailnet and a peer on one machine, without Docker, a registry or an account.
//
//	  network namespace …-net              network namespace …-node + a mount namespace
//	┌───────────────────────────┐        ┌──────────────────────────────────────────────┐
//	│ control plane, DERP, STUN │        │ containerd, its NRI socket, tailscale-nri     │
//	│ API                       │        │                                               │
//	│ lab0 172.30.69.1/24 ──────┼── veth ┼─ eth0 172.30.69.11                            │
//	│      2001:db8:6e72:69::1  │        │ cni0 10.86.0.1, fd00:6e72:69::1               │
//	└──────────┬────────────────┘        │  ├── pod: eth0 10.86.0.x   (ts0: the plugin's)│
//	           │ veth                    │  └── pod: eth0 10.86.0.y                      │
//	┌──────────┴────────────────┐        └──────────────────────────────────────────────┘
//	│ eth0 172.30.69.21         │
//	│ tailscaled, the stock one │  network namespace …-peer + a mount namespace
//	└───────────────────────────┘
//
// That is the lab of one node, whose pods the caller runs. Lab.AddNode makes more of them, fit for a kubelet or
// laid out as k3d's are; package kube makes a Kubernetes cluster of such nodes.
//
// Everything that lasts stands below one directory (Config.Dir):
//
//	ns/              the namespaces, bind-mounted: net, node, peer; node-mnt, peer-mnt
//	node/run         /run of the node: run/containerd/containerd.sock, run/nri/nri.sock
//	peer/run         /run of the peer: run/tailscale/tailscaled.sock
//	log/             one log file for each process, and the containers' logs
//
// /var/lib of node and peer is a tmpfs that ends with their mount namespace, so containerd and the plugin use their
// standard paths and no file of theirs reaches the machine's.
//
// What belongs to the lab is known by what it is in, never by a pid file: a process by its namespaces or its cgroup
// (/NAME in every hierarchy), a mount by its path. So Down removes also what a killed run left behind, and Up starts
// with a Down.
//
// The package does not touch the machine's routes, rules, links, sysctls or firewall, reaches the internet only
// with Config.Uplink, does not build binaries (see tools.mk), and knows nothing of the engine: the plugin is a process to it.
package lab
