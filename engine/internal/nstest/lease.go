// SPDX-License-Identifier: BSD-3-Clause

package nstest

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Lease takes a write lease on the file at path, as a program of a pod may, until the
// file that it returns is closed.
func Lease(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatalf("taking a lease: %v", err)
	}
	return f
}
