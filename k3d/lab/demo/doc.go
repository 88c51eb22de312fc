// SPDX-License-Identifier: BSD-3-Clause

// Package demo shows the main job for real: pods on a containerd of their own join a tailnet, and
// a stock tailscaled talks to them. Run shows it all, act by act, on a Screen; what it shows is package scene's.
package demo
