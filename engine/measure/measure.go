// SPDX-License-Identifier: BSD-3-Clause

// Package measure holds what is counted of the nodes, as values: what the engine says
// of itself at one moment, and the counters that it keeps meanwhile. It does not export
// them; package exporter does.
package measure

import (
	"sync"
	"sync/atomic"
	"time"
)

// Engine is what an engine says of its nodes at one moment. Counters begin with
// the process.
type Engine struct {
	Nodes map[string]int // by state, those without a node included
	Pods  []Pod          // one for each namespace and name
	// Unanswered counts nodes whose backend hangs. The fields of their pods from
	// Answered on are from an earlier moment.
	Unanswered int

	Stages map[string]Buckets // of nodes that this process has attached, by stage: see Stages
	Ready  Buckets            // from the attach to Running, of the same nodes

	LateAttaches   uint64            // pods that got their node from the runtime's list
	Restarts       uint64            // sessions that ended in order to begin again
	Registrations  map[string]uint64 // with the control plane, by one of Registrations
	DevicesDeleted map[string]uint64 // by one of Deletions
	Sweeps         map[string]uint64 // by one of Results
	SweepDue       int               // devices that the last sweep found to delete
}

// Keys of an Engine's maps.
var (
	// Stages are the steps of a node's start, in the order in which a new node reaches
	// them: the pod has its link; the control plane has let the node in; ts0 has its
	// addresses; peers can reach it.
	Stages        = []string{Attached, Registered, Addressed, Reachable}
	Registrations = []string{First, Again}
	Deletions     = []string{PodEnded, Swept, NameTaken}
	Results       = []string{OK, Failed}
)

const (
	Attached   = "attached"
	Registered = "registered"
	Addressed  = "addressed"
	Reachable  = "reachable"

	First = "first" // a new device
	Again = "again" // the tailnet had thrown the node out

	PodEnded  = "pod_ended"  // the node's own, at its pod's end
	Swept     = "swept"      // of a host that died
	NameTaken = "name_taken" // an earlier one of the same pod, whose name it had

	OK     = "ok"
	Failed = "error"
)

// Pod has the measures of one pod's node.
type Pod struct {
	Namespace, Name string
	Up              bool // Running

	// HasNode is whether the pod has a node. If not, the fields below are zero.
	HasNode bool
	Written [Files]uint64 // bytes to disk

	// Served is whether the node has a backend now. If not, the fields below are zero.
	Served  bool
	Traffic [Paths][Directions]Traffic
	Drops   []Drop

	CutRefusals uint64

	Control bool // connected to the control plane

	// Answered is whether the backend has ever answered. If not, the fields below are
	// zero.
	Answered  bool
	KeyExpiry time.Time // zero if the node's key has no end
	HomeDERP  string    // code of its DERP region, "" if it has none
	Peers     int       // in its netmap
	Sessions  int       // peers with a WireGuard session
	// Oldest and Newest are the last handshakes of those peers, zero if it has none.
	Oldest, Newest time.Time
}

// Traffic counts packets of one direction and their bytes. Packets of a tunnel
// are WireGuard's, with its headers; those of local delivery are the pod's own.
type Traffic struct{ Packets, Bytes uint64 }

// Path is the way that packets take between a pod and its peers.
type Path int

// Direction is seen from the pod.
type Direction int

const (
	Direct    Path = iota // UDP to the peer
	DERP                  // over a DERP server
	PeerRelay             // UDP over another node of the tailnet
	Local                 // handed over on this host, without WireGuard
	Paths

	In  Direction = 0
	Out Direction = 1

	Directions = 2
)

// String returns the path's label.
func (p Path) String() string { return [Paths]string{"direct", "derp", "peer_relay", "local"}[p] }

// String returns the direction's label.
func (d Direction) String() string { return [Directions]string{"in", "out"}[d] }

// File is one of those that are kept on disk for a node.
type File int

const (
	RecordFile     File = iota // the pod, its link, its device
	StateFile                  // keys and preferences
	NetmapFile                 // all files of the netmap
	ResolvConfFile             // of a pod that asked for DNS
	Files
)

// String returns the file's label.
func (f File) String() string {
	return [Files]string{"record", "state", "netmap", "resolv_conf"}[f]
}

// Drop counts packets that were dropped for a reason.
type Drop struct {
	Direction Direction
	Reason    string // tailscale.com's usermetric.DropReason, or Malformed
	Packets   uint64
}

// Malformed is the reason for malformed frames of a pod.
const Malformed = "malformed"

// Bounds of the histograms, in seconds. A hook has 2 s.
var (
	HookBounds   = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 1.5, 2}
	AttachBounds = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
)

// Histogram counts durations. It may be used concurrently; Bounds must be set,
// to no more than maxBounds of them, before it is.
type Histogram struct {
	Bounds []float64 // in seconds, ascending

	counts [maxBounds + 1]atomic.Uint64 // not cumulative; the last counts what is above all bounds
	sum    atomic.Int64                 // in nanoseconds
}

const maxBounds = 14

// Buckets is a histogram at one moment.
type Buckets struct {
	Count      uint64
	Sum        float64            // in seconds
	Cumulative map[float64]uint64 // by upper bound
}

// Observe counts a duration; one below zero counts as zero.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	i := 0
	for i < len(h.Bounds) && d.Seconds() > h.Bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// Buckets returns what was counted.
func (h *Histogram) Buckets() Buckets {
	b := Buckets{Sum: time.Duration(h.sum.Load()).Seconds(), Cumulative: make(map[float64]uint64, len(h.Bounds))}
	for i, bound := range h.Bounds {
		b.Count += h.counts[i].Load()
		b.Cumulative[bound] = b.Count
	}
	b.Count += h.counts[len(h.Bounds)].Load()
	return b
}

// Set holds one value for each key that was asked for. Its zero value is ready to use,
// concurrently.
type Set[K comparable, V any] struct {
	mu  sync.Mutex
	all map[K]*V
}

// Of returns the key's value, a new one if it has none; init, if it is not nil,
// prepares that.
func (s *Set[K, V]) Of(key K, init func(*V)) *V {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.all[key]
	if v == nil {
		v = new(V)
		if init != nil {
			init(v)
		}
		if s.all == nil {
			s.all = map[K]*V{}
		}
		s.all[key] = v
	}
	return v
}

// Each calls f for each key, in no order.
func (s *Set[K, V]) Each(f func(K, *V)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, v := range s.all {
		f(k, v)
	}
}
