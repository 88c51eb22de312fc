// SPDX-License-Identifier: BSD-3-Clause

// Package k3d holds what it takes to try the program on a cluster of k3d: the cluster's configuration, sample pods, and
// the make targets that create and delete the cluster; make deploy (deploy/deploy.mk) puts the program there. Its tests
// hold the files against k3d's own schema.
//
// This package has no code, and its tests start no cluster: k3d needs Docker. Package lab, below it, does not.
package k3d
