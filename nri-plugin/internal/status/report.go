// SPDX-License-Identifier: BSD-3-Clause

package status

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
)

// APIVersion names the form of a Report. Fields may be added to it; one that is
// removed, or means something else, makes another version.
const APIVersion = "tailscale-nri/v1"

// Report is the status that a process gives of its host.
type Report struct {
	APIVersion string `json:"apiVersion"`
	Host       string `json:"host,omitempty"` // the Kubernetes node
	Version    string `json:"version,omitempty"`
	// Ready is whether it serves this host's pods, or stands by and could.
	Ready bool `json:"ready"`
	// Role tells the process that has the host's nodes from one that waits for its end.
	Role string `json:"role,omitempty"`
	// Message is why it is not ready, or that it stands by; "" otherwise.
	Message string `json:"message,omitempty"`
	// Warnings are what is wrong though it is ready, a line each: a configuration
	// that cannot be used while an earlier one serves.
	Warnings []string `json:"warnings,omitempty"`
	Nodes    []Node   `json:"nodes"` // by namespace and pod
	// Error is why a host could not be asked; then only APIVersion and Host are set.
	Error string `json:"error,omitempty"`
}

// The roles of a process. One that starts, or is misconfigured, has none.
const (
	Serving = "serving" // it has the nodes, also while it is cut off from the runtime
	Standby = "standby" // another process has them
)

// The states of a Node.
const (
	Pending = "Pending" // Reason says why it is not in the tailnet
	Running = "Running" // peers reach it
	Stopped = "Stopped" // its sandbox has ended; the identity is kept for the next
	Leaving = "Leaving" // the pod is gone, its device is being deleted
	// NoNode means that the pod asks for a node and has none: Reason says why, and
	// whether the pod runs all the same.
	NoNode = "NoNode"
)

// Ways that packets take between a pod and a peer. A Node that is idle has none.
const (
	Direct    = "direct"     // UDP to the peer
	DERP      = "derp"       // over a DERP server
	PeerRelay = "peer relay" // UDP over another node of the tailnet
	Local     = "local"      // handed over on this host, without WireGuard
)

// Node is a pod's node in the tailnet, or a pod that should have one.
type Node struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	UID       string `json:"uid,omitempty"`
	SandboxID string `json:"sandboxID,omitempty"`

	State string `json:"state"`
	// Reason is why it is not Running; or, though it is, what does not work or will end that.
	Reason string `json:"reason,omitempty"`

	Hostname    string       `json:"hostname,omitempty"`  // asked for
	DNSName     string       `json:"dnsName,omitempty"`   // as given, without the final dot
	Addresses   []netip.Addr `json:"addresses,omitempty"` // of ts0, IPv4 first
	Tags        []string     `json:"tags,omitempty"`      // as given
	NodeID      string       `json:"nodeID,omitempty"`
	LoginServer string       `json:"loginServer,omitempty"` // where it is registered
	Profile     string       `json:"profile,omitempty"`     // "" is the default tailnet
	// Features are what the pod asks for: values of annotations, by their keys
	// without the prefix.
	Features map[string]string `json:"features,omitempty"`

	Since      time.Time `json:"since,omitzero"`      // of the last change of State
	AttachedAt time.Time `json:"attachedAt,omitzero"` // or the start of the process, if that is later
	ReadyIn    float64   `json:"readyInSeconds,omitempty"`

	// ControlConnected is whether the control server streams the netmap to it now.
	ControlConnected bool      `json:"controlConnected"`
	KeyExpiry        time.Time `json:"keyExpiry,omitzero"` // zero if its key has no end

	// Path is the way of the pod's most recent packet, "" without any of the last 45 s.
	Path string `json:"path,omitempty"`
	DERP string `json:"derp,omitempty"` // code of its home region
	// PathDERP is the code of the region that packets went through, of Path DERP.
	PathDERP      string    `json:"pathDERP,omitempty"`
	LastHandshake time.Time `json:"lastHandshake,omitzero"` // WireGuard's, with any peer
	BytesIn       uint64    `json:"bytesIn"`                // to the pod, WireGuard's headers and local delivery included
	BytesOut      uint64    `json:"bytesOut"`
	LocalBytesIn  uint64    `json:"localBytesIn"` // those of local delivery alone
	LocalBytesOut uint64    `json:"localBytesOut"`

	Peers        int    `json:"peers"`                  // in its netmap
	Sessions     int    `json:"sessions"`               // peers with a WireGuard session
	SessionPeers []Peer `json:"sessionPeers,omitempty"` // those peers, by the most recent packet
}

// Peer is a peer with which a node has a WireGuard session.
type Peer struct {
	Name      string     `json:"name"`
	Address   netip.Addr `json:"address,omitzero"`
	Path      string     `json:"path,omitempty"`     // Direct, DERP or PeerRelay
	Endpoint  string     `json:"endpoint,omitempty"` // host:port, of Direct and PeerRelay
	DERP      string     `json:"derp,omitempty"`     // code of the region, of DERP
	LastWrite time.Time  `json:"lastWrite,omitzero"` // of a packet to the peer, keepalives included

	LastHandshake time.Time `json:"lastHandshake,omitzero"`
	BytesIn       uint64    `json:"bytesIn"`
	BytesOut      uint64    `json:"bytesOut"`
}

// Decode reads a Report. Its error is for the user of the command: it says which of
// the two versions is the other.
func Decode(data []byte) (Report, error) {
	var r Report
	var head struct{ APIVersion string } // first: fields of another version may be of other types
	if err := json.Unmarshal(data, &head); err != nil {
		return Report{}, fmt.Errorf("reading the status: %w", err)
	}
	if head.APIVersion != APIVersion {
		return Report{}, fmt.Errorf("the status has apiVersion %q, and this command reads %s: use the command of the process that answers",
			head.APIVersion, APIVersion)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return Report{}, fmt.Errorf("reading the status: %w", err)
	}
	return r, nil
}

// Select returns the reports with the nodes of these pods alone, NAMESPACE/POD each,
// and the pods that no report has. Without pods it returns all.
func Select(reports []Report, pods []string) (selected []Report, missing []string) {
	if len(pods) == 0 {
		return reports, nil
	}
	found := map[string]bool{}
	for _, r := range reports {
		r.Nodes = slices.DeleteFunc(slices.Clone(r.Nodes), func(n Node) bool {
			found[n.name()] = true
			return !slices.Contains(pods, n.name())
		})
		selected = append(selected, r)
	}
	for _, pod := range pods {
		if !found[pod] {
			missing = append(missing, pod)
		}
	}
	return selected, missing
}

// Changed reports whether the report differs in more than ages and counters.
func Changed(was, is []Report) bool {
	return !reflect.DeepEqual(withoutCounters(was), withoutCounters(is))
}

func withoutCounters(reports []Report) []Report {
	reports = slices.Clone(reports)
	for i := range reports {
		nodes := slices.Clone(reports[i].Nodes)
		for j := range nodes {
			n := &nodes[j]
			n.LastHandshake, n.BytesIn, n.BytesOut, n.LocalBytesIn, n.LocalBytesOut = time.Time{}, 0, 0, 0, 0
			n.SessionPeers = nil // of which Sessions and Path say what counts
		}
		reports[i].Nodes = nodes
	}
	return reports
}

// PodName is a pod of the command line, NAMESPACE/POD or POD, as NAMESPACE/POD.
func PodName(arg string) (string, error) {
	namespace, pod, both := strings.Cut(arg, "/")
	if !both {
		namespace, pod = "default", arg
	}
	if namespace == "" || pod == "" || strings.ContainsAny(pod, "/ ") || strings.Contains(namespace, " ") {
		return "", fmt.Errorf("%q is not a pod: write NAMESPACE/POD, or POD for one of namespace default", arg)
	}
	return namespace + "/" + pod, nil
}

func (n *Node) name() string { return n.Namespace + "/" + n.Pod }

// The exit codes of the command.
const (
	ExitOK       = 0 // the hosts are ready, and all pods Running, or ended
	ExitTrouble  = 1 // something is not
	ExitNotAsked = 2 // a host could not be asked, or the command line is bad
)

// ExitCode returns what a command that has these reports ends with. A node whose sandbox
// has ended is no error, unless its device cannot be deleted: otherwise every deletion of
// a pod would be an error for as long as it takes. Pods that were asked for by name,
// NAMESPACE/POD each, have to be Running.
func ExitCode(reports []Report, named ...string) int {
	code, running := ExitOK, map[string]bool{}
	for _, r := range reports {
		if r.Error != "" {
			return ExitNotAsked
		}
		if !r.Ready {
			code = ExitTrouble
		}
		for _, n := range r.Nodes {
			if n.State == Running {
				running[n.name()] = true
			} else if !n.hasEnded() {
				code = ExitTrouble
			}
		}
	}
	if slices.ContainsFunc(named, func(pod string) bool { return !running[pod] }) {
		return ExitTrouble
	}
	return code
}

func (n *Node) hasEnded() bool {
	return n.State == Stopped || n.State == Leaving && n.Reason == ""
}

// sortNodes orders them by namespace, pod, and when they came.
func sortNodes(nodes []Node) {
	slices.SortStableFunc(nodes, func(a, b Node) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), a.AttachedAt.Compare(b.AttachedAt))
	})
}
