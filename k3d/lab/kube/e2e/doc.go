// SPDX-License-Identifier: BSD-3-Clause

// Package e2e holds the end-to-end tests on Kubernetes: the manifests of deploy/, with the image that make image has
// made, on a cluster of two nodes (package kube), seen from outside as a user would.
//
// One cluster serves all tests: TestCluster brings it up, plays the tests in order, and finds nothing left afterwards.
// How the plugin is deployed on each node is package install's to say.
//
// It has no code of its own but tests, and does not measure beyond the gap of a roll, which it prints.
package e2e
