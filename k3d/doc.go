// SPDX-License-Identifier: BSD-3-Clause

// Package k3d holds what it takes to try the program on a cluster of k3d: the cluster's configuration, sample pods, and
// the make targets that put the program there. Its tests hold the files against k3d's own schema and the scripts against
// a kubectl that writes down what it is told.
//
// It holds no code, and its tests start no cluster: k3d wants Docker. lab is a place without it.
package k3d
