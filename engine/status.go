// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"net/netip"
	"slices"
	"time"

	"tailscale-nri/engine/internal/podnet"
)

// State is what a node is up to.
type State string

const (
	// Pending: the link is there, the node is not in the tailnet, or not
	// ready, or no longer. NodeStatus.Reason says why.
	Pending State = "Pending"
	// Running: ts0 has its addresses and the node's endpoints are
	// published, so that a peer's first packet is answered.
	Running State = "Running"
	// Stopped: the sandbox has ended; the identity is kept for the next.
	Stopped State = "Stopped"
	// Leaving: the pod is gone, its device is being deleted.
	Leaving State = "Leaving"
)

// What NodeStatus.Reason says before there is anything to say.
const reasonStarting, reasonStartingAgain = "starting", "starting again"

// NodeStatus is a snapshot of one node. It is encoded as JSON for the status
// command.
type NodeStatus struct {
	SandboxID string `json:"sandboxID"`
	UID       string `json:"uid"`
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Hostname  string `json:"hostname"` // as asked for

	Features Features `json:"features,omitzero"` // that the pod asks for

	State     State        `json:"state"`
	Reason    string       `json:"reason,omitempty"` // why it is not Running, or what does not work, or will end that, though it is
	Addresses []netip.Addr `json:"addresses"`        // on ts0, IPv4 first
	NodeID    string       `json:"nodeID,omitempty"`
	DNSName   string       `json:"dnsName,omitempty"` // as given, without the final dot
	Tags      []string     `json:"tags,omitempty"`    // as given: a static key may give more than the pod asked for

	Since      time.Time     `json:"since"`      // of the last change of State
	AttachedAt time.Time     `json:"attachedAt"` // of the last Attach, or of this process's start if that is later
	ReadyIn    time.Duration `json:"readyIn"`    // from there to the first Running, 0 until then

	// LocalIn and LocalOut are the pod's packets from and to other pods of this
	// host that did not go through WireGuard, since its backend was opened.
	LocalIn  Traffic `json:"localIn"`
	LocalOut Traffic `json:"localOut"`

	// CutRefusals counts frames for the pod that the kernel was to cut into
	// segments and has refused. After one, the pod gets single packets for a
	// while, which is slower.
	CutRefusals uint64 `json:"cutRefusals"`
}

// Traffic counts packets of one direction, and their bytes from the IP header on.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

func trafficOf(t *podnet.Traffic) Traffic { return Traffic{t.Packets.Load(), t.Bytes.Load()} }

// Knows reports whether the sandbox has a node in this engine, on disk at least.
func (e *Engine) Knows(podUID, sandboxID string) bool {
	n := e.nodeOfUID(podUID)
	return n != nil && n.sandboxID() == sandboxID
}

// FeaturesOf returns what the sandbox's node has, which was settled when it was first
// attached: what the pod's annotations would be given today may be something else.
func (e *Engine) FeaturesOf(podUID, sandboxID string) (f Features, ok bool) {
	n := e.nodeOfUID(podUID)
	if n == nil {
		return f, false
	}
	s := n.brief()
	return s.Features, s.SandboxID == sandboxID
}

// setState publishes what the node is up to.
func (p *published) setState(s State, why string) {
	why = p.redacted(why)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.State != s {
		p.status.State, p.status.Since = s, time.Now()
	}
	p.status.Reason = why
	p.wakeLocked()
	if s != Running && s != Pending {
		p.status.Addresses = nil
	}
}

// remark says in the status of a node that runs what is wrong all the same, or
// what will end that.
func (p *published) remark(what string) {
	what = p.redacted(what)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.State == Running {
		p.status.Reason = what
	}
}

// setRunning publishes that the node is up.
func (p *published) setRunning(up *progress) {
	p.mu.Lock()
	s := &p.status
	if s.State != Running {
		s.State, s.Since = Running, time.Now()
	}
	s.Reason, s.Addresses, s.DNSName, s.Tags = "", slices.Clone(up.addrs), up.dnsName, up.tags.AsSlice()
	if s.ReadyIn == 0 {
		s.ReadyIn = time.Since(s.AttachedAt)
		p.way.end(time.Now())
	}
	p.wakeLocked()
	p.tellUpLocked()
	p.mu.Unlock()
	p.logRunning(up)
}
