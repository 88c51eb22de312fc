// SPDX-License-Identifier: BSD-3-Clause

// Package demo shows the main job for real: pods on a containerd of their own join a tailnet, and a stock tailscaled
// talks to them.
//
//	Run     the whole play, act by act, for somebody who watches
//	Scene   what it is played on: lab, tailnet, plugin, peer, pods
//
// Each method of Scene that observes something returns an error that says what was expected and what was seen; the
// end-to-end tests (k3d/lab/e2e) are made of the same methods. Nothing is taken from the plugin's word alone: what can
// be asked of the kernel, the peer or the tailnet is asked there.
//
// The tailnet is the lab's own, or the user's with OAuth credentials of theirs (Config.Own): the plugin takes the same
// way into both.
//
// The package does not build anything, holds no figure against a limit, and on the user's own tailnet touches no
// device but those that it has let in.
package demo
