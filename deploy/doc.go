// SPDX-License-Identifier: BSD-3-Clause

// Package deploy holds the files that install tailscale-nri on a cluster. It is a
// package for the sake of its tests, which compare these files with each other and
// with the program.
//
//	base/        the kustomization for any cluster with containerd and NRI
//	components/  what some clusters need on top: netns by /proc, workload
//	             identity, pods that wait for the plugin
//	overlays/    base and components put together: k3s, k3d, headscale, …
//	chart/       a Helm chart that renders the same
//	monitoring/  alerts, a dashboard and how to scrape, for Prometheus
//
// TROUBLESHOOTING.md quotes the program's texts; tests compare them.
//
// base/daemonset.yaml gives the reasons; the chart's copy of it leaves them
// out. The program defines the variables (nri-plugin/internal/settings/settings.go).
//
// The package has no code, and its tests talk to no cluster. The tests of k3d/lab
// show whether an API server takes the manifests, and whether pods then run.
package deploy
