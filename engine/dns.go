// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"tailscale.com/net/dns"
	"tailscale.com/net/tsdial"

	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
)

// nodeDNS is a node's state for its pod's names. It is not used for a pod that did not
// ask for DNS.
type nodeDNS struct {
	zones   atomic.Pointer[dnsZones]
	servers atomic.Pointer[[]netip.Addr] // the pod's original nameservers
	sockets atomic.Pointer[podnet.DNS]   // nil while names are not served

	mu       sync.Mutex
	original *podstate.ResolvConf // nil until it is known
	search   []string             // of the tailnet
	config   *dns.Config          // the last one received, nil before
	ensured  string               // the sandbox whose netns leads to the original nameservers
	spare    bool                 // the kernel cannot lead DNS to them
	trouble  string               // why names are not served
	left     string               // search domains that did not fit, as logged
}

// ResolvConf returns the path, below Config.StateDir, of the file that is to be mounted
// over /etc/resolv.conf of the pod's containers, "" if the pod did not ask for DNS. The
// file exists, has the mode 0644, and is the same for all of the pod's containers for
// as long as the pod lives. It is written in place; it is empty, and not written, until
// [Engine.SetResolvConf] has been called.
func (e *Engine) ResolvConf(podUID string) (path string, err error) {
	n, err := e.nodeForDNS(podUID)
	if err != nil {
		return "", err
	}
	n.op.Lock()
	defer n.op.Unlock()
	switch {
	case n.disk.retired:
		return "", errNoNode(podUID)
	case !n.rec.Pod.Features.DNS:
		return "", nil
	}
	return n.resolvConfPath(), n.writeResolvConf()
}

// SetResolvConf takes the resolv.conf that the pod would have without us, for each
// container before it runs. Names that the tailnet does not have are asked of the
// nameservers in it, from within the pod; its search domains and options stay. It needs
// neither the tailnet nor a node that is up. If an original names no usable nameserver,
// the error says what to do. It does nothing for a pod that did not ask for DNS.
func (e *Engine) SetResolvConf(podUID string, original []byte) error {
	n, err := e.nodeForDNS(podUID)
	if err != nil {
		return err
	}
	if err := n.setResolvConf(original); err != nil {
		return err
	}
	if s := n.runningSession(); s != nil {
		s.dns.poke()
	}
	return nil
}

func (n *node) setResolvConf(original []byte) error {
	n.op.Lock()
	defer n.op.Unlock()
	switch {
	case n.disk.retired:
		return errNoNode(n.uid)
	case !n.rec.Pod.Features.DNS:
		return nil
	}
	c, err := podstate.ParseResolvConf(original)
	if err != nil {
		return err
	}
	if !c.Equal(n.rec.ResolvConf) {
		before := n.rec.ResolvConf
		n.rec.ResolvConf = c
		if err := n.save(); err != nil {
			n.rec.ResolvConf = before
			return err
		}
		n.dns.know(c, n.e.cfg.ClusterRanges)
	}
	if err := n.ensureDNS(n.rec); err != nil {
		return err
	}
	return n.writeResolvConf()
}

func (e *Engine) nodeForDNS(podUID string) (*node, error) {
	if n := e.nodeOfUID(podUID); n != nil {
		return n, nil
	}
	return nil, errNoNode(podUID)
}

func errNoNode(podUID string) error {
	return fmt.Errorf("pod %s has no tailnet node here: its container is created again by the kubelet, which attaches it", podUID)
}

// know records what does not come from the tailnet.
func (d *nodeDNS) know(c *podstate.ResolvConf, ranges []netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.original, d.ensured = c, ""
	d.layOut(ranges)
}

// layOut publishes which nameservers to ask. d.mu is held.
func (d *nodeDNS) layOut(ranges []netip.Prefix) {
	if d.original != nil {
		d.servers.Store(&d.original.Nameservers)
	}
	d.zones.Store(newDNSZones(d.original, ranges, d.config))
}

// ensureDNS leads the pod's DNS to the nameservers that it would have without us, for
// times when no process serves. It does nothing if that was done, or they are not known
// yet.
func (n *node) ensureDNS(r record) error {
	d := &n.dns
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ensured == r.Pod.SandboxID || d.original == nil {
		return nil
	}
	var nat bool
	err := n.e.take(stepAddresses, func() (err error) {
		nat, err = podnet.EnsureDNS(r.NetNS, d.original.Nameservers)
		return err
	})
	if err != nil {
		return fmt.Errorf("preparing DNS in the pod: %w", err)
	}
	if !nat && !d.spare {
		n.log().Warn("the kernel cannot lead DNS to the cluster's nameserver while tailscale-nri is away (nftables, NAT, Linux 5.12): " +
			"resolv.conf names both, and programs on musl (Alpine) may not find names of the tailnet")
	}
	d.ensured, d.spare = r.Pod.SandboxID, !nat
	return nil
}

// writeResolvConf writes the file that the pod's containers have. While the original is
// not known it only makes the file, empty: the owner of the original may write that
// into it.
func (n *node) writeResolvConf() error {
	d := &n.dns
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.original == nil {
		return n.makeResolvConf()
	}
	data, left := d.original.Format(d.search, d.spare)
	if text := strings.Join(left, " "); text != d.left {
		d.left = text
		if text != "" {
			n.log().Warn("no room for these search domains of the tailnet in the pod's resolv.conf: write their names in full", "domains", text)
		}
	}
	if err := n.rewriteResolvConf(data); err != nil {
		return fmt.Errorf("writing the pod's resolv.conf: %w", podstate.Remedy(err))
	}
	return nil
}

// makeResolvConf makes the file, empty, unless it is there.
func (n *node) makeResolvConf() error {
	if _, err := os.Lstat(n.resolvConfPath()); err == nil {
		return nil
	}
	if err := n.rewriteResolvConf(nil); err != nil {
		return fmt.Errorf("making the pod's resolv.conf: %w", podstate.Remedy(err))
	}
	return nil
}

// setTailnetConfig records the tailnet's configuration. It reports whether its search domains have
// changed. A node that has left the tailnet, or whose key has expired, has an empty
// configuration: then nothing is asked of the tailnet, and the domains stay.
func (d *nodeDNS) setTailnetConfig(cfg *dns.Config, ranges []netip.Prefix) (changed bool) {
	if !cfg.AcceptDNS {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.config = nil
		d.layOut(ranges)
		return false
	}
	var search []string
	for _, domain := range cfg.SearchDomains {
		search = append(search, podstate.PlainName(string(domain)))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	changed = !slices.Equal(d.search, search)
	d.search, d.config = search, cfg
	d.layOut(ranges)
	return changed
}

// forgetEnsured has the pod's DNS led to the original nameservers again.
func (d *nodeDNS) forgetEnsured() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ensured = ""
}

// searchDomains returns those of the tailnet.
func (d *nodeDNS) searchDomains() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.search
}

// setTrouble records why names are not served, "" if they are, and reports whether that
// is news.
func (d *nodeDNS) setTrouble(why string) (news bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	news, d.trouble = d.trouble != why, why
	return news
}

// amend adds to a node's status what does not work.
func (d *nodeDNS) amend(s *NodeStatus) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.State == Running && s.Reason == "" && d.trouble != "" {
		s.Reason = d.trouble
	}
}

// setDials has all queries of the backend's resolver go out within the pod: nothing
// that a pod asks for leaves this process's own netns.
func (d *nodeDNS) setDials(dialer *tsdial.Dialer) {
	errNotServed := errors.New("the pod's node does not serve DNS at the moment")
	dialer.UseNetstackForIP = func(netip.Addr) bool { return true }
	dialer.NetstackDialUDP = func(_ context.Context, to netip.AddrPort) (net.Conn, error) {
		if s := d.sockets.Load(); s != nil {
			return s.DialUDP(to)
		}
		return nil, errNotServed
	}
	dialer.NetstackDialTCP = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		if s := d.sockets.Load(); s != nil {
			return s.DialTCP(ctx, to)
		}
		return nil, errNotServed
	}
}
