// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/views"
)

// What follows is what an admin does to a device, or time does. Each takes a
// device's ID and fails if there is no such device. There is no logging out
// here: the admin console has none; a device is expired or deleted.

// Expire ends a device's login, as "expire key" in the admin console does: the
// node is told so in its netmap, and has to log in again, with a key. It is the
// same device afterwards.
func (s *Server) Expire(id string) error {
	return s.change(id, "expire", s.nodes.expireLocked)
}

// ExpireAt gives the device's key an end, the zero time none, of which the node is
// told. Nothing happens here when that time comes.
func (s *Server) ExpireAt(id string, t time.Time) error {
	return s.change(id, "date", func(n *node) {
		n.KeyExpiry = t
		n.whole++
		s.nodes.changedLocked(n)
	})
}

// Delete removes a device, as the API does.
func (s *Server) Delete(id string) error {
	return s.change(id, "delete", s.nodes.removeLocked)
}

// SetLastSeen makes a device older, or younger, than it is. It holds until the
// node is heard of again; the API shows it once the node is not connected.
func (s *Server) SetLastSeen(id string, t time.Time) error {
	return s.change(id, "age", func(n *node) {
		n.LastSeen = &t
		s.nodes.changedLocked(n)
	})
}

// SetAddresses gives a device other addresses, as "edit machine IPv4" in the
// admin console does, at most one of each family.
func (s *Server) SetAddresses(id string, addrs ...netip.Addr) error {
	return s.change(id, "readdress", func(n *node) {
		n.Addresses = nil
		for _, a := range addrs {
			n.Addresses = append(n.Addresses, netip.PrefixFrom(a, a.BitLen()))
		}
		n.routeLocked()
		n.whole++
		s.nodes.changedLocked(n)
	})
}

// SetRoutes approves the routes of a device, and withdraws what it approved before:
// those of them that the device advertises, now or later, are its. A default route
// makes it an exit node.
func (s *Server) SetRoutes(id string, approved ...netip.Prefix) error {
	return s.change(id, "route", func(n *node) {
		n.approved = slices.Clone(approved)
		n.routeLocked()
		n.whole++
		s.nodes.changedLocked(n)
	})
}

// routes are those that n advertises and an admin has approved.
func (n *node) routes() (routes []netip.Prefix) {
	for _, p := range n.approved {
		if n.Hostinfo.Valid() && views.SliceContains(n.Hostinfo.RoutableIPs(), p) {
			routes = append(routes, p)
		}
	}
	return routes
}

// routeLocked has n's peers send to it what is for its addresses and its routes.
func (n *node) routeLocked() {
	routes := n.routes()
	n.AllowedIPs = slices.Concat(n.Addresses, routes)
	n.PrimaryRoutes = slices.DeleteFunc(routes, func(p netip.Prefix) bool { return p.Bits() == 0 })
}

// SetApart hides the nodes from each other, from each one's next change on, as a
// policy does without any rule.
func (s *Server) SetApart(apart bool) {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	s.nodes.apart = apart
}

// SetDNS gives all nodes another DNS configuration, as the page DNS of the admin
// console does.
func (s *Server) SetDNS(cfg *tailcfg.DNSConfig) {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	s.nodes.dns = cfg.Clone()
	for st := range s.nodes.streams {
		st.poke()
	}
}

// Exit has a device's client end its process with a code (tailcfg.Debug.Exit),
// with the next message of its poll; "" is all devices. It returns to how many
// polls that goes: a node that is not connected now is not told later.
func (s *Server) Exit(id string, code int) (polls int, err error) {
	tell := func(n *node) {
		for st := range s.nodes.streams {
			if st.node == n {
				st.debug = &tailcfg.Debug{Exit: &code}
				st.poke()
				polls++
			}
		}
	}
	if id != "" {
		err = s.change(id, "end", tell)
		return polls, err
	}
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	for _, n := range s.nodes.byID {
		tell(n)
	}
	return polls, nil
}

// change does something to a device, under the table's lock.
func (s *Server) change(id, what string, f func(*node)) error {
	if !s.nodes.withDevice(id, f) {
		return fmt.Errorf("no device %q to %s", id, what)
	}
	s.log.Info("changed by an admin", "id", id, "change", what)
	return nil
}

// withDevice hands f, under the lock, the device with an ID. It reports whether there is
// one.
func (t *table) withDevice(id string, f func(*node)) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.deviceLocked(id)
	if n != nil {
		f(n)
	}
	return n != nil
}

// deviceLocked returns the device with an ID, its stable one or the numeric one that the
// API calls legacy, and nil if there is none. t.mu is held.
func (t *table) deviceLocked(id string) *node {
	for _, n := range t.byID {
		if string(n.StableID) == id || n.legacyID() == id {
			return n
		}
	}
	return nil
}

func (n *node) legacyID() string { return fmt.Sprint(int64(n.ID)) }
