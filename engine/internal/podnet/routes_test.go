// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"tailscale.com/net/packet"
	"tailscale.com/types/ipproto"
	"tailscale.com/wgengine/router"

	"tailscale-nri/engine/internal/nstest"
)

// A host that has addresses of Tailscale's ranges, as one on a join network or on a
// tailnet of its own has, and a pod of it with ts0.
const (
	podEth4, podEth6   = "10.9.0.2", "fc00:9::2"
	nodeEth4, nodeEth6 = "10.9.0.1", "fc00:9::1"
	joinAddr           = "100.64.200.1"       // of the node, and nobody's in the tailnet
	joinAddr6          = "fd7a:115c:a1e0::c8" // the same
	sharedAddr         = "100.64.0.9"         // of the node and of a peer
	dnsAddr            = "100.65.0.10"        // of a service, in a named range, and of a peer
	serviceRange       = "100.65.0.0/16"
	serviceRange6      = "fd7a:115c:a1e0:b::/64"
	serviceAddr6       = "fd7a:115c:a1e0:b::10"
	peerAddr           = "100.64.0.8"
	peerAddr6          = "fd7a:115c:a1e0::8"
	ownAddr, ownAddr6  = "100.64.0.7", "fd7a:115c:a1e0::7"
	acceptedAddr       = "192.0.2.77"
)

type cluster struct {
	pod, node *nstest.Pod
	device    *Device
	router    *Router
	link      *Link
}

// newCluster calls before with the router before that puts anything into the pod.
func newCluster(t *testing.T, host string, before ...func(*cluster)) *cluster {
	t.Helper()
	c := &cluster{pod: nstest.NewPod(t), node: nstest.NewPod(t)}
	pod, node := c.pod.Netlink(), c.node.Netlink()
	eth0 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "cni0"}
	c.node.Do(func() error {
		ns, err := os.Open(c.pod.Path())
		if err != nil {
			return err
		}
		defer ns.Close()
		eth0.LinkAttrs.Namespace = netlink.NsFd(ns.Fd())
		return node.LinkAdd(eth0)
	})
	mustPut := func(h *netlink.Handle, name string, addrs ...string) {
		link, err := h.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		err = h.LinkSetUp(link)
		for _, a := range addrs {
			err = errors.Join(err, h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a)), Flags: unix.IFA_F_NODAD}))
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	mustPut(node, "cni0", nodeEth4+"/24", nodeEth6+"/64", joinAddr+"/32", sharedAddr+"/32", dnsAddr+"/32", joinAddr6+"/128", serviceAddr6+"/128")
	mustPut(pod, "eth0", podEth4+"/24", podEth6+"/64")
	for _, gw := range []string{nodeEth4, nodeEth6} {
		if err := pod.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw)}); err != nil {
			t.Fatal(err)
		}
	}
	awaitLinkLocal(t, pod)
	l := mustEnsure(t, c.pod, host)
	c.link, c.device = l, mustOpen(t, l)
	c.router = l.Router(slog.New(slog.DiscardHandler), prefixes(serviceRange, serviceRange6), nil)
	for _, f := range before {
		f(c)
	}
	if err := c.router.Set(&router.Config{
		LocalAddrs: prefixes(ownAddr+"/32", ownAddr6+"/128"),
		Routes:     prefixes(peerAddr+"/32", sharedAddr+"/32", dnsAddr+"/32", "192.0.2.0/24", "fd7a:115c:a1e0::/48"),
	}); err != nil {
		t.Fatal(err)
	}
	awaitLocal(t, pod, netip.MustParseAddr(ownAddr6))
	return c
}

// rpFilter sets reverse path filtering on all of the pod's interfaces: 0 off, 1
// strict, 2 loose.
func (c *cluster) rpFilter(value string) {
	c.pod.Do(func() (err error) {
		for _, name := range []string{"all", "eth0", PodLink} {
			err = errors.Join(err, os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte(value), 0))
		}
		return err
	})
}

// Answers to a packet of eth0 leave by eth0, whatever its source is, under each setting
// of the pod's reverse path filter.
func TestAnswersLeaveByEth0(t *testing.T) {
	c := newCluster(t, "tsanswers")
	serveEcho(t, c.pod)
	for _, rp := range []string{"0", "1", "2"} {
		c.rpFilter(rp)
		for _, p := range []struct{ from, to string }{
			{joinAddr, podEth4}, {sharedAddr, podEth4}, {dnsAddr, podEth4}, {nodeEth4, podEth4},
			{joinAddr6, podEth6}, {serviceAddr6, podEth6}, {nodeEth6, podEth6},
		} {
			for _, network := range []string{"tcp", "udp", "icmp"} {
				c.node.Do(func() error {
					if err := probe(network, p.from, p.to); err != nil {
						return fmt.Errorf("rp_filter %s: %s from %s to %s: %w", rp, network, p.from, p.to, err)
					}
					return nil
				})
			}
		}
	}
}

// Answers to a packet of ts0 leave by ts0, also where the cluster has the peer's
// address.
func TestAnswersLeaveByTS0(t *testing.T) {
	c := newCluster(t, "tspeers")
	got := packetsOf(t, c.device)
	for _, rp := range []string{"0", "1", "2"} {
		c.rpFilter(rp)
		for _, peer := range []string{peerAddr, sharedAddr, dnsAddr, "100.127.0.1", acceptedAddr, peerAddr6, serviceAddr6} {
			src, dst := netip.MustParseAddr(peer), netip.MustParseAddr(ownAddr)
			if src.Is6() {
				dst = netip.MustParseAddr(ownAddr6)
			}
			echo := pingPacket(t, src, dst)
			if _, err := c.device.Write([][]byte{echo}, 0); err != nil {
				t.Fatal(err)
			}
			await(t, got, dst, src)
		}
	}
}

// What the pod begins goes to the tailnet where the tailnet has it, and nowhere
// else.
func TestWhatThePodBegins(t *testing.T) {
	c := newCluster(t, "tsbegins")
	got := packetsOf(t, c.device)
	for _, tt := range []struct{ to, from string }{
		{peerAddr, ownAddr},
		{sharedAddr, ownAddr}, // both have it, and nobody has named it
		{dnsAddr, podEth4},    // both have it, and the range is named
		{joinAddr, podEth4},
		{"100.100.100.100", podEth4},
		{acceptedAddr, ownAddr},
		{"198.51.100.1", podEth4},
		{peerAddr6, ownAddr6},
		{serviceAddr6, podEth6},
		{nodeEth6, podEth6},
	} {
		to := net.JoinHostPort(tt.to, "9")
		c.pod.Do(func() error {
			connected, err := net.Dial("udp", to)
			if err != nil {
				return err
			}
			defer connected.Close()
			if from := connected.LocalAddr().(*net.UDPAddr).IP.String(); from != tt.from {
				return fmt.Errorf("a socket connected to %s has the source %s, want %s", tt.to, from, tt.from)
			}
			wildcard, err := net.ListenUDP("udp", nil)
			if err != nil {
				return err
			}
			defer wildcard.Close()
			addr := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
			_, err = wildcard.WriteToUDP([]byte("hello"), addr)
			return err
		})
		if strings.HasPrefix(tt.from, "10.") || strings.HasPrefix(tt.from, "fc00:") {
			continue
		}
		await(t, got, netip.MustParseAddr(tt.from), netip.MustParseAddr(tt.to))
		// TCP begins with a look-up of its own.
		c.pod.Do(func() error {
			d := net.Dialer{Timeout: 50 * time.Millisecond}
			if conn, err := d.Dial("tcp", to); err == nil {
				conn.Close()
				return errors.New("somebody has answered")
			}
			return nil
		})
		await(t, got, netip.MustParseAddr(tt.from), netip.MustParseAddr(tt.to))
	}
	// In turn, those on eth0 are answered there.
	serveEcho(t, c.node)
	for _, to := range []string{dnsAddr, joinAddr, nodeEth4, joinAddr6, serviceAddr6, nodeEth6} {
		for _, network := range []string{"tcp", "udp", "icmp"} {
			from := podEth4
			switch {
			case strings.Contains(to, ":"):
				from = podEth6
			}
			c.pod.Do(func() error {
				if err := probe(network, from, to); err != nil {
					return fmt.Errorf("%s to %s: %w", network, to, err)
				}
				return nil
			})
		}
	}
}

const echoPort = "7"

// serveEcho echoes on TCP, and on UDP with a socket for each address, since one
// for all has no source to answer from.
func serveEcho(t *testing.T, p *nstest.Pod) {
	t.Helper()
	p.Do(func() error {
		l, err := net.Listen("tcp", ":"+echoPort)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					b := make([]byte, 16)
					if n, err := conn.Read(b); err == nil {
						_, _ = conn.Write(b[:n])
					}
				}()
			}
		}()
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return err
		}
		for _, a := range addrs {
			udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: a.(*net.IPNet).IP, Port: 7})
			if err != nil {
				continue // link-local
			}
			t.Cleanup(func() { udp.Close() })
			go func() {
				b := make([]byte, 16)
				for {
					n, from, err := udp.ReadFromUDP(b)
					if err != nil {
						return
					}
					_, _ = udp.WriteToUDP(b[:n], from)
				}
			}()
		}
		return nil
	})
}

// probe sends something to an echo and awaits it, as a kubelet's probe does.
func probe(network, from, to string) error {
	ip := net.ParseIP(from)
	d := net.Dialer{Timeout: 5 * time.Second}
	switch network {
	case "icmp":
		return ping(from, to)
	case "tcp":
		d.LocalAddr = &net.TCPAddr{IP: ip}
	case "udp":
		d.LocalAddr = &net.UDPAddr{IP: ip}
	}
	conn, err := d.Dial(network, net.JoinHostPort(to, echoPort))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 16))
	return err
}

func ping(from, to string) error {
	network, request, reply, proto := "ip4:icmp", icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply), 1
	if strings.Contains(to, ":") {
		network, request, reply, proto = "ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	conn, err := icmp.ListenPacket(network, from)
	if err != nil {
		return err
	}
	defer conn.Close()
	m := icmp.Message{Type: request, Body: &icmp.Echo{ID: 7, Seq: 7, Data: []byte("hello")}}
	b, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := conn.WriteTo(b, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	for b := make([]byte, 1500); ; {
		n, peer, err := conn.ReadFrom(b)
		if err != nil {
			return err
		}
		if m, err := icmp.ParseMessage(proto, b[:n]); err == nil && m.Type == reply && peer.String() == to {
			return nil
		}
	}
}

// pingPacket returns an echo request as a peer sends it.
func pingPacket(t *testing.T, src, dst netip.Addr) []byte {
	t.Helper()
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 7, Seq: 7, Data: []byte("hello")}}
	h := packet.Header(packet.IP4Header{IPProto: ipproto.ICMPv4, Src: src, Dst: dst})
	var pseudo []byte
	if src.Is6() {
		m.Type, pseudo = ipv6.ICMPTypeEchoRequest, icmp.IPv6PseudoHeader(src.AsSlice(), dst.AsSlice())
		h = packet.IP6Header{IPProto: ipproto.ICMPv6, Src: src, Dst: dst}
	}
	body, err := m.Marshal(pseudo)
	if err != nil {
		t.Fatal(err)
	}
	return packet.Generate(h, body)
}

// flow is the source and the destination of a packet.
type flow struct{ src, dst netip.Addr }

// packetsOf returns the flows of the packets that the pod sends over ts0.
func packetsOf(t *testing.T, d *Device) <-chan flow {
	flows := make(chan flow, 1024)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := newBatch()
		for {
			packets, err := b.read(d)
			if err != nil {
				return
			}
			for _, raw := range packets {
				var p packet.Parsed
				p.Decode(raw)
				flows <- flow{p.Src.Addr(), p.Dst.Addr()}
			}
		}
	}()
	t.Cleanup(func() { d.Close(); <-done })
	return flows
}

func await(t *testing.T, flows <-chan flow, src, dst netip.Addr) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case f := <-flows:
			if f == (flow{src, dst}) {
				return
			}
			if f.src.IsGlobalUnicast() && f.src != src {
				t.Errorf("%v to %v left by ts0", f.src, f.dst)
			}
		case <-deadline:
			t.Fatalf("no packet from %v to %v on ts0", src, dst)
		}
	}
}
