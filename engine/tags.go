// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"slices"

	"tailscale.com/types/netmap"
	"tailscale.com/types/views"
	"tailscale.com/wgengine/router"
)

// requestedTags are those that the node asks the login server for by itself.
// A node that is in already is not re-tagged by asking for fewer: tags change at a
// login with an auth key only.
func (n *node) requestedTags(pod Pod) []string {
	if !n.tailnet().RequestsTags() || !n.serving.requestsTags() {
		return nil
	}
	return pod.Tags
}

// tagsDue are the tags without which the node is to have no address. Those of a
// node that has been seen with its tags since its last login are an admin's to
// change.
func (n *node) tagsDue() []string {
	if r := n.record(); r.TagsDue {
		return r.Pod.Tags
	}
	return nil
}

// hearOfSelf takes in what a netmap, if there is one, says of the node.
func (s *session) hearOfSelf(nm *netmap.NetworkMap) error {
	if nm == nil || !nm.SelfNode.Valid() {
		return nil
	}
	if s.isRekeyed(nm) {
		s.n.setLoginNeeded()
		return errRekeyed
	}
	s.identify(nm)
	s.expiry.note(s, nm)
	return s.checkTags(nm)
}

// granted reports whether the netmap's node has the tags that are due.
func (s *session) granted(nm *netmap.NetworkMap) bool {
	if len(s.tagsDue) == 0 {
		return true
	}
	if nm == nil || !nm.SelfNode.Valid() {
		return false
	}
	has := nm.SelfNode.Tags()
	return !slices.ContainsFunc(s.tagsDue, func(tag string) bool { return !views.SliceContains(has, tag) })
}

// checkTags returns an error if the control plane let the node in without the
// tags that its pod asks for. The node keeps its device, so that no attempt
// leaves another one behind, and looks again whether it has the tags.
func (s *session) checkTags(nm *netmap.NetworkMap) error {
	if nm.Cached || s.granted(nm) {
		return nil
	}
	if !s.n.serving.setBare(true) { // it may have addresses from before it had to log in again
		s.n.removeLink(s.n.record().Link)
	}
	s.n.clearAddresses()
	return s.n.tailnet().WrongTags(s.tagsDue, nm.SelfNode.Tags().AsSlice())
}

// taggedRouter gives ts0 no address while the node lacks tags that are due.
type taggedRouter struct {
	router.Router
	s *session
}

// Set implements [router.Router]. LocalBackend has the netmap that cfg is made
// of when it calls (ipn/ipnlocal/local.go, authReconfigLocked).
func (r taggedRouter) Set(cfg *router.Config) error {
	if cfg != nil && len(cfg.LocalAddrs) > 0 {
		if !r.s.granted(r.s.b.NetMapNoPeers()) {
			return nil
		}
		r.s.n.serving.setBare(false)
	}
	return r.Router.Set(cfg)
}
