// SPDX-License-Identifier: BSD-3-Clause

// Package soak makes pods come and go on a lab while everything around them fails, and then looks for leaks.
//
//	plan          what happens when: cycles of pods, and events, drawn from a seed
//	cycle         one pod, from its sandbox to its removal
//	faults        plugin and containerd are killed, control plane and API are away
//	canary        one pod that stays, with a TCP connection over which a line goes every 10 ms
//	remains       what there is of pods: links, network namespaces, mounts, state, devices
//	processStats  what the plugin's process has: goroutines, descriptors, threads, memory
//
// The plan is the same for the same seed, and so is what each cycle does. When it does it is up to the machine: an event
// is due when a certain cycle begins, and so many others are under way.
//
// In the first three quarters of a run every event happens. In the last one the plugin is left alone, so that the process
// that is counted in the end has lived through something.
//
// The package does not build anything, it does not repair what it finds, and it never runs against a tailnet other than
// the lab's.
package soak
