// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"tailscale-nri/nri-plugin/internal/status"
)

// version is set by the linker (-X main.version=…, see the Makefile).
var version string

// ourVersion is the version set by the linker, else the one that the Go toolchain recorded of
// the source.
func ourVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return cmp.Or(version, info.Main.Version, "(devel)")
	}
	return cmp.Or(version, "(devel)")
}

// agentVersion is a row of the table.
type agentVersion struct {
	agent   pod
	version string
	err     error
}

// showVersions prints the version of this command, and those of all agents, also of
// such that stand by.
func showVersions(ctx context.Context, k kubectl, o options, s streams) (int, error) {
	fmt.Fprintf(s.out, "kubectl tailscale-nri %s, %s %s/%s\n\n", ourVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	agents, note, err := k.findAgents(ctx, o.agentNamespace, "")
	switch {
	case err != nil:
		return 0, err
	case len(agents) == 0:
		return 0, errNoAgents
	}
	s.remark(note)
	byName := make(map[string]pod)
	for _, a := range agents {
		byName[a.host()+" "+a.name()] = a
	}
	versions := each(byName, func(_ string, a pod) agentVersion { return k.versionOf(ctx, a, o) })
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return printVersions(s.out, versions)
}

// printVersions writes a table, and below it a line for each agent without an answer. It
// returns the exit code.
func printVersions(w io.Writer, versions []agentVersion) (code int, err error) {
	code = status.ExitOK
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	writeRow(tw, "HOST", "AGENT", "VERSION", "IMAGE")
	var silent strings.Builder
	for _, v := range versions {
		writeRow(tw, v.agent.host(), v.agent.name(), cmp.Or(v.version, "-"), v.agent.image())
		if v.err != nil {
			code = status.ExitNotAsked
			writeRow(&silent, v.agent.host()+": "+v.agent.silence(v.err))
		}
	}
	if err := tw.Flush(); err != nil || silent.Len() == 0 {
		return code, err
	}
	_, err = io.WriteString(w, "\n"+silent.String())
	return code, err
}

// versionOf asks an agent, of whatever version it is.
func (k kubectl) versionOf(ctx context.Context, agent pod, o options) agentVersion {
	v := agentVersion{agent: agent}
	if why := agent.notRunning(); why != "" {
		v.err = fmt.Errorf("%s", why)
		return v
	}
	var out []byte
	out, v.err = k.exec(ctx, agent, o.timeout, "-version")
	first, _, _ := strings.Cut(string(out), "\n")
	v.version = strings.TrimPrefix(first, "tailscale-nri ")
	return v
}
