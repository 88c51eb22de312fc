// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"
)

const (
	// readAhead is how many frames are read at a time. Sixteen small packets
	// cost little more than one: a system call, and the way through WireGuard's
	// goroutines, which is made once for all.
	readAhead = 16

	// frameRoom is the room for one frame, in bytes: virtio_net_hdr, Ethernet
	// header, and an IP packet of up to 64 KB.
	frameRoom = headerLen + maxIPPacket + 1
)

// readBatch holds frames that were read from a packet socket. Its megabyte is
// touched only as far as frames are long.
type readBatch struct {
	data []byte
	iovs [readAhead]unix.Iovec
	msgs [readAhead]mmsghdr
	n    int // frames read
	next int // the first of them that is not handed over yet
}

// readBatches are shared by all devices: one that waits for its pod holds none.
var readBatches = sync.Pool{New: func() any {
	b := &readBatch{data: make([]byte, readAhead*frameRoom)}
	for i := range b.msgs {
		b.iovs[i].Base = &b.data[i*frameRoom]
		b.iovs[i].SetLen(frameRoom)
		b.msgs[i].hdr.Iov = &b.iovs[i]
		b.msgs[i].hdr.SetIovlen(1)
	}
	return b
}}

func (b *readBatch) more() bool { return b != nil && b.next < b.n }

// frame returns the next frame, nil if it did not fit.
func (b *readBatch) frame() []byte {
	m := &b.msgs[b.next]
	if m.hdr.Flags&unix.MSG_TRUNC != 0 {
		return nil
	}
	return b.data[b.next*frameRoom:][:m.len]
}

// Read returns packets from the pod, cut to the MTU and with their checksums filled in.
// They are those of one frame, or of as many as have come meanwhile and fit. Packets
// that a function set with [Device.Divert] takes are not among them. Read returns an
// error that wraps [os.ErrClosed] after Close.
//
// Once the link is gone, Read waits for Close; [Device.Gone] tells. If a device fails,
// its engine closes itself from within, and its LocalBackend is not told. If the device
// failed before the first netmap, the backend then panics at the second (tailscale.com
// v1.104.5, wgengine/magicsock, updateRelayServersSet: the closed socket has noted that
// there is a node, and not which one).
//
// Any other error is about one frame, which the kernel could not describe and has
// dropped. A pod with CAP_NET_ADMIN can switch the offloads on again that setOffloads
// switched off.
func (d *Device) Read(slab []byte, packets []tun.ReadPacket) (int, error) {
	out := output{slab: slab, packets: packets}
	for {
		if !d.in.more() {
			if out.n > 0 && !d.mayHaveMore {
				return out.n, nil
			}
			if err := d.fill(out.n == 0); err != nil {
				return out.n, err
			}
		}
		done := d.handOver(&out)
		d.direct.flush()
		if done {
			return out.n, nil
		}
	}
}

// fill reads the next frames; with wait, at least one.
func (d *Device) fill(wait bool) error {
	for failed := 0; ; {
		err := d.receive(wait)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, os.ErrClosed):
			return err
		case errors.Is(err, ErrGone), failed == maxFailedReads:
			d.goneOnce.Do(func() { close(d.gone) })
			d.mayHaveMore = false
			if !wait {
				return nil // the next Read waits
			}
			<-d.closed
			return fmt.Errorf("packet socket on %s: %w", d.name, os.ErrClosed)
		case errors.Is(err, unix.ENETDOWN):
			continue // reported once; the next read waits
		}
		failed++
		d.Dropped.Add(1)
	}
}

// receive reads the frames that are there, up to readAhead.
func (d *Device) receive(wait bool) error {
	select {
	case <-d.gone: // the socket says so once, and then never again
		return ErrGone
	default:
	}
	d.releaseBatch()
	d.wait = wait
	cerr := d.conn.Read(d.receiveOnce)
	d.mayHaveMore = d.in != nil && d.in.n == readAhead
	if cerr == nil && errors.Is(d.receiveErr, unix.EAGAIN) {
		return nil
	}
	return d.socketError(cerr, d.receiveErr)
}

// tryReceive is receiveOnce. It reports whether it is done.
func (d *Device) tryReceive(fd uintptr) bool {
	b := readBatches.Get().(*readBatch)
	n, err := recvmmsg(fd, b.msgs[:])
	d.receiveErr = err
	if err != nil {
		readBatches.Put(b)
		return !d.wait || !errors.Is(err, unix.EAGAIN)
	}
	b.n, b.next = n, 0
	d.in = b
	return true
}

func (d *Device) releaseBatch() {
	if d.in != nil {
		readBatches.Put(d.in)
		d.in = nil
	}
}

// recvmmsg returns how many messages were read, at least one without an error.
func recvmmsg(fd uintptr, msgs []mmsghdr) (int, error) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd,
			uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// handOver turns frames into packets, until none are left or the next one does not fit.
// It reports whether the packets are to be returned now: there is no room for more, or
// some frames went another way. Such frames may keep coming for as long as the pod
// likes, and packets for WireGuard must not wait for that.
func (d *Device) handOver(out *output) (done bool) {
	diverted := false
	for ; d.in.more(); d.in.next++ {
		f, err := parseFrame(d.in.frame())
		if err == nil && d.goesDirectly(&f) {
			diverted = true
			continue
		}
		if err == nil {
			if out.n > 0 && !out.hasRoom(&f) {
				return true
			}
			err = out.split(&f)
		}
		if err != nil {
			d.Dropped.Add(1)
		}
	}
	return len(out.packets) == out.n || diverted && out.n > 0
}

// inFrame is one frame from a pod.
type inFrame struct {
	vnet    vnetHdr
	options tun.GSOOptions
	raw     []byte // virtio_net_hdr, Ethernet header, packet
}

func (f *inFrame) packet() []byte { return f.raw[headerLen:] }

// parseFrame checks a frame. Frames come from the pod, so every field is checked; a
// malformed frame is not sent.
func parseFrame(raw []byte) (f inFrame, err error) {
	if len(raw) < headerLen || !isIP(raw[vnetHdrLen:]) {
		return f, errNotIP
	}
	f.raw = raw
	if err := f.vnet.decode(raw); err != nil {
		return f, err
	}
	f.options, err = f.vnet.check(f.packet())
	return f, err
}

func isIP(frame []byte) bool {
	if len(frame) <= ethHdrLen {
		return false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		return frame[ethHdrLen]>>4 == 4
	case unix.ETH_P_IPV6:
		return frame[ethHdrLen]>>4 == 6
	}
	return false
}

// output is where a Read puts its packets.
type output struct {
	slab    []byte
	packets []tun.ReadPacket
	n       int // number of packets
	end     int // of the last one, in slab
}

// segments returns how many packets the frame will be cut into, and how many bytes
// of payload they share.
func (f *inFrame) segments() (n, payload int) {
	n, payload = 1, len(f.packet())-int(f.options.HdrLen)
	if size := int(f.options.GSOSize); f.options.GSOType != tun.GSONone && payload > size {
		n = (payload + size - 1) / size
	}
	return n, payload
}

// frameSize is the size of a frame: its packets once it is cut, and their bytes from
// the IP header on.
type frameSize struct{ packets, bytes uint64 }

func (f *inFrame) size() frameSize {
	n, payload := f.segments()
	return frameSize{uint64(n), uint64(n*int(f.options.HdrLen) + payload)}
}

// hasRoom reports whether all segments of the frame fit, with the spacing that
// wireguard-go wants around each.
func (o *output) hasRoom(f *inFrame) bool {
	segments, payload := f.segments()
	need := segments*int(f.options.HdrLen) + payload + (segments+1)*tun.ReadPacketSpacing
	return segments <= len(o.packets)-o.n && need <= len(o.slab)-o.end
}

// split adds the frame, cut into segments of their final form.
func (o *output) split(f *inFrame) error {
	packets := o.packets[o.n:]
	n, err := split(f.vnet, f.options, f.packet(), o.slab[o.end:], packets)
	for i := range packets[:n] {
		packets[i].Offset += o.end
	}
	if n > 0 {
		o.n += n
		o.end = packets[n-1].Offset + packets[n-1].Size
	}
	return err
}
