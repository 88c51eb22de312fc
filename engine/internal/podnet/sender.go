// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxFlows is the number of flows that a sender keeps open at a time, as the
// kernel's own GRO does per bucket (MAX_GRO_SKBS, net/core/gro.c).
const maxFlows = 8

// mmsghdr is struct mmsghdr of sendmmsg(2), which golang.org/x/sys/unix does
// not have.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [unsafe.Sizeof(uintptr(0)) - 4]byte
}

// sender arranges packets into frames, coalescing consecutive segments of a flow into
// one, without copying: a frame is a list of pieces of its packets. A sender is reused
// from one Write to the next.
type sender struct {
	ether4, ether6 [ethHdrLen]byte

	cut cutting // whether the kernel takes frames that it is to cut
	udp bool    // coalesce UDP too

	frames []frame // in order of sending; cap(frames) is fixed
	open   []int   // indices of the frames that can grow, one a flow
	msgs   []mmsghdr
}

// frame is one message to the packet socket.
type frame struct {
	vnet [vnetHdrLen]byte
	iov  []unix.Iovec // virtio_net_hdr, Ethernet header, head, payloads…
	head []byte       // first packet
	seg  segment      // of the first packet
	next uint32       // TCP: sequence number that continues the frame
	size int          // bytes of IP packet
	good bool         // head's checksum was verified
}

// Positions in frame.iov.
const (
	iovVnet = iota
	iovEther
	iovHead
	iovPayload
)

// newSender returns a sender of frames from src to dst. UDP is coalesced from
// Linux 6.9 on: before 6.2 the kernel does not take such frames, and before
// 6.8.5 it loses those that the pod sends on through a tunnel.
func newSender(dst, src net.HardwareAddr, udp bool) *sender {
	s := &sender{
		udp:    udp,
		frames: make([]frame, 0, batchSize),
		open:   make([]int, 0, maxFlows),
		msgs:   make([]mmsghdr, 0, batchSize),
	}
	s.ether4, s.ether6 = ethernetHeaders(dst, src)
	return s
}

func (s *sender) reset() {
	s.frames = s.frames[:0]
	s.open = s.open[:0]
}

// add takes one packet. Within a flow, packets keep their order.
func (s *sender) add(packet []byte) {
	if len(packet) == 0 {
		return
	}
	var seg segment
	grows := !s.cut.off() && seg.parse(packet) && (seg.proto == unix.IPPROTO_TCP || s.udp)
	for i, at := range s.open {
		f := &s.frames[at]
		if !seg.hasFlow || !f.seg.sameFlow(&seg, f.head, packet) {
			continue
		}
		if grows && f.accepts(&seg, packet) {
			f.append(&seg, packet)
			if seg.ends(&f.seg) {
				s.close(i)
			}
			return
		}
		// What follows must not overtake this packet.
		s.close(i)
		break
	}
	s.start(packet, seg, grows && !seg.push)
}

// start begins a frame with the packet, and keeps it open for more of its
// flow.
func (s *sender) start(packet []byte, seg segment, grows bool) {
	n := len(s.frames)
	if n == cap(s.frames) {
		s.frames = append(s.frames, frame{})
	} else {
		s.frames = s.frames[:n+1]
	}
	f := &s.frames[n]
	f.head, f.seg, f.size, f.good = packet, seg, len(packet), false
	f.next = seg.seq + uint32(seg.payload)
	f.iov = f.iov[:0]
	f.piece(f.vnet[:])
	if packet[0]>>4 == 6 {
		f.piece(s.ether6[:])
	} else {
		f.piece(s.ether4[:])
	}
	f.piece(packet)
	if !grows {
		return
	}
	if len(s.open) == maxFlows {
		s.close(0)
	}
	s.open = append(s.open, n)
}

// close lets the i-th open frame grow no more.
func (s *sender) close(i int) {
	s.open = append(s.open[:i], s.open[i+1:]...)
}

// messages returns the frames as sendmmsg(2) takes them. They are valid until
// the next reset.
func (s *sender) messages() []mmsghdr {
	s.msgs = s.msgs[:0]
	for i := range s.frames {
		f := &s.frames[i]
		f.finish()
		// The frame may have moved since its first piece was laid down.
		f.iov[iovVnet].Base = &f.vnet[0]
		var m mmsghdr
		m.hdr.Iov = &f.iov[0]
		m.hdr.SetIovlen(len(f.iov))
		s.msgs = append(s.msgs, m)
	}
	return s.msgs
}

func (f *frame) piece(b []byte) {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	f.iov = append(f.iov, v)
}

// append adds the packet's payload to the frame.
func (f *frame) append(seg *segment, packet []byte) {
	f.piece(packet[seg.headers():])
	f.size += seg.payload
	f.next += uint32(seg.payload)
	if seg.push {
		f.head[int(f.seg.transport)+tcpFlagsAt] |= tcpPSH
	}
}

// finish writes the frame's headers: those of one segment-to-be-cut packet if it was
// coalesced, otherwise just "nothing left to do".
func (f *frame) finish() {
	var h vnetHdr
	if len(f.iov) > iovPayload {
		h = f.seg.merged(f.head, f.size)
	}
	h.encode(f.vnet[:])
}
