// SPDX-License-Identifier: BSD-3-Clause

// Package supervisor runs this program as a child of itself and starts it again when it
// ends other than on purpose. Run is the supervisor, [Parent] the child's side of it.
//
// Between two children the supervisor holds the sockets of the pods' links, in an
// [FDStore]: what arrives meanwhile waits there, and no packet is lost to a restart.
//
// It does none of the work itself, knows nothing of pods or of the configuration, and
// decides nothing about a child that ended on purpose.
package supervisor
