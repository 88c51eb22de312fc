// SPDX-License-Identifier: BSD-3-Clause

// Package podspec translates a pod's sandbox, as the container runtime describes it,
// into the engine's terms: whether the pod is to have a node, and what it asks for.
//
// From reads the annotations. What a pod has that asks for nothing else comes from
// [Defaults]; what it may ask for, from the cluster's [Policy], a file that this package
// parses. An error names the annotation or the place in the file, its value, and what to
// write instead: for an annotation the runtime shows it to the user.
//
// It keeps nothing, calls no engine, and reads no variable of the environment: the
// defaults are handed to it.
package podspec
