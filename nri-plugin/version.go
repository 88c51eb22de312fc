// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// version is set by the linker (-X main.version=…, see the Makefile).
var version string

// ourVersion is what the linker was told, else what the Go toolchain recorded
// of the source.
func ourVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return cmp.Or(version, info.Main.Version, "(devel)")
	}
	return cmp.Or(version, "(devel)")
}

// printVersion writes our version and those that decide how it behaves.
func printVersion(w io.Writer) error {
	_, err := fmt.Fprintf(w, "tailscale-nri %s\ntailscale.com %s\nNRI %s\n%s %s/%s\n",
		ourVersion(), moduleVersion("tailscale.com"), moduleVersion("github.com/containerd/nri"),
		runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// moduleVersion is that of a module that is linked in.
func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == path {
				return m.Version
			}
		}
	}
	return "unknown"
}
