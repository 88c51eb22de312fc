// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"time"

	"tailscale.com/net/dns"

	"tailscale-nri/engine/internal/podnet"
)

// dnsCheckPause is how often the session checks whether only our sockets keep the pod's
// netns alive. It is also the pause after they could not be opened.
const dnsCheckPause = 5 * time.Second

// pokePatience bounds how long a container waits for the pod's sockets, which takes
// milliseconds.
const pokePatience = 500 * time.Millisecond

// checksPerRestore is after how many looks the session also restores what a pod may have
// removed.
const checksPerRestore = 6

// sessionDNS serves one session's pod.
type sessionDNS struct {
	configs chan *dns.Config   // capacity 1
	known   chan chan struct{} // the original nameservers may be known now; the sent channel is closed when they are in use
	over    chan struct{}      // closed at the end
	ready   chan struct{}      // capacity 1: it serves, or has failed to

	// These belong to runDNS.
	heard     bool // the node is in the tailnet
	unwritten bool // resolv.conf lacks search domains that were received
	server    *dnsServer
}

// askForDNS has the session serve the pod's names, if asked.
func (s *session) askForDNS(asked bool) {
	if asked {
		s.p.dnsDue = true
		s.dns = &sessionDNS{configs: make(chan *dns.Config, 1), known: make(chan chan struct{}), over: make(chan struct{}), ready: make(chan struct{}, 1)}
	}
}

// poke says that the pod's original nameservers may be known now, and returns when the
// pod is served if it can be.
func (d *sessionDNS) poke() {
	if d == nil {
		return
	}
	patience := time.NewTimer(pokePatience)
	defer patience.Stop()
	done := make(chan struct{})
	select {
	case d.known <- done:
	case <-d.over:
		return
	case <-patience.C:
		return
	}
	select {
	case <-done:
	case <-d.over:
	case <-patience.C:
	}
}

// served returns a channel with one value once the pod's names are resolved, or cannot
// be; nil for a pod that did not ask for that.
func (d *sessionDNS) served() <-chan struct{} {
	if d == nil {
		return nil
	}
	return d.ready
}

// configure passes the tailnet's configuration on, and returns the one that the
// backend's resolver is to have.
func (d *sessionDNS) configure(cfg *dns.Config) *dns.Config {
	if cfg == nil {
		return nil
	}
	cfg = shareRoutes(tailnetResolvers(cfg))
	select {
	case <-d.configs:
	default:
	}
	d.configs <- cfg
	return cfg
}

// startDNS serves the pod's names, once the tailnet's configuration and the pod's
// original nameservers are known, until the function that it returns is called.
func (s *session) startDNS() (stop func()) {
	if s.dns == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.runDNS(ctx)
	}()
	return func() { cancel(); <-done }
}

func (s *session) runDNS(ctx context.Context) {
	d := s.dns
	defer close(d.over)
	defer d.close(s.n)
	look := time.NewTicker(dnsCheckPause)
	defer look.Stop()
	for looks := 0; ; {
		select {
		case <-ctx.Done():
			return
		case cfg := <-d.configs:
			if changed := s.n.setTailnetDNS(cfg); changed || !d.heard { // the last process may have ended before it wrote
				s.writeSearch()
			}
			d.heard = d.heard || cfg.AcceptDNS
			s.openDNS(ctx)
		case done := <-d.known:
			s.openDNS(ctx)
			close(done)
		case <-look.C:
			if d.server != nil && errors.Is(d.server.sockets.Gone(), podnet.ErrGone) {
				return
			}
			if d.unwritten {
				s.writeSearch()
			}
			if looks++; d.server != nil && looks%checksPerRestore == 0 {
				s.restoreDNS()
			}
			s.openDNS(ctx)
		}
	}
}

// openDNS opens the pod's sockets, unless they are open or it is too early for that. If
// it cannot, it says why.
func (s *session) openDNS(ctx context.Context) {
	d := s.dns
	if !d.heard || d.server != nil {
		return
	}
	if s.n.dns.servers.Load() != nil { // without them, what answers now does better
		err := d.open(ctx, s)
		why := ""
		if err != nil {
			why = "names are resolved by the cluster's nameservers only: " + err.Error()
		}
		if s.n.dns.setTrouble(why) && err != nil {
			s.n.log().Warn("the pod's names are not resolved by its node, trying again", "err", err)
		}
	}
	select {
	case d.ready <- struct{}{}:
	default:
	}
}

func (d *sessionDNS) open(ctx context.Context, s *session) error {
	r := s.n.record()
	if err := s.n.ensureDNS(r); err != nil {
		return err
	}
	var sockets *podnet.DNS
	err := s.n.e.take(stepAddresses, func() (err error) {
		sockets, err = podnet.OpenDNS(ctx, r.NetNS)
		return err
	})
	if err != nil {
		return err
	}
	s.n.dns.sockets.Store(sockets)
	d.server = serveDNS(ctx, &s.n.dns, sockets, s.b.sys.DNSManager.Get())
	return nil
}

// restoreDNS restores what the pod has flushed.
func (s *session) restoreDNS() {
	intact, err := s.dns.server.sockets.Intact()
	if err == nil && !intact {
		s.n.dns.forgetEnsured()
		err = s.n.ensureDNS(s.n.record())
	}
	if err != nil && !errors.Is(err, podnet.ErrGone) {
		s.n.log().Debug("restoring the pod's way to the cluster's nameserver", "err", err)
	}
}

func (d *sessionDNS) close(n *node) {
	n.dns.setTrouble("")
	if d.server == nil {
		return
	}
	n.dns.sockets.Store(nil)
	d.server.close()
}

// setTailnetDNS records the tailnet's configuration. It reports whether resolv.conf has to
// change.
func (n *node) setTailnetDNS(cfg *dns.Config) bool {
	if !n.dns.setTailnetConfig(cfg, n.e.cfg.ClusterRanges) {
		return false
	}
	search := n.dns.searchDomains()
	n.update(func(r *record) { r.TailnetSearch = search })
	return true
}

// writeSearch writes the tailnet's search domains into resolv.conf. If it cannot, it
// says why, once; runDNS tries again.
func (s *session) writeSearch() {
	err := s.n.writeResolvConf()
	if err != nil && !s.dns.unwritten {
		s.n.log().Error("the pod's resolv.conf does not have the tailnet's search domains, trying again", "err", err)
	}
	s.dns.unwritten = err != nil
}
