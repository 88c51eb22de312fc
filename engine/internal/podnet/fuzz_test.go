// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// pipedDevice returns a Device that reads the frames written to the other end of
// a socket pair, as it reads those of a packet socket.
func pipedDevice(f testing.TB) (d *Device, write func([]byte) error) {
	f.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	for _, fd := range fds {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20); err != nil {
			f.Fatal(err)
		}
	}
	file := os.NewFile(uintptr(fds[0]), "frames")
	conn, err := file.SyscallConn()
	if err != nil {
		f.Fatal(err)
	}
	d = newDevice("frames", file, conn, newTestSender())
	f.Cleanup(func() { file.Close(); unix.Close(fds[1]) })
	return d, func(frame []byte) error {
		_, err := unix.Write(fds[1], frame)
		return err
	}
}

// ethernetFrame returns a frame as the packet socket delivers it.
func ethernetFrame(etherType uint16, h vnetHdr, packet []byte) []byte {
	b := make([]byte, headerLen)
	h.encode(b)
	binary.BigEndian.PutUint16(b[vnetHdrLen+12:], etherType)
	return append(b, packet...)
}

// FuzzRead feeds whole frames, headers and all, as a pod that forges them might
// send: a frame gives IP packets within the MTU or is dropped, and the next one
// is read as if nothing had been.
func FuzzRead(f *testing.F) {
	tcp := packetSpec{port: 1, payload: 3000}.build()
	tcp6 := packetSpec{v6: true, port: 1, payload: 3000}.build()
	udp := packetSpec{udp: true, port: 1, payload: 3000}.build()
	small := packetSpec{port: 1, payload: 10}.build()
	gso := func(kind uint8, size, start, offset uint16) vnetHdr {
		return vnetHdr{needsCsum: true, gsoType: kind, gsoSize: size, csumStart: start, csumOffset: offset}
	}
	for _, frame := range [][]byte{
		ethernetFrame(unix.ETH_P_IP, vnetHdr{}, small),
		ethernetFrame(unix.ETH_P_IP, gso(unix.VIRTIO_NET_HDR_GSO_TCPV4, 1000, 20, tcpCsumOffset), tcp),
		ethernetFrame(unix.ETH_P_IPV6, gso(unix.VIRTIO_NET_HDR_GSO_TCPV6, 1000, 40, tcpCsumOffset), tcp6),
		ethernetFrame(unix.ETH_P_IP, gso(unix.VIRTIO_NET_HDR_GSO_UDP_L4, 1000, 20, udpCsumOffset), udp),
		// More segments than a batch holds, segments of nothing, headers beyond
		// the end, types that do not fit.
		ethernetFrame(unix.ETH_P_IP, gso(unix.VIRTIO_NET_HDR_GSO_UDP_L4, 1, 20, udpCsumOffset), udp),
		ethernetFrame(unix.ETH_P_IP, gso(unix.VIRTIO_NET_HDR_GSO_TCPV4, 0, 20, tcpCsumOffset), tcp),
		ethernetFrame(unix.ETH_P_IP, gso(unix.VIRTIO_NET_HDR_GSO_TCPV4, 0xffff, 0xfff0, 0xffff), tcp),
		ethernetFrame(unix.ETH_P_IP, gso(unix.VIRTIO_NET_HDR_GSO_TCPV6, 1000, 20, tcpCsumOffset), tcp),
		ethernetFrame(unix.ETH_P_IPV6, vnetHdr{}, small),
		ethernetFrame(unix.ETH_P_ARP, vnetHdr{}, small),
		ethernetFrame(unix.ETH_P_8021Q, vnetHdr{}, small),
		ethernetFrame(unix.ETH_P_IP, vnetHdr{}, nil),
		ethernetFrame(unix.ETH_P_IP, vnetHdr{}, []byte{0x4f}),
		ethernetFrame(unix.ETH_P_IPV6, gso(0, 0, 40, 6), tcp6[:41]),
		make([]byte, headerLen), {1}, bytes.Repeat([]byte{0xff}, 3000),
	} {
		f.Add(frame)
	}
	d, write := pipedDevice(f)
	mark := packetSpec{udp: true, port: 9, payload: 21}.build()
	last := ethernetFrame(unix.ETH_P_IP, vnetHdr{}, mark)
	b := newBatch()
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) == 0 || len(frame) > headerLen+maxIPPacket {
			return
		}
		if err := write(frame); err != nil {
			t.Fatal(err)
		}
		if err := write(last); err != nil {
			t.Fatal(err)
		}
		// Both frames have come, so what was made of them comes in one Read, or in
		// two where the first one's packets fill it.
		for range 2 {
			packets, err := b.read(d)
			if err != nil {
				t.Fatal(err)
			}
			for i, p := range packets {
				if len(p) > MTU || len(p) < 20 || p[0]>>4 != 4 && p[0]>>4 != 6 {
					t.Errorf("packet %d of %d: %d bytes, begins with %x", i, len(packets), len(p), p[:min(len(p), 1)])
				}
			}
			if bytes.Equal(packets[len(packets)-1], mark) {
				return
			}
		}
		t.Error("the frame after it did not come through")
	})
}
