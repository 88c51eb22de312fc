// SPDX-License-Identifier: BSD-3-Clause

// Package doctor checks a host, its kernel and its way to the tailnet, and names a remedy
// for each fault.
//
// It looks at the host itself, so that it works where no process serves, and asks the
// serving process, on its status socket, for what only that process knows. Each check ends
// with its context.
//
// It repairs nothing, and changes nothing: the key that it mints to try a credential it
// deletes.
package doctor
