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

// podRecord is what is known of one pod of the run, so that what is left of it can be named.
type podRecord struct {
	what      string // "cycle 17, runs"
	name, uid string
	hostname  string
	sandboxes []string
	netns     []string // file names below /run/netns
	devices   []string // all that its node was
}

func (r *podRecord) String() string {
	var sandboxes []string
	for _, id := range r.sandboxes {
		sandboxes = append(sandboxes, id[:12]) // as the plugin's log has it
	}
	return fmt.Sprintf("pod default/%s (%s), uid %s, sandboxes %v, devices %v", r.name, r.what, r.uid, sandboxes, r.devices)
}

// history is all pods of the run.
type history struct {
	mu      sync.Mutex
	records []*podRecord
}

// add returns a new record; uid is the pod's.
func (c *history) add(what, name, uid, hostname string) *podRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &podRecord{what: what, name: name, uid: uid, hostname: hostname}
	c.records = append(c.records, r)
	return r
}

// sandbox notes a sandbox of the pod.
func (c *history) sandbox(r *podRecord, pod lab.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.sandboxes = append(r.sandboxes, pod.ID)
	if pod.NetNS != "" {
		r.netns = append(r.netns, filepath.Base(pod.NetNS))
	}
}

// device notes which device a sandbox's node is.
func (c *history) device(sandboxID, device string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.records {
		if device != "" && slices.Contains(r.sandboxes, sandboxID) && !slices.Contains(r.devices, device) {
			r.devices = append(r.devices, device)
		}
	}
}

// find returns whose a trace is, as scene.Traces has it; nil if it is no pod's.
func (c *history) find(trace string) *podRecord {
	i := slices.IndexFunc(c.records, func(r *podRecord) bool { return r.left(trace) })
	if i < 0 {
		return nil
	}
	return c.records[i]
}

// has reports whether the trace is a pod's.
func (c *history) has(trace string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.find(trace) != nil
}

// whose names the pod of a trace.
func (c *history) whose(trace string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.find(trace); r != nil {
		return r.String()
	}
	return "a sandbox that containerd began and did not answer for"
}

// left reports whether the trace is of the pod: a device with its hostname, a link, a network namespace, a mount, or
// state, which may have been set aside under another ending.
func (r *podRecord) left(trace string) bool {
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
