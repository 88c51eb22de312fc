// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// packetRow is a packet from a to b, and whether it arrives.
type packetRow struct {
	name    string
	packet  rawPacket
	arrives bool
	cut     int // bytes that are not part of the packet by its own length
}

// as is the packet that should arrive.
func (r packetRow) as(sent []byte) []byte { return sent[:len(sent)-r.cut] }

// with returns the packet with a change.
func (p rawPacket) with(change func(*rawPacket)) rawPacket {
	change(&p)
	return p
}

// packetRows are the packets that TestLocalPackets sends.
func packetRows(e ends) []packetRow {
	rows := plainRows(e)
	rows = append(rows, spoofedRows(e)...)
	rows = append(rows, strayRows(e)...)
	rows = append(rows, protocolRows(e)...)
	return append(rows, brokenRows(e)...)
}

// plainRows differ in the header only.
func plainRows(e ends) []packetRow {
	v4 := func(change func(*rawPacket)) rawPacket { return e.v4.with(change) }
	v6 := func(change func(*rawPacket)) rawPacket { return e.v6.with(change) }
	nop := []byte{1, 1, 1, 0}
	routerAlert := []byte{148, 4, 0, 0}
	timestamp := []byte{68, 8, 5, 0, 0, 0, 0, 0}
	sourceRoute := append([]byte{131, 7, 4}, append(as4(e.b[0]), 0)...)
	padded := []byte{unix.IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0} // PadN
	return []packetRow{
		{"IPv4", v4(func(*rawPacket) {}), true, 0},
		{"IPv6", v6(func(*rawPacket) {}), true, 0},
		{"TTL 1", v4(func(p *rawPacket) { p.ttl = 1 }), true, 0},
		{"TTL 255", v4(func(p *rawPacket) { p.ttl = 255 }), true, 0},
		{"hop limit 1", v6(func(p *rawPacket) { p.ttl = 1 }), true, 0},
		{"DSCP and ECN", v4(func(p *rawPacket) { p.tos = 0xb9 }), true, 0},
		{"IPv6 traffic class", v6(func(p *rawPacket) { p.tos = 0xb9 }), true, 0},
		{"do not fragment", v4(func(p *rawPacket) { p.frag = 0x4000 }), true, 0},
		{"the evil bit", v4(func(p *rawPacket) { p.frag = 0x8000 }), true, 0},
		{"options: no operation", v4(func(p *rawPacket) { p.options = nop }), true, 0},
		{"options: router alert", v4(func(p *rawPacket) { p.options = routerAlert }), true, 0},
		{"options: timestamp", v4(func(p *rawPacket) { p.options = timestamp }), true, 0},
		{"options: source route", v4(func(p *rawPacket) { p.options = sourceRoute }), true, 0},
		{"first fragment", v4(func(p *rawPacket) { p.frag, p.payload = 0x2000, make([]byte, 200) }), true, 0},
		{"small first fragment", v4(func(p *rawPacket) { p.frag = 0x2000 }), true, 0},
		{"later fragment", v4(func(p *rawPacket) { p.frag, p.payload = 0x2000|100, make([]byte, 200) }), true, 0},
		{"last fragment", v4(func(p *rawPacket) { p.frag, p.payload = 200, make([]byte, 13) }), true, 0},
		{"fragment that overlaps a header", v4(func(p *rawPacket) { p.frag, p.payload = 1, make([]byte, 200) }), false, 0},
		{"hop-by-hop options", v6(func(p *rawPacket) { p.ext, p.options = unix.IPPROTO_HOPOPTS, padded }), false, 0},
		{"destination options", v6(func(p *rawPacket) { p.ext, p.options = unix.IPPROTO_DSTOPTS, padded }), false, 0},
		{"routing header", v6(func(p *rawPacket) {
			p.ext, p.options = unix.IPPROTO_ROUTING, []byte{unix.IPPROTO_UDP, 0, 4, 0, 0, 0, 0, 0}
		}), false, 0},
		{"IPv6 atomic fragment", v6(func(p *rawPacket) {
			p.ext, p.options = unix.IPPROTO_FRAGMENT, []byte{unix.IPPROTO_UDP, 0, 0, 0, 1, 2, 3, 4}
		}), true, 0},
		{"IPv6 first fragment", v6(func(p *rawPacket) {
			p.ext, p.options = unix.IPPROTO_FRAGMENT, []byte{unix.IPPROTO_UDP, 0, 0, 1, 1, 2, 3, 5}
		}), true, 0},
		{"IPv6 later fragment", v6(func(p *rawPacket) {
			p.ext, p.options = unix.IPPROTO_FRAGMENT, []byte{unix.IPPROTO_UDP, 0, 0x04, 0x00, 1, 2, 3, 6}
			p.payload = make([]byte, 200)
		}), true, 0},
		{"as large as the MTU", v4(func(p *rawPacket) { p.proto, p.payload = unix.IPPROTO_GRE, make([]byte, 1280-20-len(mark(0))) }), true, 0},
	}
}

// spoofedRows come from another address than the pod's own.
func spoofedRows(e ends) (rows []packetRow) {
	from4 := func(name, addr string) {
		rows = append(rows, packetRow{"from " + name, e.v4.with(func(p *rawPacket) { p.src = netip.MustParseAddr(addr) }), false, 0})
	}
	from6 := func(name, addr string) {
		rows = append(rows, packetRow{"from " + name, e.v6.with(func(p *rawPacket) { p.src = netip.MustParseAddr(addr) }), false, 0})
	}
	from4("another address of the tailnet", e.strange[0].String())
	from4("b's own address", e.b[0].String())
	from4("loopback", "127.0.0.1")
	from4("nowhere", "0.0.0.0")
	from4("a public address", "192.0.2.1")
	from4("multicast", "224.0.0.1")
	from4("broadcast", "255.255.255.255")
	from4("MagicDNS", "100.100.100.100")
	from6("another IPv6 address of the tailnet", e.strange[1].String())
	from6("b's own IPv6 address", e.b[1].String())
	from6("IPv6 loopback", "::1")
	from6("IPv6 nowhere", "::")
	from6("a link-local address", "fe80::1")
	from6("a public IPv6 address", "2001:db8::1")
	from6("a's IPv4 address as an IPv6 one", "::ffff:"+e.a[0].String())
	return rows
}

// strayRows go to addresses that b's node does not have.
func strayRows(e ends) (rows []packetRow) {
	to4 := func(name, addr string) {
		rows = append(rows, packetRow{"to " + name, e.v4.with(func(p *rawPacket) { p.dst = netip.MustParseAddr(addr) }), false, 0})
	}
	to6 := func(name, addr string) {
		rows = append(rows, packetRow{"to " + name, e.v6.with(func(p *rawPacket) { p.dst = netip.MustParseAddr(addr) }), false, 0})
	}
	to4("nobody", e.strange[0].String())
	to4("a itself", e.a[0].String())
	to4("the host", "172.30.70.1")
	to4("loopback", "127.0.0.1")
	to4("MagicDNS", "100.100.100.100")
	to4("multicast", "224.0.0.1")
	to4("everybody", "255.255.255.255")
	to4("a link-local address", "169.254.169.254")
	to6("nobody of IPv6", e.strange[1].String())
	to6("a itself by IPv6", e.a[1].String())
	to6("all nodes", "ff02::1")
	to6("a link-local IPv6 address", "fe80::2")
	return rows
}

// protocolRows are not UDP, or not for the pod.
func protocolRows(e ends) []packetRow {
	v4 := func(proto byte, payload ...byte) rawPacket {
		return e.v4.with(func(p *rawPacket) { p.proto, p.payload = proto, payload })
	}
	v6 := func(proto byte, payload ...byte) rawPacket {
		return e.v6.with(func(p *rawPacket) { p.proto, p.payload = proto, payload })
	}
	zeros := make([]byte, 40)
	icmp := func(kind, code byte) rawPacket { return v4(unix.IPPROTO_ICMP, append([]byte{kind, code}, zeros...)...) }
	icmp6 := func(kind, code byte) rawPacket {
		return v6(unix.IPPROTO_ICMPV6, append([]byte{kind, code}, zeros...)...)
	}
	disco := func(key []byte) rawPacket {
		return e.v4.with(func(p *rawPacket) {
			data := append(append([]byte("TS💬"), key...), bytes.Repeat([]byte{7}, 40)...)
			p.payload = udpTo(e.a[0], e.b[0], 9, data)
		})
	}
	return []packetRow{
		{"ICMP echo", icmp(8, 0), true, 0},
		{"ICMP echo reply that nobody asked for", icmp(0, 0), true, 0},
		{"ICMP port unreachable", icmp(3, 3), true, 0},
		{"ICMP fragmentation needed", icmp(3, 4), true, 0},
		{"ICMP time exceeded", icmp(11, 0), true, 0},
		{"ICMP redirect", icmp(5, 0), true, 0},
		{"ICMP timestamp", icmp(13, 0), true, 0},
		{"ICMPv6 echo", icmp6(128, 0), true, 0},
		{"ICMPv6 packet too big", icmp6(2, 0), true, 0},
		{"ICMPv6 time exceeded", icmp6(3, 0), true, 0},
		{"ICMPv6 unreachable", icmp6(1, 4), true, 0},
		{"ICMPv6 router advertisement", icmp6(134, 0), true, 0},
		{"ICMPv6 neighbour solicitation", icmp6(135, 0), true, 0},
		{"ICMPv6 over IPv4", v4(unix.IPPROTO_ICMPV6, append([]byte{128, 0}, zeros...)...), true, 0},
		{"ICMP over IPv6", v6(unix.IPPROTO_ICMP, append([]byte{8, 0}, zeros...)...), true, 0},
		{"GRE, which the policy names", v4(unix.IPPROTO_GRE, zeros...), true, 0},
		{"GRE over IPv6", v6(unix.IPPROTO_GRE, zeros...), true, 0},
		{"ESP, which it does not name", v4(unix.IPPROTO_ESP, zeros...), false, 0},
		{"ESP over IPv6", v6(unix.IPPROTO_ESP, zeros...), false, 0},
		{"SCTP", v4(unix.IPPROTO_SCTP, zeros...), false, 0},
		{"IGMP", v4(unix.IPPROTO_IGMP, zeros...), false, 0},
		{"IPv4 in IPv4", v4(unix.IPPROTO_IPIP, zeros...), false, 0},
		{"no next header", v6(unix.IPPROTO_NONE, zeros...), false, 0},
		{"TCP SYN", v4(unix.IPPROTO_TCP, tcp(0x02)...), true, 0},
		{"TCP ACK of no connection", v4(unix.IPPROTO_TCP, tcp(0x10)...), true, 0},
		{"TCP with all flags", v4(unix.IPPROTO_TCP, tcp(0xff)...), true, 0},
		{"TCP with no flags", v4(unix.IPPROTO_TCP, tcp(0)...), true, 0},
		{"TCP cut short", v4(unix.IPPROTO_TCP, 0, 1), false, 0},
		{"TSMP ping", v4(99, 'p', 0, 0, 0, 0, 0, 0, 0), false, 0},
		{"TSMP pong", v4(99, 'o', 0, 0, 0, 0, 0, 0, 0), false, 0},
		{"TSMP rejection", v4(99, '!', 6, 'A', 0, 1, 0, 2), false, 0},
		{"TSMP disco key", v4(99, append([]byte{'a'}, make([]byte, 32)...)...), false, 0},
		{"disco of another's", disco(make([]byte, 32)), true, 0},
		{"disco of a's own", disco(e.discoA), false, 0},
		{"disco of b's own", disco(e.discoB), false, 0},
	}
}

func tcp(flags byte) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, 4000)
	binary.BigEndian.PutUint16(h[2:], 80)
	h[12], h[13] = 5<<4, flags
	return h
}

// brokenRows have headers that do not fit their content.
func brokenRows(e ends) []packetRow {
	v4 := func(mangle func([]byte) []byte) rawPacket { return e.v4.with(func(p *rawPacket) { p.mangle = mangle }) }
	v6 := func(mangle func([]byte) []byte) rawPacket { return e.v6.with(func(p *rawPacket) { p.mangle = mangle }) }
	set := func(at int, to ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at:], to); return b }
	}
	return []packetRow{
		{"wrong header checksum", v4(set(10, 0xde, 0xad)), true, 0},
		{"wrong UDP checksum", v4(set(26, 0xde, 0xad)), true, 0},
		{"no UDP checksum", v4(set(26, 0, 0)), true, 0},
		{"wrong UDP length", v4(set(24, 0xff, 0xff)), true, 0},
		{"longer than its header says", v4(func(b []byte) []byte { return append(b, "trailer"...) }), true, 7},
		{"shorter than its header says", v4(set(2, 0x01, 0x00)), false, 0},
		{"with a header of 4 bytes", v4(set(0, 0x41)), true, 0},
		{"with a header of 60 bytes", v4(set(0, 0x4f)), false, 0},
		{"of version 5", v4(set(0, 0x55)), false, 0},
		{"IPv6 in an IPv4 frame", v4(set(0, 0x65)), false, 0},
		{"longer than its IPv6 header says", v6(func(b []byte) []byte { return append(b, "trailer"...) }), true, 7},
		{"shorter than its IPv6 header says", v6(set(4, 0x01, 0x00)), false, 0},
		{"IPv6 of no length", v6(set(4, 0, 0)), false, 0},
	}
}
