// SPDX-License-Identifier: BSD-3-Clause

// Package k3s holds the files that switch NRI on in a k3s, and those that make containers wait for the plugin. Its tests
// render them as k3s does and hand what comes out to a real containerd.
//
// It holds no code, and it does not run k3s: testdata has the parts of its base templates that matter here.
package k3s
