// SPDX-License-Identifier: BSD-3-Clause

// Package buildinfo says of which version this program is, and those of the modules
// that decide how it behaves.
//
// It does not ask what version another process is of.
package buildinfo

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// linked is the version that SetVersion was given.
var linked string

// SetVersion hands over what the linker has told package main, "" for nothing. It is
// called before all else.
func SetVersion(version string) { linked = version }

// Version is the version set by the linker, else the one that the Go toolchain recorded
// of the source.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return cmp.Or(linked, info.Main.Version, "(devel)")
	}
	return cmp.Or(linked, "(devel)")
}

// Print writes this program's version and those of the modules that decide how it behaves.
func Print(w io.Writer) error {
	_, err := fmt.Fprintf(w, "tailscale-nri %s\ntailscale.com %s\nNRI %s\n%s %s/%s\n",
		Version(), ModuleVersion("tailscale.com"), ModuleVersion("github.com/containerd/nri"),
		runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// ModuleVersion returns the version of a module that is linked in.
func ModuleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == path {
				return m.Version
			}
		}
	}
	return "unknown"
}
