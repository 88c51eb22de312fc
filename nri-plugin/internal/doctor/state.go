// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"tailscale.com/tstime"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/status"
)

// A pod's state is a dozen files, and one for each peer, of a block each.
const (
	leastBytes, leastInodes = 1 << 20, 50
	fewBytes, fewInodes     = 64 << 20, 2000
)

// checkState looks at the state directory, and writes nothing to it.
func checkState(_ context.Context, h *Host) []Finding {
	dir := h.cfg.StateDir
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Finding{warn(dir+" is not there", remedyStateMissing)}
	case err != nil:
		return []Finding{fail(err.Error(), remedyStateRead)}
	case !info.IsDir():
		return []Finding{fail(dir+" is not a directory", remedyStateRead)}
	}
	var findings []Finding
	if err := unix.Access(dir, unix.W_OK); err != nil {
		findings = append(findings, fail(fmt.Sprintf("writing to %s: %v", dir, err), remedyStateWrite))
	}
	// The kubelet makes a hostPath 0755: others then see which pods there are, and
	// none of their keys, which are in directories of their own.
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		findings = append(findings, warn(fmt.Sprintf("others may write to %s, mode %#o", dir, mode), remedyStateMode))
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil {
		free := st.Bavail * uint64(st.Bsize)
		findings = append(findings, judgeSpace(dir, free, st.Ffree, st.Files))
	}
	state, err := engine.InspectState(dir)
	if err != nil {
		return append(findings, fail(err.Error(), remedyStateRead))
	}
	for _, pod := range state.Pods {
		own := filepath.Join(dir, pod.UID)
		if info, err := os.Stat(own); err == nil && info.Mode().Perm()&0o077 != 0 {
			findings = append(findings, warn(fmt.Sprintf("others may look into %s, mode %#o", own, info.Mode().Perm()), remedyStateMode))
		}
	}
	for _, bad := range state.Bad {
		findings = append(findings, fail(bad, remedyBadRecord))
	}
	if len(state.SetAside) > 0 {
		findings = append(findings, warn("set aside: "+strings.Join(state.SetAside, ", "), remedySetAside))
	}
	return findings
}

// judgeSpace judges the free space. A file system without a fixed number of inodes says
// that it has 0.
func judgeSpace(dir string, bytes, inodes, allInodes uint64) Finding {
	seen := fmt.Sprintf("%s has %d MiB and %d inodes free", dir, bytes>>20, inodes)
	counts := allInodes > 0
	if !counts {
		seen = fmt.Sprintf("%s has %d MiB free", dir, bytes>>20)
	}
	switch {
	case bytes < leastBytes || counts && inodes < leastInodes:
		return fail(seen, remedySpace)
	case bytes < fewBytes || counts && inodes < fewInodes:
		return warn(seen, remedySpace)
	}
	return fine(seen)
}

// checkLeftovers looks for links and records that belong to nothing. Pods come and go
// meanwhile, so what counts is what is still there at a second look.
func checkLeftovers(ctx context.Context, h *Host) []Finding {
	first := h.leftovers(ctx)
	if first.err != nil {
		return []Finding{unknown(first.err.Error())}
	}
	if first.none() {
		return []Finding{fine(first.seen)}
	}
	tstime.Sleep(ctx, h.secondLook)
	second := h.leftovers(ctx)
	if second.err != nil {
		return []Finding{unknown(second.err.Error())}
	}
	stays := func(before []string) func(string) bool {
		return func(s string) bool { return !slices.Contains(before, s) }
	}
	second.links = slices.DeleteFunc(second.links, stays(first.links))
	second.records = slices.DeleteFunc(second.records, stays(first.records))
	var findings []Finding
	if len(second.links) > 0 {
		findings = append(findings, warn("links without a record: "+strings.Join(second.links, ", "), remedyLeftLink))
	}
	if len(second.records) > 0 {
		findings = append(findings, warn("records without a sandbox: "+strings.Join(second.records, ", "), remedyLeftRecord))
	}
	if len(findings) == 0 {
		return []Finding{fine(second.seen)}
	}
	return findings
}

// leftovers are the links and records found in one look.
type leftovers struct {
	links, records []string
	seen           string
	err            error
}

func (l leftovers) none() bool { return len(l.links)+len(l.records) == 0 }

func (h *Host) leftovers(ctx context.Context) (l leftovers) {
	v, err := h.inspect()
	if err != nil {
		return leftovers{err: err}
	}
	state, err := engine.InspectState(h.cfg.StateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return leftovers{err: err}
	}
	nodes, running := h.nodes(ctx)
	count := 0
	for _, link := range v.Links {
		if !engine.IsOurLink(link.Name) {
			continue
		}
		count++
		if !slices.ContainsFunc(state.Pods, func(p engine.StoredPod) bool { return p.Link == link.Name }) {
			l.links = append(l.links, link.Name)
		}
	}
	for _, p := range state.Pods {
		served := slices.ContainsFunc(nodes, func(n status.Node) bool { return n.UID == p.UID })
		if p.Gone && !served {
			l.records = append(l.records, p.Namespace+"/"+p.Name)
		}
	}
	l.seen = fmt.Sprintf("%d links, %d records", count, len(state.Pods))
	if !running {
		l.seen += ", no plugin to ask"
	}
	return l
}

// A pod's node has this many open files, and a kubelet takes this many pods unless
// told otherwise.
const (
	filesPerNode = 11
	usualPods    = 110
)

// checkFiles looks at the running plugin's limit of open files, or at this process's
// own, which in the plugin's pod is the same.
func checkFiles(ctx context.Context, h *Host) []Finding {
	pid, whose := "self", "a process like this one"
	var d net.Dialer
	if conn, err := d.DialContext(ctx, "unix", h.cfg.StatusSocket); err == nil {
		if p, ok := listener(conn); ok {
			pid, whose = strconv.Itoa(p), "the plugin"
		}
		conn.Close()
	}
	limits, err := h.read("proc", pid, "limits")
	if err != nil {
		return []Finding{unknown(err.Error())}
	}
	most, ok := openFiles(limits)
	if !ok {
		return []Finding{fine(whose + " has no limit of open files")}
	}
	entries, err := os.ReadDir(h.path("proc", pid, "fd"))
	seen := fmt.Sprintf("%s has %d of %d open files", whose, len(entries), most)
	if err != nil || pid == "self" {
		entries, seen = nil, fmt.Sprintf("%s may have %d open files", whose, most)
	}
	room := max(most-len(entries), 0) / filesPerNode
	seen += fmt.Sprintf(": room for %d more pods", room)
	switch {
	case room == 0:
		return []Finding{fail(seen, remedyFiles)}
	case room < usualPods:
		return []Finding{warn(seen, remedyFiles)}
	}
	return []Finding{fine(seen)}
}

// openFiles is the limit in a /proc/PID/limits; Go raises the soft one to the hard one
// at its start.
func openFiles(limits string) (most int, ok bool) {
	for line := range strings.Lines(limits) {
		if rest, is := strings.CutPrefix(line, "Max open files"); is {
			if f := strings.Fields(rest); len(f) > 0 {
				most, err := strconv.Atoi(f[0])
				return most, err == nil
			}
		}
	}
	return 0, false
}

// A host is short of memory where processes have waited for it for this share of a
// minute, in percent, or less than this share is left.
const (
	pressureWarns = 10.0
	memoryLeft    = 5 // percent
)

// checkMemory looks at the host's pressure, and at what is left.
func checkMemory(_ context.Context, h *Host) []Finding {
	info, err := h.read("proc/meminfo")
	if err != nil {
		return []Finding{unknown(err.Error())}
	}
	total, left := memInfo(info, "MemTotal:"), memInfo(info, "MemAvailable:")
	seen := fmt.Sprintf("%d of %d MiB available", left>>10, total>>10)
	short := left*100 < total*memoryLeft
	if text, err := h.read("proc/pressure/memory"); err == nil {
		var avg10, avg60 float64
		if n, _ := fmt.Sscanf(text, "some avg10=%f avg60=%f", &avg10, &avg60); n == 2 {
			seen += fmt.Sprintf(", waited for in %.1f %% of the last minute", avg60)
			short = short || avg60 >= pressureWarns
		}
	}
	if short {
		return []Finding{warn(seen, remedyMemory)}
	}
	return []Finding{fine(seen)}
}

// memInfo returns a value of /proc/meminfo, in kB.
func memInfo(text, key string) uint64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				kB, _ := strconv.ParseUint(f[0], 10, 64)
				return kB
			}
		}
	}
	return 0
}
