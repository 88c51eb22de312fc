// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/k3d/lab/control"
)

// rawPacket is an IP packet as a pod with CAP_NET_RAW may make it. Its zero value,
// with addresses, is a UDP packet.
type rawPacket struct {
	src, dst netip.Addr
	proto    byte
	ttl      byte
	tos      byte
	frag     uint16 // IPv4: flags and fragment offset
	options  []byte // IPv4: options; IPv6: extension headers, the first of kind ext
	ext      byte
	payload  []byte // before the mark; nil is a UDP header

	mangle func([]byte) []byte // of the whole packet, last
}

// bytes returns the packet, with mark at the end of its payload.
func (p rawPacket) bytes(mark string) []byte {
	if p.proto == 0 {
		p.proto = unix.IPPROTO_UDP
	}
	if p.ttl == 0 {
		p.ttl = 64
	}
	body := append(bytes.Clone(p.payload), mark...)
	if p.payload == nil {
		body = udpTo(p.src, p.dst, 9, []byte(mark))
	}
	var out []byte
	if p.dst.Is4() {
		out = p.header4(len(body))
	} else {
		out = p.header6(len(body))
	}
	out = append(out, body...)
	if p.mangle != nil {
		out = p.mangle(out)
	}
	return out
}

func (p rawPacket) header4(body int) []byte {
	length := 20 + len(p.options)
	h := []byte{0x40 | byte(length/4), p.tos}
	h = binary.BigEndian.AppendUint16(h, uint16(length+body))
	h = append(h, 0x12, 0x34)
	h = binary.BigEndian.AppendUint16(h, p.frag)
	h = append(h, p.ttl, p.proto, 0, 0)
	h = append(h, as4(p.src)...)
	h = append(h, as4(p.dst)...)
	h = append(h, p.options...)
	binary.BigEndian.PutUint16(h[10:], ^sum(0, h))
	return h
}

// as4 is the address, or zeros for one of another family.
func as4(a netip.Addr) []byte {
	if !a.Is4() {
		return make([]byte, 4)
	}
	return a.AsSlice()
}

func (p rawPacket) header6(body int) []byte {
	next := p.proto
	if len(p.options) > 0 {
		next = p.ext
	}
	h := []byte{0x60 | p.tos>>4, p.tos << 4, 0xab, 0xcd}
	h = binary.BigEndian.AppendUint16(h, uint16(len(p.options)+body))
	h = append(h, next, p.ttl)
	src, dst := p.src.As16(), p.dst.As16()
	h = append(append(h, src[:]...), dst[:]...)
	return append(h, p.options...)
}

// sum is the Internet checksum of b, not yet inverted.
func sum(start uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		start += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		start += uint32(b[0]) << 8
	}
	for start > 0xffff {
		start = start>>16 + start&0xffff
	}
	return uint16(start)
}

// pseudo is the sum of the pseudo header.
func pseudo(src, dst netip.Addr, proto, length int) uint32 {
	return uint32(sum(uint32(proto+length), append(src.AsSlice(), dst.AsSlice()...)))
}

func udpTo(src, dst netip.Addr, port uint16, data []byte) []byte {
	u := binary.BigEndian.AppendUint16(nil, 4000)
	u = binary.BigEndian.AppendUint16(u, port)
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(data)))
	u = append(append(u, 0, 0), data...)
	binary.BigEndian.PutUint16(u[6:], ^sum(pseudo(src, dst, unix.IPPROTO_UDP, len(u)), u))
	return u
}

// tap is a packet socket on a pod's ts0.
type tap struct {
	fd    int
	index int

	mu   sync.Mutex
	came [][]byte
}

func newTap(t *testing.T, p *nstest.Pod) *tap {
	t.Helper()
	link, err := p.Netlink().LinkByName(podnet.PodLink)
	if err != nil {
		t.Fatal(err)
	}
	tp := &tap{index: link.Attrs().Index}
	p.Do(func() (err error) {
		tp.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		tick := unix.Timeval{Usec: 50_000}
		return errors.Join(
			unix.SetsockoptInt(tp.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.SetsockoptTimeval(tp.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tick),
			unix.Bind(tp.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: tp.index}),
		)
	})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go tp.listen(stop, stopped)
	t.Cleanup(func() { close(stop); <-stopped; unix.Close(tp.fd) })
	return tp
}

func (tp *tap) listen(stop, stopped chan struct{}) {
	defer close(stopped)
	for buf := make([]byte, 1<<16); ; {
		select {
		case <-stop:
			return
		default:
		}
		n, err := unix.Read(tp.fd, buf)
		if err != nil {
			continue // nothing came for a while
		}
		tp.mu.Lock()
		tp.came = append(tp.came, bytes.Clone(buf[:n]))
		tp.mu.Unlock()
	}
}

// send puts a packet on the wire as it is.
func (tp *tap) send(b []byte, ethertype uint16) error {
	to := &unix.SockaddrLinklayer{Protocol: htons(ethertype), Ifindex: tp.index, Halen: 6, Addr: [8]byte{2, 0, 0, 0, 0, 1}}
	return unix.Sendto(tp.fd, b, 0, to)
}

// find returns the packets that came with the mark.
func (tp *tap) find(mark string) (out [][]byte) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	for _, b := range tp.came {
		if bytes.Contains(b, []byte(mark)) {
			out = append(out, b)
		}
	}
	return out
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// ends are the addresses of a lane.
type ends struct {
	a, b           [2]netip.Addr // IPv4, IPv6
	strange        [2]netip.Addr // of the tailnet, nobody's
	v4, v6         rawPacket     // the plain ones
	discoA, discoB []byte
}

func (l *lane) ends() ends {
	e := ends{
		a:       [2]netip.Addr{l.addr(l.a, 4), l.addr(l.a, 6)},
		b:       [2]netip.Addr{l.addr(l.b, 4), l.addr(l.b, 6)},
		strange: [2]netip.Addr{moved, netip.MustParseAddr("fd7a:115c:a1e0::7777")},
	}
	e.v4, e.v6 = rawPacket{src: e.a[0], dst: e.b[0]}, rawPacket{src: e.a[1], dst: e.b[1]}
	e.discoA, e.discoB = l.device(l.a).DiscoKey.AppendTo(nil), l.device(l.b).DiscoKey.AppendTo(nil)
	return e
}

// TestLocalPackets sends packets from a to b that no socket of a's kernel would send,
// with all allowed except protocols that a policy has to name. A packet arrives as it
// was sent, or not at all.
func TestLocalPackets(t *testing.T) {
	lanes := newLanes(t, "raw")
	eachLane(lanes, func(l *lane) {
		l.policy(control.AllowAll, rule("*", "*", by(unix.IPPROTO_GRE)))
		e := l.ends()
		tapA, tapB := newTap(t, l.a.Pod), newTap(t, l.b.Pod)
		rows := packetRows(e)
		sent := make([][]byte, len(rows))
		locally := l.deliveredLocally(l.a)
		for i, row := range rows {
			sent[i] = row.packet.bytes(mark(i))
			ethertype := uint16(unix.ETH_P_IP)
			if row.packet.dst.Is6() {
				ethertype = unix.ETH_P_IPV6
			}
			if err := tapA.send(sent[i], ethertype); err != nil {
				t.Errorf("%s: sending: %v", row.name, err)
			}
		}
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			missing := 0
			for i, row := range rows {
				if row.arrives && len(tapB.find(mark(i))) == 0 {
					missing++
				}
			}
			if missing == 0 {
				break
			}
		}
		time.Sleep(silence) // for what should not come
		if n := l.deliveredLocally(l.a); (n > locally) != l.local {
			t.Errorf("%s: %d packets were delivered locally", l.way, n-locally)
		}
		for i, row := range rows {
			got := tapB.find(mark(i))
			switch {
			case len(got) > 0 != row.arrives:
				t.Errorf("%s: %s: arrives: %v, want %v", l.way, row.name, len(got) > 0, row.arrives)
			case len(got) > 1:
				t.Errorf("%s: %s: arrives %d times", l.way, row.name, len(got))
			case len(got) == 1 && !bytes.Equal(got[0], row.as(sent[i])):
				t.Errorf("%s: %s: arrives as\n%x, was sent as\n%x", l.way, row.name, got[0], sent[i])
			}
		}
	})
}

func mark(i int) string { return fmt.Sprintf("<mark %04d>", i) }
