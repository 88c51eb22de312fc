// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"
)

const (
	vnetHdrLen = 10 // sizeof(struct virtio_net_hdr), linux/virtio_net.h
	ethHdrLen  = 14
	headerLen  = vnetHdrLen + ethHdrLen

	// maxIPPacket is the longest IP packet that one frame can hold.
	maxIPPacket = 1<<16 - 1
)

// vnetHdr is struct virtio_net_hdr: what is left to do to a frame. On a packet
// socket its offsets count from the Ethernet header; here, once decoded, they
// count from the IP header. Values are in bytes.
type vnetHdr struct {
	needsCsum  bool
	gsoType    uint8  // unix.VIRTIO_NET_HDR_GSO_*
	hdrLen     uint16 // of all headers; the kernel's is only a hint
	gsoSize    uint16 // payload of one segment
	csumStart  uint16 // where the transport header begins
	csumOffset uint16 // of the checksum field, from csumStart
}

// The header is in native byte order: legacy virtio (net/packet/af_packet.c,
// vio_le).
func (h *vnetHdr) decode(b []byte) error {
	h.needsCsum = b[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
	h.gsoType = b[1]
	h.hdrLen = binary.NativeEndian.Uint16(b[2:])
	h.gsoSize = binary.NativeEndian.Uint16(b[4:])
	h.csumStart = binary.NativeEndian.Uint16(b[6:])
	h.csumOffset = binary.NativeEndian.Uint16(b[8:])
	if !h.needsCsum {
		h.csumStart, h.csumOffset = 0, 0
		return nil
	}
	if h.csumStart < ethHdrLen {
		return fmt.Errorf("checksum starts at %d, in the Ethernet header", h.csumStart)
	}
	h.csumStart -= ethHdrLen
	return nil
}

func (h *vnetHdr) encode(b []byte) {
	clear(b[:vnetHdrLen])
	if !h.needsCsum {
		return
	}
	b[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
	b[1] = h.gsoType
	binary.NativeEndian.PutUint16(b[2:], h.hdrLen+ethHdrLen)
	binary.NativeEndian.PutUint16(b[4:], h.gsoSize)
	binary.NativeEndian.PutUint16(b[6:], h.csumStart+ethHdrLen)
	binary.NativeEndian.PutUint16(b[8:], h.csumOffset)
}

var gsoTypes = map[uint8]tun.GSOType{
	unix.VIRTIO_NET_HDR_GSO_NONE:   tun.GSONone,
	unix.VIRTIO_NET_HDR_GSO_TCPV4:  tun.GSOTCPv4,
	unix.VIRTIO_NET_HDR_GSO_TCPV6:  tun.GSOTCPv6,
	unix.VIRTIO_NET_HDR_GSO_UDP_L4: tun.GSOUDPL4,
}

const (
	tcpCsumOffset = 16
	udpCsumOffset = 6
)

var errNotIP = errors.New("not an IP packet")

// check checks the header against the packet, which begins with the IP header,
// and returns how it is to be cut.
func (h *vnetHdr) check(packet []byte) (tun.GSOOptions, error) {
	if len(packet) < 20 || packet[0]>>4 == 6 && len(packet) < 40 {
		return tun.GSOOptions{}, errNotIP
	}
	options, err := h.gsoOptions(packet)
	if err == nil && options.GSOType == tun.GSONone && len(packet) > MTU {
		err = fmt.Errorf("packet of %d bytes, MTU is %d", len(packet), MTU)
	}
	return options, err
}

// split cuts a checked packet into segments of their final form, which it puts into
// slab, and returns how many. An error means that some did not fit.
func split(h vnetHdr, options tun.GSOOptions, packet, slab []byte, packets []tun.ReadPacket) (int, error) {
	n, err := tun.GSOSplit(packet, options, slab, packets, tun.ReadPacketSpacing)
	if h.needsCsum && h.csumOffset == udpCsumOffset {
		for _, p := range packets[:n] {
			at := p.Offset + int(h.csumStart) + udpCsumOffset
			neverZero(slab[at : at+2])
		}
	}
	return n, err
}

// neverZero replaces a computed UDP checksum of zero, which would mean "none"
// and is forbidden in IPv6 (RFC 768, RFC 8200 8.1).
func neverZero(csum []byte) {
	if csum[0] == 0 && csum[1] == 0 {
		csum[0], csum[1] = 0xff, 0xff
	}
}

// gsoOptions translates the header, if it fits the packet. It finds the headers' length
// itself: the kernel's hdrLen is the length of the linear part of the buffer, which may
// hold payload too.
func (h *vnetHdr) gsoOptions(packet []byte) (tun.GSOOptions, error) {
	gsoType, ok := gsoTypes[h.gsoType]
	if !ok {
		return tun.GSOOptions{}, fmt.Errorf("segmentation type %#x was not offered", h.gsoType)
	}
	o := tun.GSOOptions{
		GSOType:    gsoType,
		CsumStart:  h.csumStart,
		CsumOffset: h.csumOffset,
		GSOSize:    h.gsoSize,
		NeedsCsum:  h.needsCsum,
	}
	start := int(h.csumStart)
	if h.needsCsum && (start < ipHeaderLen(packet) || start+int(h.csumOffset)+2 > len(packet)) {
		return o, fmt.Errorf("checksum at %d+%d of a packet of %d bytes", start, h.csumOffset, len(packet))
	}
	if gsoType == tun.GSONone {
		return o, nil
	}
	transport := transportHeaderLen(gsoType, packet[start:])
	end := start + transport
	switch {
	case !h.needsCsum || transport == 0 || end > len(packet):
		return o, fmt.Errorf("%v without a transport header", gsoType)
	case h.gsoSize == 0 || end+int(h.gsoSize) > MTU:
		return o, fmt.Errorf("segments of %d+%d bytes, MTU is %d", end, h.gsoSize, MTU)
	}
	o.HdrLen = uint16(end)
	return o, nil
}

func ipHeaderLen(packet []byte) int {
	if packet[0]>>4 == 6 {
		return 40
	}
	return max(20, int(packet[0]&0x0f)*4)
}

// transportHeaderLen returns the length of the TCP or UDP header that b
// begins with, 0 if it is not whole.
func transportHeaderLen(gsoType tun.GSOType, b []byte) int {
	if gsoType == tun.GSOUDPL4 {
		return 8
	}
	if len(b) < 20 {
		return 0
	}
	n := int(b[12]>>4) * 4
	if n < 20 {
		return 0
	}
	return n
}
