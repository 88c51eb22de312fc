// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Tap gets a copy of each frame that passes ts0, in both directions. It holds the pod's
// netns alive until Close, so its owner has to check whether the pod still exists, with
// [Namespace.Check].
//
// A frame that is still to be cut is up to 64 KB long, and its checksum is not
// complete. Frames are dropped when the reader is too slow, which Counts tells; traffic
// is not slowed down.
//
// Read is called from one goroutine at a time.
type Tap struct {
	file *os.File
	conn syscall.RawConn
	buf  []byte
	oob  []byte

	readOnce func(fd uintptr) bool
	wait     bool // readOnce waits for a frame
	frame    Frame
	err      error
}

// Frame is a frame that has passed ts0.
type Frame struct {
	// At is when the kernel had it. For frames of the first moments of a host's only
	// tap it is when they were read, since the kernel takes a while to begin with time
	// stamps.
	At       time.Time
	Data     []byte // from the Ethernet header on, valid until the next Read
	Length   int    // in bytes, more than in Data if that was cut
	Outgoing bool   // the pod has sent it
	Partial  bool   // the checksum is not complete
}

// ErrNoFrame is returned by Read if no frame is there and Read is not to wait.
var ErrNoFrame = errors.New("no frame")

// tapBuffer is room for the longest frame.
const tapBuffer = 1 << 17

// OpenTap opens a tap on ts0 of the namespace. Its frames have at most limit bytes
// of Data, if that is not 0.
func (n Namespace) OpenTap(limit int) (*Tap, error) {
	fd := -1
	err := n.do(func() (err error) {
		fd, err = openTapSocket()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", PodLink, err)
	}
	if limit <= 0 || limit > tapBuffer {
		limit = tapBuffer
	}
	t := &Tap{file: os.NewFile(uintptr(fd), "tap"), buf: make([]byte, limit), oob: make([]byte, 128)}
	if t.conn, err = t.file.SyscallConn(); err != nil {
		t.file.Close()
		return nil, fmt.Errorf("polling the socket on %s: %w", PodLink, err)
	}
	t.readOnce = t.tryRead
	return t, nil
}

// openTapSocket runs inside the pod's netns.
func openTapSocket() (fd int, err error) {
	link, err := net.InterfaceByName(PodLink)
	if err != nil {
		return -1, fmt.Errorf("%w: %w", ErrGone, err)
	}
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
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return -1, fmt.Errorf("setting PACKET_AUXDATA: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return -1, fmt.Errorf("setting SO_TIMESTAMPNS: %w", err)
	}
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian16(unix.ETH_P_ALL), Ifindex: link.Index}); err != nil {
		return -1, fmt.Errorf("binding: %w", err)
	}
	return fd, nil
}

// Read returns the next frame. If there is none it waits, or returns ErrNoFrame. A
// link that has ended is an error that wraps [ErrGone].
func (t *Tap) Read(wait bool) (Frame, error) {
	t.wait = wait
	var err error
	if wait {
		err = t.conn.Read(t.readOnce)
	} else { // after Stop too: earlier frames can still be read
		err = t.conn.Control(func(fd uintptr) { t.tryRead(fd) })
	}
	if err != nil {
		return Frame{}, fmt.Errorf("reading from %s: %w", PodLink, err)
	}
	switch {
	case errors.Is(t.err, ErrNoFrame):
		return Frame{}, t.err
	case errors.Is(t.err, unix.ENETDOWN), errors.Is(t.err, unix.ENODEV), errors.Is(t.err, unix.ENXIO):
		return Frame{}, fmt.Errorf("%w: reading from %s: %w", ErrGone, PodLink, t.err)
	case t.err != nil:
		return Frame{}, fmt.Errorf("reading from %s: %w", PodLink, t.err)
	}
	return t.frame, nil
}

// tryRead is readOnce. It reports whether it is done.
func (t *Tap) tryRead(fd uintptr) bool {
	for {
		n, oobn, _, from, err := unix.Recvmsg(int(fd), t.buf, t.oob, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && t.wait:
			return false
		case errors.Is(err, unix.EAGAIN):
			t.err = ErrNoFrame
			return true
		}
		t.err = err
		if err == nil {
			t.frame = Frame{Data: t.buf[:min(n, len(t.buf))], Length: n}
			link, ok := from.(*unix.SockaddrLinklayer)
			t.frame.Outgoing = ok && link.Pkttype == unix.PACKET_OUTGOING
			t.frame.readControl(t.oob[:oobn])
		}
		return true
	}
}

// readControl reads the time and the state of the checksum from a frame's control
// messages: struct timespec, and struct tpacket_auxdata (linux/if_packet.h), whose
// first member is the status.
func (f *Frame) readControl(oob []byte) {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_TIMESTAMPNS && len(data) >= 16:
			f.At = time.Unix(int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:])))
		case h.Level == unix.SOL_PACKET && h.Type == unix.PACKET_AUXDATA && len(data) >= 4:
			f.Partial = binary.NativeEndian.Uint32(data)&unix.TP_STATUS_CSUMNOTREADY != 0
		}
		oob = rest
	}
	if f.At.IsZero() {
		f.At = time.Now()
	}
}

// Counts returns how many frames the kernel has had for the tap since it was opened or
// last asked, and how many of them it has dropped.
func (t *Tap) Counts() (frames, dropped uint64, err error) {
	var s *unix.TpacketStats
	cerr := t.conn.Control(func(fd uintptr) {
		s, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err := errors.Join(cerr, err); err != nil {
		return 0, 0, fmt.Errorf("reading the drop count on %s: %w", PodLink, err)
	}
	return uint64(s.Packets), uint64(s.Drops), nil
}

// Stop ends the tap: it gets no more frames. A Read that waits, and any later one that
// would, ends with os.ErrDeadlineExceeded. Frames that have passed by then can still be
// read without waiting.
func (t *Tap) Stop() {
	none := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K} // takes 0 bytes of each frame
	_ = t.conn.Control(func(fd uintptr) {
		_ = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &none})
	})
	_ = t.file.SetReadDeadline(time.Unix(1, 0))
}

// Close closes the socket.
func (t *Tap) Close() error { return t.file.Close() }
