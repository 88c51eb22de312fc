// SPDX-License-Identifier: BSD-3-Clause

// Package podtools has the commands that look into one pod's node: ping, whois, netcheck,
// bugreport and capture. Each asks the process that serves, on its status socket, and
// prints what that answers.
//
// They change nothing of a node, and open none of the serving process's files.
package podtools
