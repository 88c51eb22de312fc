// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
)

// version is what the Go toolchain recorded of the source, "(devel)" where it
// recorded nothing.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(devel)"
	}
	return cmp.Or(info.Main.Version, "(devel)")
}

// printVersion writes our version and those that decide how it behaves.
func printVersion(w io.Writer) error {
	_, err := fmt.Fprintf(w, "tailscale-nri %s\ntailscale.com %s\nNRI %s\n%s %s/%s\n",
		version(), moduleVersion("tailscale.com"), moduleVersion("github.com/containerd/nri"),
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
