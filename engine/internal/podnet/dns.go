// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tailscale.com/net/tsaddr"
)

// A pod that resolves names by its node asks Tailscale's service addresses, port 53.
// What answers there:
//
//	           ┌─ while this process lives ──▶ its sockets in the pod (DNS)
//	program ───┤
//	           └─ otherwise, by NAT ─────────▶ the cluster's nameserver
//
// EnsureDNS sets up the second way in an nftables table that stays. The first is a
// table that belongs to a socket of this process. It has the packets left out of
// connection tracking, and so of NAT. When the process ends, for any reason, the kernel
// switches over at that moment, and no connection remembers the earlier state.
//
// The addresses are local to the pod by a route each (the local table) and are on no
// interface. A program that takes the first address which is not 127.0.0.1 for its own
// must not find them.

const (
	dnsPort      = 53
	dnsTable     = "tailscale-nri-dns"      // stays
	dnsLiveTable = "tailscale-nri-dns-live" // ends with its socket
)

// dnsService returns Tailscale's service address of the family.
func dnsService(v6 bool) netip.Addr {
	if v6 {
		return tsaddr.TailscaleServiceIPv6()
	}
	return tsaddr.TailscaleServiceIP()
}

// dnsFamily returns what differs between IPv4 and IPv6: the family, and header offsets
// in bytes.
func dnsFamily(v6 bool) (family byte, src, dst uint32) {
	if v6 {
		return unix.NFPROTO_IPV6, 8, 24
	}
	return unix.NFPROTO_IPV4, 12, 16
}

// EnsureDNS makes the service addresses local to the pod. It leads packets for port 53
// of the IPv4 address to the first IPv4 nameserver, while [OpenDNS] does not take them
// over. If all nameservers are IPv6, it does so for IPv6. It does not do both, since
// NAT has all connections of a family tracked, the pod's own too. nat reports whether
// the kernel can do it; if it is false, nothing was done.
func EnsureDNS(ns Namespace, nameservers []netip.Addr) (nat bool, err error) {
	if err := ns.withHandle(addServiceRoutes); err != nil {
		return false, err
	}
	h, err := ns.open()
	if err != nil {
		return false, err
	}
	defer h.Close()
	s, err := openNft(h)
	if lacksNft(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer s.Close()
	if owned, err := canOwnTables(); !owned {
		return false, err
	}
	if len(nameservers) == 0 {
		return false, errors.New("no nameserver to lead DNS to")
	}
	to := nameservers[max(0, slices.IndexFunc(nameservers, netip.Addr.Is4))]
	err = s.run(func(b *rawBatch) {
		for _, v6 := range []bool{false, true} {
			t := natTable(v6, to)
			b.makeTable(t)
			b.deleteTable(t)
			if v6 == to.Is6() {
				b.makeTable(t)
				b.fillTable(t)
			}
		}
	})
	if lacksNft(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("leading DNS to the cluster's nameserver (nftables): %w", err)
	}
	return true, nil
}

// addServiceRoutes makes the service addresses local. In a pod without IPv6 it leaves
// out the IPv6 address.
func addServiceRoutes(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking up lo: %w", err)
	}
	for _, v6 := range []bool{false, true} {
		addr := dnsService(v6)
		route := netlink.Route{
			Dst: ipNet(netip.PrefixFrom(addr, addr.BitLen())), LinkIndex: lo.Attrs().Index,
			Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Protocol: routeProtocol,
		}
		if !v6 {
			route.Scope = netlink.SCOPE_HOST
		}
		if err := h.RouteReplace(&route); err != nil && (!v6 || !isIPv6Off(err)) {
			return fmt.Errorf("making %v local to the pod: %w", addr, err)
		}
	}
	return nil
}

// natTable leads packets that the pod sends to the service address to the nameserver.
// They get the source address of the interface by which they leave the pod.
func natTable(v6 bool, nameserver netip.Addr) *rawTable {
	family, _, dst := dnsFamily(v6)
	t := &rawTable{family: family, name: dnsTable}
	out := rawChain{name: "output", kind: "nat", hook: unix.NF_INET_LOCAL_OUT, priority: nftDstNAT}
	post := rawChain{name: "postrouting", kind: "nat", hook: unix.NF_INET_POST_ROUTING, priority: nftSrcNAT}
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		to := func(addr netip.Addr) []rawExpr {
			rule := matchBytes(unix.NFT_PAYLOAD_NETWORK_HEADER, dst, addr.AsSlice())
			rule = append(rule, matchMeta(unix.NFT_META_L4PROTO, unix.NFT_CMP_EQ, []byte{proto})...)
			return append(rule, matchBytes(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, []byte{0, dnsPort})...)
		}
		out.rules = append(out.rules, append(to(dnsService(v6)), dstNAT(family, nameserver.AsSlice())...))
		rule := append(to(nameserver), matchDstNAT()...)
		rule = append(rule, matchMeta(unix.NFT_META_OIFNAME, unix.NFT_CMP_NEQ, append([]byte("lo"), make([]byte, unix.IFNAMSIZ-2)...))...)
		post.rules = append(post.rules, append(rule, rawExpr{name: "masq"}))
	}
	t.chains = []rawChain{out, post}
	return t
}

// liveTable leads packets for the service address's port 53 to our sockets' ports, and
// their answers back, outside of connection tracking.
func liveTable(v6 bool, udp, tcp uint16) *rawTable {
	family, src, dst := dnsFamily(v6)
	c := rawChain{name: "output", kind: "filter", hook: unix.NF_INET_LOCAL_OUT, priority: nftRaw}
	for proto, port := range map[byte]uint16{unix.IPPROTO_UDP: udp, unix.IPPROTO_TCP: tcp} {
		for _, way := range []struct {
			addr, offset uint32
			from, to     uint16
		}{{dst, 2, dnsPort, port}, {src, 0, port, dnsPort}} {
			rule := matchBytes(unix.NFT_PAYLOAD_NETWORK_HEADER, way.addr, dnsService(v6).AsSlice())
			rule = append(rule, matchMeta(unix.NFT_META_L4PROTO, unix.NFT_CMP_EQ, []byte{proto})...)
			rule = append(rule, matchBytes(unix.NFT_PAYLOAD_TRANSPORT_HEADER, way.offset, binary.BigEndian.AppendUint16(nil, way.from))...)
			rule = append(rule, rawExpr{name: "notrack"})
			c.rules = append(c.rules, append(rule, setPort(proto, way.offset, way.to)...))
		}
	}
	return &rawTable{family: family, name: dnsLiveTable, flags: nftOwned, chains: []rawChain{c}}
}

// DNS is this process's sockets in a pod that answer for port 53 of the service
// addresses. They take packets of the pod itself only. As long as they are open they
// keep the pod's netns alive: see Gone.
//
// They have other ports, to which the live table leads: a program of the pod that
// serves DNS may listen at port 53 of all addresses, which includes the service
// addresses. Where the kernel has no such tables the sockets have port 53, which then
// goes to the first program that takes it.
type DNS struct {
	UDP []*net.UDPConn
	TCP []*net.TCPListener

	ns   Namespace
	live rawSocket // owns the live tables; zero where the kernel has no such tables

	mu    sync.RWMutex
	fd    int      // the netns, -1 after Close
	conns sync.Map // the open *podConn
}

// OpenDNS opens the sockets, and takes over from the NAT that [EnsureDNS] has laid,
// for as long as they are open and the process lives.
func OpenDNS(ctx context.Context, ns Namespace) (_ *DNS, err error) {
	h, err := ns.open()
	if err != nil {
		return nil, err
	}
	d := &DNS{ns: ns, fd: int(h)}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if err := ns.withHandle(addServiceRoutes); err != nil {
		return nil, err
	}
	owned, err := canOwnTables()
	if err != nil {
		return nil, err
	}
	if err := ns.do(func() error { return d.listen(owned) }); err != nil || !owned {
		return d, err
	}
	if d.live, err = openNft(h); err != nil {
		return nil, err
	}
	return d, d.takeOver(ctx)
}

// takeOver makes the live tables. Tables of a process that is ending are about to go.
func (d *DNS) takeOver(ctx context.Context) (err error) {
	for range 20 {
		err = d.live.run(func(b *rawBatch) {
			for i, u := range d.UDP {
				udp := u.LocalAddr().(*net.UDPAddr).AddrPort()
				t := liveTable(udp.Addr().Is6(), udp.Port(), d.TCP[i].Addr().(*net.TCPAddr).AddrPort().Port())
				b.makeTable(t)
				b.fillTable(t)
			}
		})
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EEXIST) {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	if err != nil {
		return fmt.Errorf("taking DNS over from the cluster's nameserver (nftables): %w", err)
	}
	return nil
}

// The live table leads to one of these ports. By convention they belong to nothing,
// they need no capability, and the kernel does not give them to clients.
const firstPort, lastPort = 11600, 11609

// listen opens the sockets, on a thread inside the netns.
func (d *DNS) listen(led bool) error {
	lc := net.ListenConfig{Control: hearOnlyLoopback, KeepAliveConfig: net.KeepAliveConfig{Enable: false}}
	lc.SetMultipathTCP(false)
	first, last := uint16(dnsPort), uint16(dnsPort)
	if led {
		first, last = firstPort, lastPort
	}
	for _, family := range []string{"4", "6"} {
		addr := dnsService(family == "6")
		u, err := atAnyPort(addr, first, last, func(at string) (net.PacketConn, error) {
			return lc.ListenPacket(context.Background(), "udp"+family, at)
		})
		if family == "6" && isIPv6Off(err) {
			return nil
		}
		if err != nil {
			return err
		}
		d.UDP = append(d.UDP, u.(*net.UDPConn))
		l, err := atAnyPort(addr, first, last, func(at string) (net.Listener, error) {
			return lc.Listen(context.Background(), "tcp"+family, at)
		})
		if err != nil {
			return err
		}
		d.TCP = append(d.TCP, l.(*net.TCPListener))
	}
	return nil
}

// atAnyPort listens at the first port of the address that is free.
func atAnyPort[T any](addr netip.Addr, first, last uint16, listen func(string) (T, error)) (s T, err error) {
	for port := first; port <= last; port++ {
		at := netip.AddrPortFrom(addr, port).String()
		if s, err = listen(at); err == nil {
			return s, nil
		}
		if err = listenError(at, err); !errors.Is(err, unix.EADDRINUSE) {
			return s, err
		}
	}
	return s, err
}

func listenError(at string, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("a program of the pod has the port %s, have it listen at the pod's own address: %w", at, err)
	}
	return fmt.Errorf("listening at %s: %w", at, err)
}

// hearOnlyLoopback has a socket receive only packets that come by lo, which only the
// pod itself can send. A filter drops packets for the same address that come by another
// interface, as a neighbour on eth0 may send them (socket(7), SO_ATTACH_FILTER). A
// socket that is bound to lo could not answer a program that has bound another address
// of the pod.
func hearOnlyLoopback(network, _ string, c syscall.RawConn) (err error) {
	const (
		loopback  = 1                 // its index, in every netns (LOOPBACK_IFINDEX)
		adIfindex = 1<<32 - 1<<12 + 8 // the packet's interface: SKF_AD_OFF + SKF_AD_IFINDEX, linux/filter.h
	)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: adIfindex},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: loopback},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 18},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
		if err == nil && (network == "udp6" || network == "tcp6") {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1) // the address is on no interface
		}
	})
	return errors.Join(cerr, err)
}

// Gone returns an error that wraps [ErrGone] if the runtime has let go of the pod's
// netns, so that only our sockets keep it alive. It costs next to nothing.
func (d *DNS) Gone() error {
	for _, path := range d.ns.Paths {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Ino == d.ns.Ino && uint64(st.Dev) == d.ns.Dev {
			return nil // the number belongs to no other netns while our sockets are in it
		}
	}
	return d.ns.Check()
}

// Intact reports whether the table of [EnsureDNS] is still there: a pod that may change
// its network may also flush its tables. Intact makes the service addresses local
// again.
func (d *DNS) Intact() (bool, error) {
	if err := d.ns.withHandle(addServiceRoutes); err != nil || d.live.NetlinkSocket == nil {
		return true, err
	}
	for _, v6 := range []bool{false, true} {
		family, _, _ := dnsFamily(v6)
		if has, err := d.live.has(&rawTable{family: family, name: dnsTable}); has || err != nil {
			return true, err
		}
	}
	return false, nil
}

// Close hands the port back to the NAT, and closes the sockets, including those that
// were dialed: each would keep the pod's netns alive.
func (d *DNS) Close() {
	if d.live.NetlinkSocket != nil {
		d.live.Close()
	}
	for _, c := range d.UDP {
		c.Close()
	}
	for _, l := range d.TCP {
		l.Close()
	}
	d.mu.Lock()
	unix.Close(d.fd)
	d.fd = -1
	d.mu.Unlock()
	d.closeConns()
}
