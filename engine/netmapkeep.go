// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/ipn/ipnlocal/netmapcache"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/netmap"

	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/measure"
)

// netmapPause is the least time between two looks at a netmap that has changed. In
// a busy tailnet it changes all the time, so that the pause is netmapShare times as
// long as the look took if that is longer. When a change is written is up to
// netmapDigest.
const (
	netmapPause = time.Second
	netmapShare = 50
	// netmapAgain is the time to the first write after a start from a netmap.
	netmapAgain = 10 * time.Second
)

// A netmap is written for a restart, and no more often than that needs: disks of flash
// wear out. What decides who can be reached, and by whom, is written at once. That a peer
// is online, and when it was last seen, is not written at all. A peer's endpoints can be
// old, as long as it has one of them still: it is found through DERP, and finds this
// node, whose port and keys do not change.
const (
	netmapMoved = time.Minute      // between writes because a peer has no endpoint that is on disk
	netmapSlow  = 10 * time.Minute // between writes because of anything else
)

// netmapKeeper writes a node's netmap to disk after it has changed.
type netmapKeeper struct {
	n     *node
	cache *netmapcache.Cache
	due   <-chan time.Time // of the next look, nil while nothing has changed
	at    time.Time        // when that is
	next  time.Time        // the earliest time of it

	written   netmapDigest
	writtenAt time.Time
	behind    bool // what is on disk is older than it might be

	warned string // the failure last logged
}

func newNetmapKeeper(n *node) *netmapKeeper {
	take := func(write func() error) error { return n.e.take(stepNetmap, write) }
	store := podstate.NewNetmapStore(n.dir, take, n.written.to(measure.NetmapFile))
	k := &netmapKeeper{n: n, cache: netmapcache.NewCache(store)}
	pause := netmapPause
	if r := n.record(); r.IsKnown() { // it starts from one, perhaps with many others
		pause = netmapAgain
	}
	k.next = time.Now().Add(pause)
	return k
}

// changed notes that the netmap has changed.
func (k *netmapKeeper) changed() { k.lookAt(k.next) }

func (k *netmapKeeper) lookAt(at time.Time) {
	if k.due == nil || at.Before(k.at) {
		k.due, k.at = time.After(time.Until(at)), at
	}
}

// keep writes the backend's netmap if it is time to, or now says so. A failure
// costs no more than the next start's head start.
func (k *netmapKeeper) keep(b *ipnlocal.LocalBackend, now bool) {
	k.due = nil
	start := time.Now()
	defer func() { k.next = time.Now().Add(max(netmapPause, netmapShare*time.Since(start))) }()
	nm := b.NetMapWithPeers()
	if nm == nil || nm.Cached || !nm.SelfNode.Valid() {
		return
	}
	nm, digest := digestNetmap(nm)
	pause, differs := digest.pauseAfter(k.written)
	k.behind = differs
	if !differs {
		return
	}
	if at := k.writtenAt.Add(pause); !now && start.Before(at) {
		k.lookAt(at)
		return
	}
	k.write(nm, digest)
}

// flush writes what has been left for later.
func (k *netmapKeeper) flush(b *ipnlocal.LocalBackend) {
	if k.behind || k.due != nil && !k.writtenAt.IsZero() {
		k.keep(b, true)
	}
}

func (k *netmapKeeper) write(nm *netmap.NetworkMap, digest netmapDigest) {
	err := podstate.MakeNetmapDir(k.n.dir)
	if err == nil {
		err = k.cache.Store(context.Background(), nm)
	}
	k.writtenAt = time.Now()
	switch {
	case err == nil:
		k.warned, k.written, k.behind = "", digest, false
	case err.Error() != k.warned:
		k.warned = err.Error()
		k.n.log().Warn("keeping the netmap for the next start", "err", err)
	}
}

// lendNetmap gives the backend the last netmap.
func (n *node) lendNetmap(profile ipn.ProfileID, nodeKey key.NodePublic) error {
	return podstate.LendNetmap(n.dir, filepath.Join(n.profilesDir(), string(profile)), nodeKey)
}

// reclaimNetmap takes back what was lent.
func (n *node) reclaimNetmap() {
	podstate.ReclaimNetmap(n.profilesDir(), func(err error) {
		n.log().Warn("the netmap that was lent to the backend", "err", err)
	})
}

// profilesDir is where the backend keeps what belongs to its profiles.
func (n *node) profilesDir() string { return filepath.Join(n.dir, ipnlocal.ProfileDataDir) }

// netmapDigest is what of a netmap decides when it is to be written.
type netmapDigest struct {
	core, rest [sha256.Size]byte
	endpoints  map[tailcfg.StableNodeID][]netip.AddrPort
}

// pauseAfter returns how long the last write must be over before this netmap is
// written in the place of another, and whether it differs from that at all.
func (d netmapDigest) pauseAfter(was netmapDigest) (pause time.Duration, differs bool) {
	if d.core != was.core {
		return netmapPause, true
	}
	differs, pause = d.rest != was.rest, netmapSlow
	for id, eps := range d.endpoints {
		old := was.endpoints[id]
		if slices.Equal(eps, old) {
			continue
		}
		differs = true
		switch {
		case len(old) == 0:
			return netmapPause, true
		case !slices.ContainsFunc(eps, func(ep netip.AddrPort) bool { return slices.Contains(old, ep) }):
			pause = netmapMoved
		}
	}
	return pause, differs
}

// digestNetmap returns the netmap without what is not to be written, and its
// digest. The rest is what peers say of themselves, and users' names.
func digestNetmap(nm *netmap.NetworkMap) (*netmap.NetworkMap, netmapDigest) {
	out := *nm
	out.Peers = make([]tailcfg.NodeView, 0, len(nm.Peers))
	d := netmapDigest{endpoints: make(map[tailcfg.StableNodeID][]netip.AddrPort, len(nm.Peers))}
	core, rest := sha256.New(), sha256.New()
	toCore, toRest := json.NewEncoder(core), json.NewEncoder(rest)
	split := func(v tailcfg.NodeView) (tailcfg.NodeView, []netip.AddrPort) {
		p := v.AsStruct()
		p.Online, p.LastSeen = nil, nil
		bare := *p
		bare.Endpoints, bare.Hostinfo = nil, tailcfg.HostinfoView{}
		_ = toCore.Encode(bare) // values of tailscale.com's own always encode
		_ = toRest.Encode(p.Hostinfo)
		slices.SortFunc(p.Endpoints, netip.AddrPort.Compare)
		return p.View(), p.Endpoints
	}
	out.SelfNode, _ = split(nm.SelfNode)
	peers := slices.SortedFunc(slices.Values(nm.Peers), func(a, b tailcfg.NodeView) int { return cmp.Compare(a.ID(), b.ID()) })
	for _, p := range peers {
		kept, endpoints := split(p)
		out.Peers = append(out.Peers, kept)
		d.endpoints[p.StableID()] = endpoints
	}
	_ = toCore.Encode([]any{nm.PacketFilterRules, nm.DNS, nm.DERPMap, nm.TKAEnabled, nm.TKAHead, nm.Domain})
	_ = toRest.Encode([]any{nm.UserProfiles, nm.DisplayMessages})
	core.Sum(d.core[:0])
	rest.Sum(d.rest[:0])
	return &out, d
}
