// SPDX-License-Identifier: BSD-3-Clause

// Package statussocket is how a process that serves pods reports its own state and
// theirs. [Health] holds that, [Server] answers on a unix socket, for root alone, and
// the commands status, ready and live, the doctor and the tools ask it there.
//
// What a status looks like, as a type and printed, is package status's. This package
// registers with no runtime and reads no configuration: other packages tell it the state.
package statussocket
