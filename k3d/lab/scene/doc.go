// SPDX-License-Identifier: BSD-3-Clause

// Package scene is what the demo, the end-to-end tests, the soak and the downtime bench act on: a lab with a tailnet, the
// plugin, a peer and pods (Scene), and places from which traffic begins (Place).
//
// Each method of Scene that observes something returns an error that says what was expected and what was seen. Nothing is
// taken from the plugin's word alone: what can be asked of the kernel, the peer or the tailnet is asked there.
//
// The tailnet is the lab's own, or the user's with OAuth credentials of theirs (Config.Own): the plugin takes the same
// way into both.
//
// The package does not build anything, holds no figure against a limit, and on the user's own tailnet touches no
// device but those that it has let in.
package scene
