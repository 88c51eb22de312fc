// SPDX-License-Identifier: BSD-3-Clause

// Package nri is the plugin as the container runtime knows it: [Registration] keeps it
// registered on the runtime's NRI socket, and [Plugin] has the hooks.
//
// A hook translates the sandbox (package podspec), calls the engine once and returns: the
// runtime holds up every other pod of the host for as long. plugin.go has the runtime's
// contract.
//
// It does not touch a pod's network or a tailnet, which is the engine's, and asks
// Kubernetes nothing: all it knows of a pod comes from the runtime.
package nri
