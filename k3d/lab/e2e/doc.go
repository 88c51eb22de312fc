// SPDX-License-Identifier: BSD-3-Clause

// Package e2e tests the whole: the plugin as a process, a real containerd, a tailnet and a stock tailscaled. Each test
// has a lab of its own, by name and directory, so that any of them can be run alone and two at a time. What they do
// with it are the steps of package scene.
//
// They take the binaries as make leaves them in .build, and build nothing themselves.
//
// The package does not test what the packages below it can test alone: annotations one by one, the packet path, the
// ways into a tailnet.
package e2e
