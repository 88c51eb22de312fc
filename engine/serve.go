// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
	"tailscale.com/types/netmap"

	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/tailnet"
)

// serve serves the node. Where the login server refuses requested tags, it tries
// once more without: the auth key may have them.
func (n *node) serve(ctx context.Context, begun *begunLink) error {
	err := n.serveOnce(ctx, begun)
	if errors.Is(err, tailnet.ErrTagsRefused) && n.serving.dropTags() {
		n.log().Debug("logging in without requested tags", "reason", err)
		err = n.serveOnce(ctx, begun)
	}
	return err
}

// serveOnce brings the node up and keeps it up until ctx is done, which is not
// an error, or something is wrong. The link stays in either case.
func (n *node) serveOnce(ctx context.Context, begun *begunLink) error {
	defer n.serving.hasReturned()
	r, relogin, err := n.readyKeys(ctx)
	if err != nil {
		return err
	}
	leave := func() {}
	defer func() { leave() }()
	known := r.IsKnown() && !relogin // needs no key, and so no call of the API
	if known {
		leave = n.e.enter(ctx)
	}
	link, begun, err := n.linkToServe(r, begun)
	if err != nil {
		return err
	}
	authKey, err := n.authKey(ctx, r, relogin)
	if err != nil {
		return err
	}
	if !known {
		leave = n.e.enter(ctx)
	}
	s, err := n.openSession(r, link, begun, authKey != "")
	if err != nil {
		return err
	}
	return s.run(ctx, r, login{authKey, relogin}, leave)
}

// readyKeys makes sure that the node may use the keys on disk, or that new ones can be
// stored, and returns the record as it is then. relogin says that the node is to log in
// again, with a new key.
func (n *node) readyKeys(ctx context.Context) (r record, relogin bool, err error) {
	if err := n.ensureOwnKeys(ctx); err != nil {
		return r, false, err
	}
	keyed, err := n.repairState()
	if err != nil {
		return r, false, err
	}
	r, relogin = n.record(), n.loginNeeded()
	if !keyed || relogin {
		// The result of a login must not be lost.
		if err := podstate.CheckWritable(n.dir); err != nil {
			return r, false, fmt.Errorf("the node's keys cannot be kept: %w", err)
		}
	}
	return r, relogin, nil
}

func (n *node) keepPort(r record, port uint16) {
	if port != 0 && port != r.Port {
		n.update(func(r *record) { r.Port = port })
	}
}

// authKey returns a fresh auth key for a node that is not known to be in the
// tailnet, and "" for one that is.
func (n *node) authKey(ctx context.Context, r record, relogin bool) (string, error) {
	if r.IsKnown() && !relogin {
		return "", nil
	}
	n.e.evictNamesakes(ctx, r.Pod)
	tn := n.tailnet()
	n.update(func(r *record) {
		r.Registering, r.TagsDue = true, len(r.Pod.Tags) > 0
		if r.NodeID == "" && len(r.Former) == 0 {
			r.LoginServer = tn.ControlURL()
		}
	})
	ctx, cancel := context.WithTimeout(ctx, n.e.cfg.AttachTimeout)
	defer cancel()
	key, err := tn.NewAuthKey(ctx, tailnet.Node{
		Hostname:    r.Pod.Hostname,
		Tags:        r.Pod.Tags,
		Ephemeral:   r.Pod.Features.Ephemeral,
		Description: r.Pod.Namespace + " " + r.Pod.Name,
	})
	if err != nil {
		return "", fmt.Errorf("getting an auth key: %w", err)
	}
	return key, n.confirmHolder(ctx, r)
}

// loop reacts to what the backend reports until ctx is done, the link is gone
// or something is wrong.
func (s *session) loop(ctx context.Context, recent []tailcfg.StableNodeID) error {
	s.watchdog = time.After(s.n.e.cfg.AttachTimeout)
	defer s.watch.due.Stop()
	for {
		if done, err := s.wait(ctx); done || err != nil {
			return err
		}
		if s.ending.begun() && !s.registering {
			return s.ending.err
		}
		if s.p.up() && !s.rehandshaken {
			s.rehandshaken = true
			time.AfterFunc(reachPatience, s.setReachable) // as far as anyone can tell
			time.AfterFunc(holdPatience, s.held.Release)
			s.rehandshake(ctx, recent)
		}
		s.publish(ctx)
	}
}

// wait takes in one event. It reports whether the session is over.
func (s *session) wait(ctx context.Context) (done bool, err error) {
	select {
	case <-s.ending.unless(ctx.Done()):
		s.ending.begin(nil)
	case <-s.ending.unless(s.device.Gone()):
		s.ending.begin(podnet.ErrGone)
	case <-s.ending.late:
		return true, s.ending.err
	case <-s.n.e.ctx.Done():
		return true, s.n.e.ctx.Err()
	case <-s.watchdog:
		err := s.late()
		return err != nil, err
	case s.p.addrs = <-s.addrs:
	case <-s.dns.served():
		s.p.dnsDue = false
	case <-s.reachable:
		s.p.reachable = true
	case <-s.watch.due.C:
		s.watch.look = true
	case <-s.netmap.due:
		s.netmap.keep(s.b.LocalBackend, false)
	case <-s.recent.due:
		s.pruneRecent()
	case err := <-s.taken:
		return true, err
	case <-s.thrown:
		s.n.setLoginNeeded()
		return true, s.whyThrown()
	case note := <-s.notify:
		return false, s.hear(note)
	}
	return false, nil
}

// hear takes in one notification.
func (s *session) hear(note *ipn.Notify) error {
	p := &s.p
	if note.ErrMessage != nil {
		return s.n.tailnet().Refusal(*note.ErrMessage)
	}
	if note.BrowseToURL != nil && *note.BrowseToURL != "" {
		// The control plane wants a login. A backend that has a netmap, be it
		// a cached one, does not say so by its state (ipn/ipnlocal/local.go,
		// nextStateLocked).
		s.n.setLoginNeeded()
		return errLoginNeeded
	}
	if note.State != nil {
		// A backend that reaches neither a DERP server nor a peer is Starting,
		// and forwards.
		p.active = *note.State == ipn.Starting || *note.State == ipn.Running
		if !p.active && p.reported != "" {
			p.reported = ""
			s.n.setState(Pending, "the backend is in state "+note.State.String())
		}
		if err := s.stateChanged(*note.State); err != nil {
			return err
		}
	}
	if err := s.hearOfSelf(s.b.NetMapNoPeers()); err != nil {
		return err
	}
	if note.SelfChange != nil || len(note.PeersChanged)+len(note.PeersRemoved)+len(note.PeerChangedPatch) > 0 {
		s.netmap.changed()
		s.followRoutes()
	} else if note.State != nil {
		s.followRoutes() // there is no notification for a netmap from the disk
	}
	s.watch.hear(note)
	if len(note.PeerState) > 0 {
		s.remember(note.PeerState)
		s.releaseHeld(note.PeerState)
	}
	return nil
}

var errLoginNeeded = errors.New("the tailnet no longer knows this node (deleted, expired or logged out): it registers again")

// stateChanged distinguishes a node that is not yet in the tailnet from one that was thrown out.
func (s *session) stateChanged(state ipn.State) error {
	if state == ipn.NeedsMachineAuth {
		s.n.setPending(errors.New("the tailnet has device approval on and has not approved this device: approve it in the admin console (Machines)"))
	}
	if state != ipn.NeedsLogin || s.registering {
		return nil
	}
	s.n.setLoginNeeded()
	return errLoginNeeded
}

// identify records who the node is as soon as that is known.
func (s *session) identify(nm *netmap.NetworkMap) {
	p := &s.p
	self := nm.SelfNode
	p.dnsName = strings.TrimSuffix(self.Name(), ".")
	p.nodeID, p.tags, p.given = self.StableID(), self.Tags(), self.Addresses()
	if nm.Cached || p.admitted == p.nodeID {
		return // who the node was: it may be about to become another
	}
	p.admitted, s.registering = p.nodeID, false // in: NeedsLogin means thrown out now
	s.n.setDeviceID(p.nodeID, s.granted(nm))
	select {
	case s.identityDue <- struct{}{}:
	default:
	}
	s.forgetPeers()
}

// ready publishes that the node is up, and logs it: once, and again when its
// addresses or its name change.
func (s *session) ready(ctx context.Context) {
	what := s.p.identity()
	if s.p.reported == what {
		return
	}
	s.p.reported = what
	s.n.setRunning(&s.p)
	given, _, _ := strings.Cut(s.p.dnsName, ".")
	if requested := s.n.snapshot().Hostname; given != requested && !s.p.keepsName {
		s.p.keepsName = true
		s.n.e.spawn(func() { s.n.keepName(ctx, given, requested) })
	}
}
