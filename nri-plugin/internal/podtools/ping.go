// SPDX-License-Identifier: BSD-3-Clause

package podtools

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
	"tailscale.com/tstime"
)

const usagePing = `tailscale-nri ping [flags] [NAMESPACE/]POD PEER
Ping a peer (name or address) from the pod's node, and show the way that the answers took.
It ends once the way is direct, with 0, or after 10 pings, with 1. With -tsmp and -icmp it ends
with the first answer; with these and -until-direct=false any answer is enough for 0.
  -c N                   number of pings; 0 is no end, but for one after an hour (10)
  -until-direct          end as soon as the way is direct (true)
  -timeout DURATION      how long to wait for each answer (5s)
  -tsmp                  through WireGuard, to the peer's tailscaled
  -icmp                  through WireGuard, to the peer's kernel
  -size BYTES            of a ping without -tsmp and -icmp
`

// pinging has the options of a ping.
type pinging struct {
	count       int
	untilDirect bool
	timeout     time.Duration
	tsmp, icmp  bool
	size        int
}

func pingFlags(fs *flag.FlagSet) func(context.Context, *podClient, toolIO) error {
	p := &pinging{}
	fs.IntVar(&p.count, "c", 10, "")
	fs.BoolVar(&p.untilDirect, "until-direct", true, "")
	fs.DurationVar(&p.timeout, "timeout", 5*time.Second, "")
	fs.BoolVar(&p.tsmp, "tsmp", false, "")
	fs.BoolVar(&p.icmp, "icmp", false, "")
	fs.IntVar(&p.size, "size", 0, "")
	return p.run
}

// kind returns the type of ping to send.
func (p *pinging) kind() tailcfg.PingType {
	switch {
	case p.tsmp:
		return tailcfg.PingTSMP
	case p.icmp:
		return tailcfg.PingICMP
	}
	return tailcfg.PingDisco
}

// check says which flags do not go together.
func (p *pinging) check() error {
	switch {
	case p.tsmp && p.icmp:
		return errors.New("-tsmp and -icmp exclude each other: choose one")
	case p.size != 0 && p.kind() != tailcfg.PingDisco:
		return errors.New("-size cannot be used with -tsmp or -icmp")
	case p.size < 0, p.count < 0, p.timeout <= 0:
		return errors.New("-size and -c are 0 or more, and -timeout more than 0s")
	}
	return nil
}

func (p *pinging) run(ctx context.Context, c *podClient, io toolIO) error {
	if err := p.check(); err != nil {
		return err
	}
	if _, err := c.running(ctx); err != nil {
		return err
	}
	st, err := c.Status(ctx)
	if err != nil {
		return fmt.Errorf("asking for the peers of %s: %w", c.name, err)
	}
	to, err := peerNamed(st, io.args[0])
	if err != nil {
		return err
	}
	if st.Self != nil && isAddressOf(st.Self, to) {
		fmt.Fprintf(io.stdout, "%v is an address of the pod's own node\n", to)
		return nil
	}
	return p.repeat(ctx, c, io, to)
}

// repeat pings until it is enough.
func (p *pinging) repeat(ctx context.Context, c *podClient, io toolIO, to netip.Addr) error {
	answered := false
	for n := 1; ; n++ {
		pong, err := p.once(ctx, c, to)
		switch {
		case ctx.Err() != nil:
			return p.unanswered(answered)
		case errors.Is(err, context.DeadlineExceeded):
			fmt.Fprintf(io.stdout, "ping %q timed out\n", to)
		case err != nil:
			return fmt.Errorf("pinging %v: %w", to, err)
		case pong.Err != "":
			return noAnswer{fmt.Errorf("pinging %v: %s", to, pong.Err)}
		default:
			answered = true
			printPong(io, pong, p.kind())
			if p.kind() != tailcfg.PingDisco || p.untilDirect && pong.Endpoint != "" {
				return nil
			}
		}
		if n == p.count {
			return p.unanswered(answered)
		}
		if err == nil {
			tstime.Sleep(ctx, time.Second)
		}
	}
}

func (p *pinging) once(ctx context.Context, c *podClient, to netip.Addr) (*ipnstate.PingResult, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	return c.PingWithOpts(ctx, to, p.kind(), local.PingOpts{Size: p.size})
}

// unanswered is the result after all pings.
func (p *pinging) unanswered(answered bool) error {
	switch {
	case !answered:
		return noAnswer{errors.New("no reply")}
	case p.untilDirect:
		return noAnswer{errors.New("direct connection not established")}
	}
	return nil
}

// printPong writes a line as tailscale ping does.
func printPong(io toolIO, r *ipnstate.PingResult, kind tailcfg.PingType) {
	via := string(kind)
	switch {
	case r.PeerRelay != "":
		via = fmt.Sprintf("peer-relay(%s)", r.PeerRelay)
	case r.DERPRegionID != 0:
		via = fmt.Sprintf("DERP(%s)", r.DERPRegionCode)
	case r.Endpoint != "":
		via = r.Endpoint
	}
	took := time.Duration(r.LatencySeconds * float64(time.Second)).Round(time.Millisecond)
	fmt.Fprintf(io.stdout, "pong from %s (%s) via %s in %v\n", r.NodeName, r.NodeIP, via, took)
}

// peerNamed returns an address of the peer: the argument itself if it is one, else
// the first of the peer with that name. Of a name's first label it is that in the
// node's own tailnet, before one that is shared into it. Nothing is looked up in DNS:
// this is the host's, and not the pod's.
func peerNamed(st *ipnstate.Status, arg string) (netip.Addr, error) {
	if addr, err := netip.ParseAddr(arg); err == nil {
		return addr, nil
	}
	wanted := strings.ToLower(strings.TrimSuffix(arg, "."))
	own := wanted
	if st.CurrentTailnet != nil {
		own += "." + strings.ToLower(strings.Trim(st.CurrentTailnet.MagicDNSSuffix, "."))
	}
	all := []*ipnstate.PeerStatus{st.Self}
	for _, p := range st.Peer {
		all = append(all, p)
	}
	byName := map[string]*ipnstate.PeerStatus{}
	var alike []string
	for _, p := range all {
		if p == nil || p.DNSName == "" {
			continue
		}
		full := strings.ToLower(strings.TrimSuffix(p.DNSName, "."))
		byName[full] = p
		if short, _, _ := strings.Cut(full, "."); short == wanted {
			alike = append(alike, full)
		}
	}
	found := cmp.Or(byName[wanted], byName[own])
	switch {
	case found != nil:
	case len(alike) > 1:
		slices.Sort(alike)
		return netip.Addr{}, fmt.Errorf("%q is the name of several peers: write one of %s", arg, strings.Join(alike, ", "))
	case len(alike) == 1:
		found = byName[alike[0]]
	default:
		return netip.Addr{}, fmt.Errorf("the pod's node sees no peer %q among its %d: write a name or an address of the tailnet, and see what the policy file grants", arg, len(st.Peer))
	}
	if len(found.TailscaleIPs) == 0 {
		return netip.Addr{}, fmt.Errorf("the peer %s has no address", arg)
	}
	return found.TailscaleIPs[0], nil
}

func isAddressOf(p *ipnstate.PeerStatus, addr netip.Addr) bool {
	for _, a := range p.TailscaleIPs {
		if a == addr {
			return true
		}
	}
	return false
}
