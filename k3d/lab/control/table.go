// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/dnsname"
)

// Device is a node as the tailnet knows it.
type Device struct {
	ID         string // tailcfg.StableNodeID
	NodeKey    key.NodePublic
	MachineKey key.MachinePublic
	LockKey    key.NLPublic // of tailnet lock, as the node told it when it logged in
	Hostname   string       // as the node asked for it
	Name       string       // MagicDNS name with its domain, without the trailing dot
	Addresses  []netip.Addr
	Tags       []string
	Created    time.Time
	LastSeen   time.Time // of the last request, or of the end of the last poll
	Online     bool      // a netmap stream is open
	Ephemeral  bool
	Expired    bool // logged out, or expired by an admin

	// What the node has published for its peers.
	Endpoints []netip.AddrPort
	DiscoKey  key.DiscoPublic      // zero until published
	HomeDERP  tailcfg.DERPRegionID // 0 until published

	legacyID string // the API's numeric ID
}

// node is an entry of the table. Fields are guarded by table.mu.
type node struct {
	tailcfg.Node
	registered key.NodePublic            // what the registrar knows it by
	login      *tailcfg.RegisterResponse // the registrar's answer
	lockKey    key.NLPublic
	ephemeral  bool
	named      bool           // an admin named it: its name no longer follows the hostname
	approved   []netip.Prefix // by an admin: see SetRoutes
	streams    int
	whole      int // counts changes that a PeerChange cannot carry
}

// table is the tailnet's nodes, and who is to hear of their changes.
type table struct {
	mu        sync.Mutex
	domain    string
	headscale bool // see headscale.go
	apart     bool // no node is told of another
	byKey     map[key.NodePublic]*node
	byID      map[tailcfg.NodeID]*node
	streams   map[*stream]struct{}
	news      chan struct{} // closed and replaced at each change
	policy    []Rule
	views     map[sight]View
	lock      *lock              // nil: the tailnet has none
	dns       *tailcfg.DNSConfig // nil: as it was at the start
}

func newTable(cfg Config) *table {
	return &table{
		domain:    cfg.Domain,
		headscale: cfg.Headscale,
		byKey:     map[key.NodePublic]*node{},
		byID:      map[tailcfg.NodeID]*node{},
		streams:   map[*stream]struct{}{},
		news:      make(chan struct{}),
		policy:    []Rule{AllowAll},
		views:     map[sight]View{},
	}
}

// lookup finds the node of a key on a machine: nil if there is none.
func (t *table) lookup(nk key.NodePublic, mk key.MachinePublic) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byKey[nk]; n != nil && n.Machine == mk {
		return n
	}
	return nil
}

// renewed is the answer to a node that logs in with the node key it has.
func (t *table) renewed(n *node) *tailcfg.RegisterResponse {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.expired() {
		return &tailcfg.RegisterResponse{NodeKeyExpired: true}
	}
	return n.login
}

func (n *node) expired() bool {
	return !n.KeyExpiry.IsZero() && n.KeyExpiry.Before(time.Now())
}

// admit adds a node that the registrar has accepted, or gives an existing one
// its new node key: a machine that logs in again stays the device it was, with
// its ID, its addresses and, unless it asks for another, its name.
func (t *table) admit(admitted *tailcfg.Node, login *tailcfg.RegisterResponse, req *tailcfg.RegisterRequest, machine key.MachinePublic, k AuthKey) Device {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byMachineLocked(machine)
	fresh := n == nil
	if fresh {
		n = &node{Node: *admitted}
		n.Machine = machine
		n.Created = time.Now()
		if t.headscale {
			n.StableID = tailcfg.StableNodeID(n.legacyID())
		}
		t.byID[n.ID] = n
	}
	delete(t.byKey, n.Key)
	if n.Key != req.NodeKey {
		n.KeySignature = nil
	}
	n.Key, n.lockKey = req.NodeKey, req.NLKey
	if t.lock != nil {
		n.allowLock()
	}
	n.registered, n.login = admitted.Key, login
	t.byKey[n.Key] = n
	if t.headscale && !fresh && len(n.Tags) > 0 {
		k.Tags = n.Tags // and its expiry
	} else {
		n.KeyExpiry = time.Time{}
		n.Expired = false
	}
	renamed := fresh || n.Hostinfo.Hostname() != admitted.Hostinfo.Hostname()
	n.Hostinfo = admitted.Hostinfo
	n.routeLocked()
	n.Tags = slices.Clone(k.Tags)
	n.ephemeral = k.Ephemeral
	n.LastSeen = new(time.Now())
	n.whole++
	if renamed {
		t.renameLocked(n)
	}
	t.changedLocked(n)
	return n.device()
}

func (t *table) byMachineLocked(mk key.MachinePublic) *node {
	for _, n := range t.byID {
		if n.Machine == mk {
			return n
		}
	}
	return nil
}

// renameLocked gives n a MagicDNS name that no other node has, from its hostname,
// unless an admin named it. As in production it keeps that name, with its
// number, when the other device is gone.
func (t *table) renameLocked(n *node) {
	if n.named {
		return
	}
	base := dnsname.SanitizeHostname(n.Hostinfo.Hostname())
	if base == "" {
		base = "node"
	}
	label := base
	for i := 1; t.takenLocked(label, n); i++ {
		label = fmt.Sprintf("%s-%d", base, i)
	}
	n.Name = t.fqdn(label)
	n.InitDisplayNames(t.domain)
}

// takenLocked reports whether a device other than n has the name.
func (t *table) takenLocked(label string, n *node) bool {
	for _, other := range t.byID {
		if other != n && other.Name == t.fqdn(label) {
			return true
		}
	}
	return false
}

func (t *table) fqdn(label string) string { return label + "." + t.domain + "." }

// update takes over what a node says about itself in a map request.
func (t *table) update(n *node, req *tailcfg.MapRequest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byKey[n.Key] != n {
		return // deleted meanwhile
	}
	n.Endpoints = slices.DeleteFunc(slices.Clone(req.Endpoints), func(ep netip.AddrPort) bool {
		return ep.Addr().IsLinkLocalUnicast() || ep.Addr().Zone() != ""
	})
	n.DiscoKey = req.DiscoKey
	n.LastSeen = new(time.Now())
	if n.Cap != req.Version {
		n.Cap = req.Version
		n.whole++
	}
	if req.Hostinfo != nil {
		t.updateHostinfoLocked(n, req.Hostinfo)
	}
	t.changedLocked(n)
}

func (t *table) updateHostinfoLocked(n *node, hi *tailcfg.Hostinfo) {
	if ni := hi.NetInfo; ni != nil && ni.PreferredDERP != 0 {
		n.HomeDERP = ni.PreferredDERP
	}
	old := n.Hostinfo.AsStruct()
	renamed := old.Hostname != hi.Hostname
	seen := *hi
	seen.NetInfo = nil // the peers' share of it is HomeDERP
	if old.Equal(&seen) {
		return
	}
	n.Hostinfo = seen.View()
	n.routeLocked()
	n.whole++
	if renamed {
		t.renameLocked(n)
	}
}

// expire ends a node's login; an ephemeral node goes with it, which is what it
// reports.
func (t *table) expire(n *node) (removed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.ephemeral {
		t.removeLocked(n)
		return true
	}
	t.expireLocked(n)
	return false
}

// expireLocked has n and its peers told that its key has expired.
func (t *table) expireLocked(n *node) {
	n.KeyExpiry = expiredSince()
	n.Expired = true
	n.whole++
	t.changedLocked(n)
}

// expiredSince is the expiry of a key that an admin has expired.
func expiredSince() time.Time { return time.Now().Add(-time.Minute) }

// remove deletes a device and reports whether there was one.
func (t *table) remove(id string) bool {
	return t.withDevice(id, t.removeLocked)
}

// removeLocked tells everyone, and ends the node's own polls.
func (t *table) removeLocked(n *node) {
	delete(t.byID, n.ID)
	delete(t.byKey, n.Key)
	for s := range t.streams {
		if s.node == n && !t.headscale {
			s.end()
		}
	}
	t.changedLocked(n)
}

// changedLocked marks n for every stream and wakes it.
func (t *table) changedLocked(n *node) {
	for s := range t.streams {
		s.pending[n.ID] = struct{}{}
		s.poke()
	}
	close(t.news)
	t.news = make(chan struct{})
}

// Devices lists the tailnet's devices in the order in which they came.
func (s *Server) Devices() []Device {
	devices, _ := s.nodes.devices()
	return devices
}

// Await returns once the devices are as cond wants them; it is asked again
// after each change. The error is ctx's.
func (s *Server) Await(ctx context.Context, cond func([]Device) bool) error {
	for {
		devices, news := s.nodes.devices()
		if cond(devices) {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// devices lists the devices, with a channel that is closed at the next change.
func (t *table) devices() ([]Device, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Device
	for _, n := range t.byID {
		out = append(out, n.device())
	}
	slices.SortFunc(out, func(a, b Device) int { return a.Created.Compare(b.Created) })
	return out, t.news
}

func (n *node) device() Device {
	d := Device{
		ID:         string(n.StableID),
		NodeKey:    n.Key,
		MachineKey: n.Machine,
		LockKey:    n.lockKey,
		Hostname:   n.Hostinfo.Hostname(),
		Name:       strings.TrimSuffix(n.Name, "."),
		Tags:       slices.Clone(n.Tags),
		Created:    n.Created,
		Online:     n.streams > 0,
		Ephemeral:  n.ephemeral,
		Expired:    n.expired(),
		Endpoints:  slices.Clone(n.Endpoints),
		DiscoKey:   n.DiscoKey,
		HomeDERP:   n.HomeDERP,
		legacyID:   n.legacyID(),
	}
	if n.LastSeen != nil {
		d.LastSeen = *n.LastSeen
	}
	for _, p := range n.Addresses {
		d.Addresses = append(d.Addresses, p.Addr())
	}
	return d
}
