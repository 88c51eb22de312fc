// SPDX-License-Identifier: BSD-3-Clause

// Package kube runs a real Kubernetes cluster of two nodes in a lab (package lab), without Docker, a registry or an
// account.
//
//	 network namespace …-net                 n1                          n2
//	┌───────────────────────────────┐      ┌─────────────────────────┐ ┌─────────────────────────┐
//	│ etcd, kube-apiserver,         │      │ containerd, kubelet     │ │ containerd, kubelet     │
//	│ controller-manager, scheduler │      │ kube-proxy: nftables    │ │ kube-proxy: iptables    │
//	│                               │      │ CNI: bridge             │ │ CNI: ptp                │
//	│ the lab's tailnet and its API │      │ laid out as Debian is   │ │ laid out as k3d's are   │
//	└───────────────┬───────────────┘      └────────────┬────────────┘ └────────────┬────────────┘
//	                └────────────── 172.30.69.0/24 ─────┴───────────────────────────┘
//
// All programs are the real ones, built from the versions pinned in k3d/lab/tools (see kube.mk). The nodes differ on
// purpose, so that one cluster stands for several kinds; what a node of k3d does otherwise is in lab.NodeConfig.
//
// The cluster's state ends with the lab: etcd lies in its directory. Pods have IPv4 alone.
//
// The package does not know the plugin: what is applied to the cluster is its caller's. It has no client of the
// Kubernetes API but kubectl.
package kube
