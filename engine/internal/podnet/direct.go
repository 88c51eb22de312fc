// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Divert has Read ask fn, with the IP packet of every frame, whether the frame goes
// directly to another pod of this host. The packet may be longer than the MTU and lack
// its checksum. fn returns that pod's device, or nil; it must not keep the packet. Divert
// is to be called before the first Read.
func (d *Device) Divert(fn func(packet []byte) *Device) { d.divert = fn }

// goesDirectly takes the frame along if it goes to another pod of this host.
func (d *Device) goesDirectly(f *inFrame) bool {
	if d.divert == nil || !f.consistent() {
		return false
	}
	to, size := d.divert(f.packet()), f.size()
	if to == nil || !d.direct.add(to, f, size) {
		return false
	}
	d.DirectOut.add(size)
	return true
}

// consistent reports whether the virtio_net_hdr says the same of the packet as the
// packet's own headers. A pod that may send raw frames can put anything into it, and
// nothing checks it again on the way to another pod.
func (f *inFrame) consistent() bool {
	h, p := &f.vnet, f.packet()
	if !h.needsCsum {
		return h.gsoType == unix.VIRTIO_NET_HDR_GSO_NONE
	}
	gso := uint8(unix.VIRTIO_NET_HDR_GSO_UDP_L4)
	offset, proto := uint16(udpCsumOffset), transportOf(p)
	if proto == unix.IPPROTO_TCP {
		offset, gso = tcpCsumOffset, unix.VIRTIO_NET_HDR_GSO_TCPV4
		if p[0]>>4 == 6 {
			gso = unix.VIRTIO_NET_HDR_GSO_TCPV6
		}
	} else if proto != unix.IPPROTO_UDP {
		return false
	}
	return int(h.csumStart) == ipHeaderLen(p) && h.csumOffset == offset &&
		(h.gsoType == unix.VIRTIO_NET_HDR_GSO_NONE || h.gsoType == gso)
}

// transportOf returns the protocol that the IP header names.
func transportOf(packet []byte) byte {
	if packet[0]>>4 == 6 {
		return packet[6]
	}
	return packet[9]
}

// Traffic counts packets of one direction, and their bytes from the IP header on.
// A frame counts as the packets that it holds.
type Traffic struct{ Packets, Bytes atomic.Uint64 }

func (t *Traffic) add(s frameSize) {
	t.Packets.Add(s.packets)
	t.Bytes.Add(s.bytes)
}

// LastDirect returns when this pod and another one of this host last handed each
// other a packet, zero if never: see Divert.
func (d *Device) LastDirect() time.Time {
	at := d.directAt.Load()
	if at == 0 {
		return time.Time{}
	}
	return time.Unix(0, at)
}

// directSender collects frames that go from one pod to another one of this host.
type directSender struct {
	from, to *Device
	sendOnce func(fd uintptr)
	iovs     [readAhead]unix.Iovec
	sizes    [readAhead]frameSize
	msgs     [readAhead]mmsghdr
	n        int
}

// add takes the frame along, as it is except for its headers. It reports false if that
// device takes none of its kind. The answer is the same for all packets of a flow, so
// that none overtakes another.
func (s *directSender) add(to *Device, f *inFrame, size frameSize) bool {
	if to.out.cut.off() || !to.out.udp && transportOf(f.packet()) == unix.IPPROTO_UDP {
		return false
	}
	if s.to != to || s.n == len(s.msgs) {
		s.flush()
	}
	h := f.vnet
	h.hdrLen = f.options.HdrLen
	h.encode(f.raw)
	ether := &to.out.ether4
	if f.packet()[0]>>4 == 6 {
		ether = &to.out.ether6
	}
	copy(f.raw[vnetHdrLen:headerLen], ether[:])
	s.to = to
	s.iovs[s.n].Base = &f.raw[0]
	s.iovs[s.n].SetLen(len(f.raw))
	s.sizes[s.n] = size
	s.msgs[s.n] = mmsghdr{}
	s.msgs[s.n].hdr.Iov = &s.iovs[s.n]
	s.msgs[s.n].hdr.SetIovlen(1)
	s.n++
	return true
}

// flush sends the collected frames. It never waits: frames that the other pod's link
// does not take at once are lost, as on any link, so that no pod can hold up another.
// It does not take that device's lock either, which a waiting Write of that device
// holds.
func (s *directSender) flush() {
	if s.n == 0 {
		return
	}
	now := time.Now().UnixNano() // once for a batch
	s.from.directAt.Store(now)
	s.to.directAt.Store(now)
	_ = s.to.conn.Control(s.sendOnce) // a closed device loses what it is sent
	clear(s.iovs[:s.n])               // otherwise they would keep a batch from the collector
	s.to, s.n = nil, 0
}

// send is sendOnce.
func (s *directSender) send(fd uintptr) {
	var a attempt
	for msgs := s.msgs[:s.n]; len(msgs) > 0; {
		n, err := sendmmsg(fd, msgs, unix.MSG_DONTWAIT)
		for i := range n {
			s.to.DirectIn.add(s.sizes[s.n-len(msgs)+i])
		}
		if errors.Is(err, unix.ENETDOWN) {
			_ = s.to.socketError(nil, err) // it checks whether the link is gone
		}
		if msgs, err = a.rest(msgs, n, err, &s.to.out.cut); err != nil {
			_ = s.to.socketError(nil, err) // that device's reader has to know if its link is gone
			return
		}
	}
}
