// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"encoding/binary"

	"github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"
)

const (
	tcpFlagsAt = 13
	tcpACK     = 0x10
	tcpPSH     = 0x08

	// maxUDPSegments is how many datagrams one frame may hold
	// (UDP_MAX_SEGMENTS before Linux 6.9, linux/udp.h).
	maxUDPSegments = 64
)

// segment describes a TCP or UDP packet for coalescing. Lengths and positions are in
// bytes from the IP header.
type segment struct {
	hasFlow   bool // addresses and ports are known
	proto     uint8
	v6        bool
	push      bool   // TCP: PSH is set
	transport uint8  // where the TCP or UDP header begins
	hdrLen    uint8  // its length
	payload   int    // bytes after it
	seq       uint32 // TCP: sequence number
}

func (s *segment) headers() int { return int(s.transport) + int(s.hdrLen) }

// parse reads the packet and reports whether it could be part of a coalesced frame: a
// whole TCP or UDP packet with payload, without IP options, and with no TCP flags but ACK
// and PSH.
func (s *segment) parse(p []byte) bool {
	if len(p) < 20 || !s.parseIP(p) {
		return false
	}
	t := p[s.transport:]
	switch {
	case s.proto == unix.IPPROTO_TCP && len(t) >= 20:
		s.hasFlow = true
		s.hdrLen = (t[12] >> 4) * 4
		s.seq = binary.BigEndian.Uint32(t[4:])
		flags := t[tcpFlagsAt]
		s.push = flags&tcpPSH != 0
		s.payload = len(t) - int(s.hdrLen)
		return s.hdrLen >= 20 && s.payload > 0 && flags&^tcpPSH == tcpACK
	case s.proto == unix.IPPROTO_UDP && len(t) >= 8:
		s.hasFlow = true
		s.hdrLen = 8
		s.payload = len(t) - 8
		hasCsum := t[6]|t[7] != 0
		return s.payload > 0 && hasCsum && int(binary.BigEndian.Uint16(t[4:])) == len(t)
	}
	return false
}

// parseIP reports whether p is a whole IP packet without options or fragments.
func (s *segment) parseIP(p []byte) bool {
	switch p[0] >> 4 {
	case 4:
		s.proto, s.transport = p[9], 20
		fragment := binary.BigEndian.Uint16(p[6:])&0x3fff != 0 // MF and offset
		return p[0] == 0x45 && int(binary.BigEndian.Uint16(p[2:])) == len(p) && !fragment
	case 6:
		if len(p) < 40 {
			return false
		}
		s.v6, s.proto, s.transport = true, p[6], 40
		return int(binary.BigEndian.Uint16(p[4:])) == len(p)-40
	}
	return false
}

// sameFlow reports whether packet b, described by o, has the addresses and
// ports of packet a, described by s.
func (s *segment) sameFlow(o *segment, a, b []byte) bool {
	if s.proto != o.proto || s.v6 != o.v6 {
		return false
	}
	from := 12
	if s.v6 {
		from = 8
	}
	end := int(s.transport) + 4 // both ports
	return bytes.Equal(a[from:end], b[from:end])
}

// accepts reports whether the packet continues the frame, as the kernel's GRO would
// decide (net/ipv4/tcp_offload.c, tcp_gro_receive; udp_offload.c). Both checksums must
// be right, since nothing checks them again.
func (f *frame) accepts(s *segment, p []byte) bool {
	h := &f.seg
	if s.hdrLen != h.hdrLen || s.payload > h.payload || f.size+s.payload > maxIPPacket ||
		len(f.iov) >= iovPayload+batchSize || !sameIPHeader(f.head, p) {
		return false
	}
	if s.proto == unix.IPPROTO_UDP {
		if len(f.iov)-iovHead >= maxUDPSegments {
			return false
		}
	} else if s.seq != f.next || !sameTCPHeader(f.head[h.transport:h.headers()], p[s.transport:s.headers()]) {
		return false
	}
	if !f.good && !h.checksumOK(f.head) {
		return false
	}
	f.good = true
	return s.checksumOK(p)
}

// ends reports whether a frame that begins with head takes nothing after s:
// PSH marks an end, and only the last segment may be short.
func (s *segment) ends(head *segment) bool {
	return s.push || s.payload < head.payload
}

// sameIPHeader compares the fields that a frame has only once: traffic class and flow
// label, or TOS and DF, and the hop limit. The addresses were compared already.
func sameIPHeader(a, b []byte) bool {
	if a[0]>>4 == 6 {
		return bytes.Equal(a[:4], b[:4]) && a[7] == b[7]
	}
	return a[1] == b[1] && a[6] == b[6] && a[8] == b[8]
}

// sameTCPHeader compares all but ports, sequence number, PSH and checksum.
func sameTCPHeader(a, b []byte) bool {
	return bytes.Equal(a[8:13], b[8:13]) && // acknowledgement, data offset
		a[13]&^tcpPSH == b[13]&^tcpPSH &&
		bytes.Equal(a[14:16], b[14:16]) && // window
		bytes.Equal(a[18:], b[18:]) // urgent pointer, options
}

// pseudo returns the sum of the pseudo-header for a transport header and
// payload of n bytes.
func (s *segment) pseudo(p []byte, n int) uint16 {
	src, length := 12, 4
	if s.v6 {
		src, length = 8, 16
	}
	return tun.PseudoHeaderChecksum(s.proto, p[src:src+length], p[src+length:src+2*length], uint16(n))
}

func (s *segment) checksumOK(p []byte) bool {
	t := p[s.transport:]
	return ^tun.Checksum(t, s.pseudo(p, len(t))) == 0
}

// merged turns the head of a coalesced frame of size bytes into its header,
// and returns what is left to do to it.
func (s *segment) merged(head []byte, size int) vnetHdr {
	t := head[s.transport:]
	h := vnetHdr{
		needsCsum:  true,
		hdrLen:     uint16(s.headers()),
		gsoSize:    uint16(s.payload),
		csumStart:  uint16(s.transport),
		csumOffset: tcpCsumOffset,
		gsoType:    unix.VIRTIO_NET_HDR_GSO_TCPV4,
	}
	if s.v6 {
		h.gsoType = unix.VIRTIO_NET_HDR_GSO_TCPV6
		binary.BigEndian.PutUint16(head[4:], uint16(size-40))
	} else {
		binary.BigEndian.PutUint16(head[2:], uint16(size))
		head[10], head[11] = 0, 0
		binary.BigEndian.PutUint16(head[10:], ^tun.Checksum(head[:20], 0))
	}
	if s.proto == unix.IPPROTO_UDP {
		h.gsoType = unix.VIRTIO_NET_HDR_GSO_UDP_L4
		h.csumOffset = udpCsumOffset
		binary.BigEndian.PutUint16(t[4:], uint16(size-int(s.transport)))
	}
	partial := tun.Checksum(nil, s.pseudo(head, size-int(s.transport)))
	binary.BigEndian.PutUint16(t[h.csumOffset:], partial)
	return h
}
