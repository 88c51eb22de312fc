// SPDX-License-Identifier: BSD-3-Clause

// Package doctor checks a host, its kernel and its way to the tailnet, and names a remedy
// for each fault.
//
// It looks for itself, so that it has something to say where no process serves, and asks
// the one that does, on its status socket, for what only that one knows. Each check ends
// with its context.
//
// It mends nothing, and changes nothing: the key that it mints to try a credential it
// deletes.
package doctor
