// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"tailscale-nri/k3d/lab"
)

// role is what is known of one pod of the run, to name it when something of it is left.
type role struct {
	what      string // "cycle 17, runs"
	name, uid string
	hostname  string
	sandboxes []string
	netns     []string // file names below /run/netns
	devices   []string // all that its node was
}

func (r *role) String() string {
	var sandboxes []string
	for _, id := range r.sandboxes {
		sandboxes = append(sandboxes, id[:12]) // as the plugin's log has it
	}
	return fmt.Sprintf("pod default/%s (%s), uid %s, sandboxes %v, devices %v", r.name, r.what, r.uid, sandboxes, r.devices)
}

// cast is everybody.
type cast struct {
	mu    sync.Mutex
	roles []*role
}

// add begins a role; uid is the pod's.
func (c *cast) add(what, name, uid, hostname string) *role {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &role{what: what, name: name, uid: uid, hostname: hostname}
	c.roles = append(c.roles, r)
	return r
}

// sandbox notes a sandbox of the role's.
func (c *cast) sandbox(r *role, pod lab.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.sandboxes = append(r.sandboxes, pod.ID)
	if pod.NetNS != "" {
		r.netns = append(r.netns, filepath.Base(pod.NetNS))
	}
}

// device notes which device a sandbox's node is.
func (c *cast) device(sandboxID, device string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.roles {
		if device != "" && slices.Contains(r.sandboxes, sandboxID) && !slices.Contains(r.devices, device) {
			r.devices = append(r.devices, device)
		}
	}
}

// find returns whose a trace is, as demo.Traces has it; nil if it is nobody's.
func (c *cast) find(trace string) *role {
	i := slices.IndexFunc(c.roles, func(r *role) bool { return r.left(trace) })
	if i < 0 {
		return nil
	}
	return c.roles[i]
}

// has reports whether the trace is somebody's.
func (c *cast) has(trace string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.find(trace) != nil
}

// whose names the pod of a trace.
func (c *cast) whose(trace string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.find(trace); r != nil {
		return r.String()
	}
	return "a sandbox that containerd began and did not answer for"
}

// left reports whether the trace is of the role: a device with its hostname, a link, a network namespace, a mount, or
// state, which may have been set aside under another ending.
func (r *role) left(trace string) bool {
	device, hostname, _ := strings.Cut(trace, " ")
	if slices.Contains(r.devices, device) || hostname != "" && hostname == r.hostname {
		return true
	}
	if trace == r.uid || strings.HasPrefix(trace, r.uid+".") {
		return true
	}
	if slices.Contains(r.netns, filepath.Base(trace)) {
		return true
	}
	id, isLink := strings.CutPrefix(trace, "vetht")
	return slices.ContainsFunc(r.sandboxes, func(s string) bool {
		return isLink && id != "" && strings.HasPrefix(s, id) || strings.Contains(trace, s)
	})
}
