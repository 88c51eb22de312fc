// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"
)

// batchSize is the number of packets that cross the [Device] in one call. A
// 64 KB frame makes 54 segments at our MTU; 128 is also the batch of
// WireGuard's UDP side (conn.IdealBatchSize).
const batchSize = 128

// socketBuffer is the size in bytes asked for each direction of the socket. A full
// receive buffer drops frames; it does not push back on the pod.
const socketBuffer = 8 << 20

// maxFailedReads is how many reads in a row may fail before the socket counts
// as broken.
const maxFailedReads = 1000

// Device is the host end of a link as a packet socket: what a pod sends is read from
// it, and what is written to it reaches the pod. It is a [tun.Device] whose packets
// begin with the IP header.
//
// Read is called from one goroutine at a time, Write from any number.
type Device struct {
	name   string
	file   *os.File
	conn   syscall.RawConn
	events chan tun.Event

	// These belong to the goroutine that reads.
	receiveOnce func(fd uintptr) bool
	wait        bool // receiveOnce waits for a frame
	receiveErr  error
	in          *readBatch // nil while all is handed over
	mayHaveMore bool       // the last read has filled in
	divert      func(packet []byte) *Device
	direct      directSender

	writeMu  sync.Mutex // guards the fields below
	out      *sender
	sendOnce func(fd uintptr) bool
	sending  []mmsghdr // what sendOnce is to send
	sent     int
	sendErr  error

	down     atomic.Bool   // the link was found down, and is being checked
	gone     chan struct{} // closed when the link has ended
	goneOnce sync.Once
	closed   chan struct{} // closed by Close

	// Dropped counts frames from the pod that were malformed.
	Dropped atomic.Uint64
	// DirectIn counts what other pods of this host have handed to this one, DirectOut
	// what it has handed to them: see Divert.
	DirectIn, DirectOut Traffic
	directAt            atomic.Int64 // the last of these batches, in Unix nanoseconds

	closeOnce sync.Once
	closeErr  error
}

var _ tun.Device = (*Device)(nil)

// Open opens a packet socket on the link's host end, or takes the one that store has
// kept. Every Device on a link gets every frame, so only one may exist at a time.
func (l *Link) Open(store SocketStore) (*Device, error) {
	fd, err := l.socket(store)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket on %s: %w", l.Host, goneIfNotFound(err))
	}
	file := os.NewFile(uintptr(fd), "packet:"+l.Host)
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("polling the packet socket on %s: %w", l.Host, err)
	}
	return newDevice(l.Host, file, conn, newSender(l.podMAC, l.hostMAC, kernelAtLeast(6, 9))), nil
}

// newDevice returns a Device on a socket.
func newDevice(name string, file *os.File, conn syscall.RawConn, out *sender) *Device {
	d := &Device{
		name:   name,
		file:   file,
		conn:   conn,
		events: make(chan tun.Event, 1),
		gone:   make(chan struct{}),
		closed: make(chan struct{}),
		out:    out,
	}
	// Made once: a function value made for each system call would be an
	// allocation for each.
	d.receiveOnce, d.sendOnce, d.direct.sendOnce = d.tryReceive, d.trySend, d.direct.send
	d.direct.from = d
	d.events <- tun.EventUp
	return d
}

// openPacketSocket returns a non-blocking socket that receives all that
// arrives at the interface, and only that.
func openPacketSocket(ifindex int) (fd int, err error) {
	// Protocol 0: it hears nothing until it is bound to its interface.
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	for _, o := range []struct {
		name string
		opt  int
	}{
		{"PACKET_VNET_HDR", unix.PACKET_VNET_HDR},
		{"PACKET_IGNORE_OUTGOING", unix.PACKET_IGNORE_OUTGOING},
		{"PACKET_QDISC_BYPASS", unix.PACKET_QDISC_BYPASS}, // see isolateHostEnd
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o.opt, 1); err != nil {
			return -1, fmt.Errorf("setting the socket option %s: %w", o.name, err)
		}
	}
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian16(unix.ETH_P_ALL), Ifindex: ifindex})
	if err != nil {
		return -1, fmt.Errorf("binding: %w", err)
	}
	return fd, nil
}

// setBuffer asks for socketBuffer bytes; without CAP_NET_ADMIN in the first
// user namespace it gets what the sysctl allows.
func setBuffer(fd, force, plain int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, socketBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, socketBuffer)
	}
}

func bigEndian16(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// Write sends packets to the pod, coalesced into as few frames as their flows
// allow. It may change the packets' headers. A frame that the kernel refuses
// is lost, as on any link; the error is that of a link that is gone or closed.
func (d *Device) Write(bufs [][]byte, offset int) (int, error) {
	d.writeMu.Lock()
	defer d.writeMu.Unlock()
	d.out.reset()
	for _, b := range bufs {
		d.out.add(b[offset:])
	}
	if err := d.sendLocked(d.out.messages()); err != nil {
		return 0, err
	}
	return len(bufs), nil
}

func (d *Device) sendLocked(msgs []mmsghdr) error {
	var a attempt
	for len(msgs) > 0 {
		n, err := d.send(msgs)
		if msgs, err = a.rest(msgs, n, err, &d.out.cut); err != nil {
			return err
		}
	}
	return nil
}

// attempt is the state of sending the first of some messages.
type attempt struct{ failed bool }

// rest returns the messages that are still to be sent, after n were, or after the
// first one met an error. A frame that the kernel refuses is lost, as on any link.
func (a *attempt) rest(msgs []mmsghdr, n int, err error, cut *cutting) ([]mmsghdr, error) {
	switch {
	case err == nil:
		a.failed = false
		if cut.until.Load() != 0 && slices.ContainsFunc(msgs[:n], segmented) {
			cut.taken()
		}
		return msgs[n:], nil
	case errors.Is(err, unix.EINVAL) && !a.failed:
		// The error may belong to a frame that was read: a socket keeps an error for
		// the next call, of either kind.
		a.failed = true
		return msgs, nil
	case errors.Is(err, unix.EINVAL) && segmented(msgs[0]):
		// Some kernels refuse segmentation on this path. TCP sends the lost frame
		// again, and then it passes uncoalesced.
		cut.refused()
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.ENETDOWN):
	default:
		return nil, err
	}
	a.failed = false
	return msgs[1:], nil
}

// segmented reports whether the message is a frame that the kernel is to cut.
func segmented(m mmsghdr) bool {
	vnet := unsafe.Slice(m.hdr.Iov.Base, vnetHdrLen)
	return vnet[1] != unix.VIRTIO_NET_HDR_GSO_NONE
}

// send returns how many of the messages were sent, at least one without an
// error.
func (d *Device) send(msgs []mmsghdr) (n int, err error) {
	d.sending = msgs
	cerr := d.conn.Write(d.sendOnce)
	d.sending = nil
	return d.sent, d.socketError(cerr, d.sendErr)
}

// trySend is sendOnce. It reports whether it is done.
func (d *Device) trySend(fd uintptr) bool {
	d.sent, d.sendErr = sendmmsg(fd, d.sending, 0)
	return !errors.Is(d.sendErr, unix.EAGAIN)
}

// sendmmsg returns how many messages were sent, at least one without an error.
func sendmmsg(fd uintptr, msgs []mmsghdr, flags int) (int, error) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd,
			uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), uintptr(flags), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// socketError tells the end of the link from other errors. ENETDOWN is what a
// packet socket reports when its interface goes or is set down
// (net/packet/af_packet.c, packet_notifier); ENXIO is what it says once it is gone.
func (d *Device) socketError(closed, err error) error {
	switch {
	case closed != nil:
		return fmt.Errorf("packet socket on %s: %w", d.name, os.ErrClosed)
	case errors.Is(err, unix.ENETDOWN):
		d.wentDown()
		return fmt.Errorf("packet socket on %s: %w", d.name, err)
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		d.goneOnce.Do(func() { close(d.gone) })
		return fmt.Errorf("%w: packet socket on %s: %w", ErrGone, d.name, err)
	case err != nil:
		return fmt.Errorf("packet socket on %s: %w", d.name, err)
	}
	return nil
}

// Gone returns a channel that is closed once a Read or Write has found the link gone. A
// link that is down may come up again, and the socket goes on with it.
func (d *Device) Gone() <-chan struct{} { return d.gone }

// File returns nil: the socket's descriptor has one owner, which is the
// Device.
func (d *Device) File() *os.File { return nil }

// MTU returns the link's MTU in bytes.
func (d *Device) MTU() (int, error) { return MTU, nil }

// Name returns the name of the host end.
func (d *Device) Name() (string, error) { return d.name, nil }

// Events returns a channel with the one event "up". It is closed by Close.
func (d *Device) Events() <-chan tun.Event { return d.events }

// BatchSize returns the number of packets that one Read may return.
func (d *Device) BatchSize() int { return batchSize }

// Close closes the socket and ends a Read that waits. The link stays.
func (d *Device) Close() error {
	d.closeOnce.Do(func() {
		d.closeErr = d.file.Close()
		close(d.closed)
		close(d.events)
	})
	return d.closeErr
}

var _ io.Closer = (*Device)(nil)

// ethernetHeaders returns the headers of a frame for IPv4 and for IPv6.
func ethernetHeaders(dst, src net.HardwareAddr) (v4, v6 [ethHdrLen]byte) {
	for _, h := range []*[ethHdrLen]byte{&v4, &v6} {
		copy(h[:6], dst)
		copy(h[6:12], src)
	}
	binary.BigEndian.PutUint16(v4[12:], unix.ETH_P_IP)
	binary.BigEndian.PutUint16(v6[12:], unix.ETH_P_IPV6)
	return v4, v6
}
