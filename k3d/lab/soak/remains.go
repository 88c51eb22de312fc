// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tailscale-nri/k3d/lab/scene"
)

// remains is what there is of pods.
type remains struct {
	scene.Traces
	mounts []string // mount points in the node
	files  []string // next to the plugin's socket
}

func (r *run) remains(ctx context.Context) (now remains, err error) {
	if now.Traces, err = r.scene.Traces(ctx); err != nil {
		return now, err
	}
	mounts, err := r.scene.Lab.InNode(ctx, "cat", "/proc/self/mountinfo")
	if err != nil {
		return now, err
	}
	for line := range strings.Lines(mounts) {
		if fields := strings.Fields(line); len(fields) > 4 { // proc_pid_mountinfo(5): the fifth is the mount point
			now.mounts = append(now.mounts, fields[4])
		}
	}
	files, err := r.scene.Lab.InNode(ctx, "ls", "-A", "/run/tailscale-nri")
	now.files = strings.Fields(files)
	return now, err
}

// beyond lists what there is more than base, each with the pod that it is of.
func (c *history) beyond(base, now remains) (leaks []string) {
	for _, kind := range []struct {
		name     string
		was, has []string
	}{
		{"device", base.Devices, now.Devices},
		{"link", base.Links, now.Links},
		{"network namespace", base.NetNS, now.NetNS},
		{"state", base.State, now.State},
		{"mount", base.mounts, now.mounts},
		{"file", base.files, now.files},
	} {
		for _, thing := range surplus(kind.was, kind.has) {
			leaks = append(leaks, fmt.Sprintf("%s %s of %s", kind.name, thing, c.whose(thing)))
		}
	}
	return leaks
}

// surplus is what has holds more often than was.
func surplus(was, has []string) (more []string) {
	was = slices.Clone(was)
	for _, thing := range has {
		if i := slices.Index(was, thing); i >= 0 {
			was = slices.Delete(was, i, i+1)
		} else {
			more = append(more, thing)
		}
	}
	return more
}

// withoutRuntimes is now without the network namespaces that containerd has made and not reported, since it was ended
// meanwhile: they belong to no pod, no ts0 is in them, and only containerd could know of them.
func (r *run) withoutRuntimes(ctx context.Context, now remains) (rest remains, left int) {
	rest = now
	rest.NetNS = nil
	for _, ns := range now.NetNS {
		_, err := r.scene.Lab.InNode(ctx, "nsenter", "--net=/run/netns/"+ns, "--", "ip", "link", "show", "ts0")
		if err == nil || r.history.has(ns) {
			rest.NetNS = append(rest.NetNS, ns)
			continue
		}
		left++
		rest.mounts = slices.DeleteFunc(slices.Clone(rest.mounts), func(m string) bool { return m == "/run/netns/"+ns })
	}
	return rest, left
}

// keptAfter is when only those pods are left whose removal containerd has not reported: the plugin waits for a minute
// before it gives up a pod that went without a runtime event.
const keptAfter = 75 * time.Second

// settleAll is settle, but for pods whose end containerd has not reported: it was ended between a sandbox's stop and its
// removal, and the plugin keeps such a pod for ten minutes, unless a list without it comes sooner. It gets one.
func (r *run) settleAll(ctx context.Context, base remains) (leaks []string, err error) {
	kept := 0
	leaks, err = r.settle(ctx, base, func(leaks []string, after time.Duration) bool {
		kept = 0
		if after > keptAfter {
			kept = r.kept(ctx, leaks)
		}
		return kept > 0
	})
	if err != nil || kept == 0 {
		return leaks, err
	}
	r.log("%d pods are kept, stopped, of whose removal containerd has not reported: the plugin is started again", kept)
	if err := r.restart(ctx); err != nil {
		return nil, err
	}
	return r.settle(ctx, base, never)
}

// kept is how many pods the plugin keeps, stopped, if all that is left is of them; 0 if something else is.
func (r *run) kept(ctx context.Context, leaks []string) (n int) {
	nodes, err := r.scene.Status(ctx)
	if err != nil {
		return 0 // it is asked again
	}
	leaks = slices.Clone(leaks)
	for _, node := range nodes {
		if node.State == "Stopped" {
			n++
			leaks = slices.DeleteFunc(leaks, func(leak string) bool { return strings.Contains(leak, node.SandboxID[:12]) })
		}
	}
	if len(leaks) > 0 {
		return 0
	}
	return n
}

func never([]string, time.Duration) bool { return false }

// settle waits until there is no more than base, and returns what is left when the time for that is over, or when it is
// enough for the caller.
func (r *run) settle(ctx context.Context, base remains, enough func(leaks []string, after time.Duration) bool) (leaks []string, err error) {
	begin := time.Now()
	said := begin
	for {
		now, err := r.remains(ctx)
		if err != nil {
			return nil, err
		}
		now, runtimes := r.withoutRuntimes(ctx, now)
		leaks = r.history.beyond(base, now)
		if after := time.Since(begin); len(leaks) == 0 || after > r.cfg.Settle || enough(leaks, after) {
			if runtimes > 0 {
				r.log("not counted: %d network namespaces of sandboxes that containerd was ended in, of which the plugin never heard", runtimes)
			}
			r.log("after %v, %d things are left that should not be", time.Since(begin).Round(100*time.Millisecond), len(leaks))
			return leaks, nil
		}
		if time.Since(said) > 3*progressEvery {
			said = time.Now()
			r.log("still there, after %v: %d things, such as %s", time.Since(begin).Round(time.Second), len(leaks), leaks[0])
		}
		pause(ctx, 500*time.Millisecond)
	}
}
