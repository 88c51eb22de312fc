// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"testing"
	"unsafe"

	"github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"
)

// packetSpec describes a packet of a test.
type packetSpec struct {
	v6      bool
	udp     bool
	port    uint16 // of the sender; names the flow
	seq     uint32
	ack     uint32
	flags   uint8 // TCP; 0 means ACK
	window  uint16
	payload int
	ttl     uint8 // 0 means 64
	tos     uint8
	badCsum bool
	options int // bytes of TCP options
}

// build returns the packet with right checksums, unless asked otherwise.
func (s packetSpec) build() []byte {
	ipLen, transportLen := 20, 20+s.options
	if s.v6 {
		ipLen = 40
	}
	if s.udp {
		transportLen = 8
	}
	p := make([]byte, ipLen+transportLen+s.payload)
	for i := range p[ipLen+transportLen:] {
		p[ipLen+transportLen+i] = byte(int(s.seq) + i)
	}
	s.header(p, ipLen)
	t := p[ipLen:]
	binary.BigEndian.PutUint16(t, s.port)
	binary.BigEndian.PutUint16(t[2:], 80)
	csumAt := tcpCsumOffset
	if s.udp {
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
		csumAt = udpCsumOffset
	} else {
		binary.BigEndian.PutUint32(t[4:], s.seq)
		binary.BigEndian.PutUint32(t[8:], s.ack)
		t[12] = byte(transportLen/4) << 4
		t[13] = max(s.flags, tcpACK)
		binary.BigEndian.PutUint16(t[14:], s.window)
	}
	seg := segment{proto: p[9], v6: s.v6, transport: uint8(ipLen)}
	if s.v6 {
		seg.proto = p[6]
	}
	binary.BigEndian.PutUint16(t[csumAt:], ^tun.Checksum(t, seg.pseudo(p, len(t))))
	if s.badCsum {
		t[csumAt] ^= 0x55
	}
	return p
}

func (s packetSpec) header(p []byte, ipLen int) {
	proto, ttl := byte(unix.IPPROTO_TCP), s.ttl
	if s.udp {
		proto = unix.IPPROTO_UDP
	}
	if ttl == 0 {
		ttl = 64
	}
	if s.v6 {
		p[0], p[1], p[6], p[7] = 0x60|s.tos>>4, s.tos<<4, proto, ttl
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ipLen))
		p[23], p[39] = 1, 2
		return
	}
	p[0], p[1], p[8], p[9] = 0x45, s.tos, ttl, proto
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], []byte{100, 64, 0, 1, 100, 64, 0, 2})
	binary.BigEndian.PutUint16(p[10:], ^tun.Checksum(p[:20], 0))
}

// frames returns what the sender would put on the wire: each frame's header
// and its pieces joined.
func (s *sender) wire() (hdrs []vnetHdr, packets [][]byte) {
	for _, m := range s.messages() {
		var h vnetHdr
		var packet []byte
		for i, v := range unsafe.Slice(m.hdr.Iov, m.hdr.Iovlen) {
			piece := unsafe.Slice(v.Base, v.Len)
			switch i {
			case iovVnet:
				if err := h.decode(piece); err != nil {
					panic(err)
				}
			case iovEther:
			default:
				packet = append(packet, piece...)
			}
		}
		hdrs = append(hdrs, h)
		packets = append(packets, packet)
	}
	return hdrs, packets
}

func newTestSender() *sender {
	return newSender(net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}, true)
}

// cut cuts frames into packets again, as the pod's kernel or our own read side
// does.
func cut(t *testing.T, hdrs []vnetHdr, packets [][]byte) (out [][]byte) {
	t.Helper()
	b := newBatch()
	for i, p := range packets {
		pieces, err := b.split(hdrs[i], p)
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		for _, piece := range pieces {
			out = append(out, bytes.Clone(piece))
		}
	}
	return out
}

func TestCoalescing(t *testing.T) {
	at := func(seq uint32) packetSpec { return packetSpec{port: 1, seq: seq, ack: 9, payload: 1000} }
	with := func(s packetSpec, change func(*packetSpec)) packetSpec { change(&s); return s }
	for _, tt := range []struct {
		name    string
		packets []packetSpec
		frames  int
	}{
		{"in order", []packetSpec{at(0), at(1000), at(2000)}, 1},
		{"a hole", []packetSpec{at(0), at(2000)}, 2},
		{"out of order", []packetSpec{at(1000), at(0)}, 2},
		{"sequence numbers wrap", []packetSpec{at(1<<32 - 1000), at(0)}, 1},
		{"two flows interleaved", []packetSpec{at(0), with(at(0), func(s *packetSpec) { s.port = 2 }), at(1000), with(at(1000), func(s *packetSpec) { s.port = 2 })}, 2},
		{"short segment ends a frame", []packetSpec{at(0), with(at(1000), func(s *packetSpec) { s.payload = 10 }), at(1010)}, 2},
		{"PSH ends a frame", []packetSpec{at(0), with(at(1000), func(s *packetSpec) { s.flags = tcpACK | tcpPSH }), at(2000)}, 2},
		{"longer segment", []packetSpec{with(at(0), func(s *packetSpec) { s.payload = 500 }), at(500)}, 2},
		{"another ACK", []packetSpec{at(0), with(at(1000), func(s *packetSpec) { s.ack = 10 })}, 2},
		{"another window", []packetSpec{at(0), with(at(1000), func(s *packetSpec) { s.window = 1 })}, 2},
		{"another TTL", []packetSpec{at(0), with(at(1000), func(s *packetSpec) { s.ttl = 63 })}, 2},
		{"another TOS", []packetSpec{at(0), with(at(1000), func(s *packetSpec) { s.tos = 0x10 })}, 2},
		{"options in one", []packetSpec{at(0), with(at(1000), func(s *packetSpec) { s.options = 12 })}, 2},
		{"wrong checksum first", []packetSpec{with(at(0), func(s *packetSpec) { s.badCsum = true }), at(1000)}, 2},
		{"wrong checksum second", []packetSpec{at(0), with(at(1000), func(s *packetSpec) { s.badCsum = true })}, 2},
		{"FIN is not passed by", []packetSpec{at(0), with(at(1000), func(s *packetSpec) { s.flags = tcpACK | 1 }), at(2000)}, 3},
		{"ECE", []packetSpec{with(at(0), func(s *packetSpec) { s.flags = tcpACK | 0x40 }), at(1000)}, 2},
		{"pure ACKs", []packetSpec{with(at(0), func(s *packetSpec) { s.payload = 0 }), with(at(0), func(s *packetSpec) { s.payload = 0 })}, 2},
		{"UDP of one size", []packetSpec{{udp: true, port: 1, payload: 100}, {udp: true, port: 1, payload: 100}, {udp: true, port: 1, payload: 7}}, 1},
		{"UDP growing", []packetSpec{{udp: true, port: 1, payload: 7}, {udp: true, port: 1, payload: 100}}, 2},
		{"UDP and TCP of one port", []packetSpec{{udp: true, port: 1, payload: 100}, at(0)}, 2},
	} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/v6=%v", tt.name, v6), func(t *testing.T) {
				s := newTestSender()
				var want [][]byte
				for _, spec := range tt.packets {
					spec.v6 = v6
					want = append(want, spec.build())
					s.add(spec.build())
				}
				hdrs, packets := s.wire()
				if len(packets) != tt.frames {
					t.Errorf("%d frames, want %d", len(packets), tt.frames)
				}
				checkSamePackets(t, cut(t, hdrs, packets), want)
			})
		}
	}
}

// checkSamePackets compares packets flow by flow: flows may overtake one
// another, packets of a flow may not.
func checkSamePackets(t *testing.T, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	byFlow := func(packets [][]byte) map[string][][]byte {
		m := map[string][][]byte{}
		for _, p := range packets {
			var s segment
			s.parse(p)
			flow := fmt.Sprintf("%d/%x", s.proto, p[s.transport:s.transport+4])
			m[flow] = append(m[flow], normal(p))
		}
		return m
	}
	gotFlows := byFlow(got)
	for flow, packets := range byFlow(want) {
		for i, p := range packets {
			if i >= len(gotFlows[flow]) || !bytes.Equal(gotFlows[flow][i], p) {
				t.Errorf("flow %s: packet %d differs:\n got %x\nwant %x", flow, i, gotFlows[flow][i], p)
			}
		}
	}
}

// normal clears what cutting an IPv4 packet may change: ID and header
// checksum.
func normal(p []byte) []byte {
	p = bytes.Clone(p)
	if p[0]>>4 == 4 {
		clear(p[4:6])
		clear(p[10:12])
	}
	return p
}

func TestFrameNeverOutgrowsIP(t *testing.T) {
	s := newTestSender()
	for i := range batchSize {
		s.add(packetSpec{port: 1, seq: uint32(i * 1228), payload: 1228}.build())
	}
	_, packets := s.wire()
	for _, p := range packets {
		if len(p) > maxIPPacket || int(binary.BigEndian.Uint16(p[2:])) != len(p) {
			t.Errorf("frame of %d bytes, total length %d", len(p), binary.BigEndian.Uint16(p[2:]))
		}
	}
	if len(packets) != 3 {
		t.Errorf("%d frames for %d packets, want 3", len(packets), batchSize)
	}
}

// A sender is used again and again; a batch may be bigger than it expects.
func TestSenderIsReused(t *testing.T) {
	s := newTestSender()
	for range 3 {
		s.reset()
		for i := range batchSize + 10 {
			s.add(packetSpec{port: uint16(i), payload: 10}.build())
		}
		if _, packets := s.wire(); len(packets) != batchSize+10 {
			t.Fatalf("%d frames, want %d", len(packets), batchSize+10)
		}
	}
}

// A UDP checksum that comes out as zero must be sent as ones.
func TestUDPChecksumIsNeverZero(t *testing.T) {
	spec := packetSpec{udp: true, v6: true, port: 1, payload: 2}
	p := spec.build()
	// Choose the payload so that the sum is zero.
	sum := binary.BigEndian.Uint16(p[40+udpCsumOffset:])
	payload := binary.BigEndian.Uint16(p[48:])
	total := uint32(payload) + uint32(sum)
	binary.BigEndian.PutUint16(p[48:], uint16(total)+uint16(total>>16))
	seg := segment{proto: unix.IPPROTO_UDP, v6: true, transport: 40}
	binary.BigEndian.PutUint16(p[40+udpCsumOffset:], tun.Checksum(nil, seg.pseudo(p, 10)))

	out, err := newBatch().split(vnetHdr{needsCsum: true, csumStart: 40, csumOffset: udpCsumOffset}, p)
	if err != nil || len(out) != 1 {
		t.Fatalf("split = %x, %v", out, err)
	}
	if got := binary.BigEndian.Uint16(out[0][46:]); got != 0xffff {
		t.Errorf("checksum %#x, want 0xffff", got)
	}
}

// FuzzSplit feeds frames as a pod that forges them might send: nothing may
// come of one but packets within the MTU, or an error.
func FuzzSplit(f *testing.F) {
	tcp := packetSpec{port: 1, payload: 3000}.build()
	f.Add(append(frameHeader(unix.VIRTIO_NET_HDR_GSO_TCPV4, 1000, 20, tcpCsumOffset), tcp...))
	tcp6 := packetSpec{v6: true, port: 1, payload: 3000}.build()
	f.Add(append(frameHeader(unix.VIRTIO_NET_HDR_GSO_TCPV6, 1000, 40, tcpCsumOffset), tcp6...))
	udp := packetSpec{udp: true, port: 1, payload: 3000}.build()
	f.Add(append(frameHeader(unix.VIRTIO_NET_HDR_GSO_UDP_L4, 1, 20, udpCsumOffset), udp...))
	f.Add(append(frameHeader(0, 0, 0, 0), packetSpec{port: 1, payload: 10}.build()...))
	f.Add(append(frameHeader(unix.VIRTIO_NET_HDR_GSO_ECN, 0xffff, 0xffff, 0xffff), tcp...))
	b := newBatch()
	f.Fuzz(func(t *testing.T, frame []byte) {
		var h vnetHdr
		if len(frame) < headerLen || len(frame) > headerLen+maxIPPacket || h.decode(frame) != nil {
			return
		}
		packets, err := b.split(h, bytes.Clone(frame[headerLen:]))
		if err != nil {
			return
		}
		for i, p := range packets {
			if len(p) > MTU || len(p) < 20 {
				t.Errorf("packet %d of %d has %d bytes", i, len(packets), len(p))
			}
		}
	})
}

// frameHeader returns the headers in front of a packet as the kernel writes
// them.
func frameHeader(gsoType uint8, gsoSize, start, offset uint16) []byte {
	b := make([]byte, headerLen)
	h := vnetHdr{needsCsum: true, gsoType: gsoType, gsoSize: gsoSize, csumStart: start, csumOffset: offset}
	h.encode(b)
	return b
}

// FuzzCoalesce feeds packets as a peer might send them: whatever they hold,
// cutting the frames gives the packets back.
func FuzzCoalesce(f *testing.F) {
	f.Add(packetSpec{port: 1, payload: 100}.build(), packetSpec{port: 1, seq: 100, payload: 100}.build())
	f.Add(packetSpec{v6: true, udp: true, port: 1, payload: 100}.build(), packetSpec{v6: true, udp: true, port: 1, payload: 50}.build())
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a) < 40 || len(b) < 40 || len(a) > MTU || len(b) > MTU {
			return
		}
		s := newTestSender()
		s.add(bytes.Clone(a))
		s.add(bytes.Clone(b))
		hdrs, packets := s.wire()
		if len(packets) == 2 {
			if !bytes.Equal(packets[0], a) || !bytes.Equal(packets[1], b) {
				t.Error("a packet that was not coalesced was changed")
			}
			return
		}
		got := cut(t, hdrs, packets)
		if len(got) != 2 || !bytes.Equal(normal(got[0]), normal(a)) || !bytes.Equal(normal(got[1]), normal(b)) {
			t.Errorf("\n got %x\nwant %x\n     %x", got, a, b)
		}
	})
}
