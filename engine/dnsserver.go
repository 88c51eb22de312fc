// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/net/dns"
	"tailscale.com/tstime"

	"tailscale-nri/engine/internal/podnet"
)

const (
	// mostQueries is how many of a pod's queries are under way at one time. Further
	// ones are dropped, and the program that asked asks again.
	mostQueries = 256
	// mostStreams is how many TCP connections a pod may have open to its node.
	mostStreams = 32
	// queryPatience is how long an original nameserver is waited for, and
	// nextPatience if there is another one to ask.
	queryPatience = 5 * time.Second
	nextPatience  = 1500 * time.Millisecond
	// streamIdle is how long a TCP connection may neither send (RFC 7766, 6.2.3) nor
	// read anything.
	streamIdle = 30 * time.Second
	// acceptPause is the pause after a socket has failed.
	acceptPause = 10 * time.Millisecond
	// longestQuery is the longest query that is answered, in bytes.
	longestQuery = 4096
)

// dnsServer answers the pod's queries at port 53 of the service addresses.
type dnsServer struct {
	node    *nodeDNS
	sockets *podnet.DNS
	manager *dns.Manager
	idle    time.Duration // streamIdle
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	queries atomic.Int32
	streams atomic.Int32
}

func serveDNS(ctx context.Context, node *nodeDNS, sockets *podnet.DNS, manager *dns.Manager) *dnsServer {
	s := &dnsServer{node: node, sockets: sockets, manager: manager, idle: streamIdle}
	s.ctx, s.cancel = context.WithCancel(ctx)
	for _, c := range sockets.UDP {
		s.wg.Go(func() { s.serveUDP(c) })
	}
	for _, l := range sockets.TCP {
		s.wg.Go(func() { s.serveTCP(l) })
	}
	return s
}

// close ends the server. Queries under way are not answered.
func (s *dnsServer) close() {
	s.cancel()
	s.sockets.Close()
	s.wg.Wait()
}

func (s *dnsServer) serveUDP(c *net.UDPConn) {
	for {
		q, from, err := readQuery(c)
		if err != nil {
			if s.ctx.Err() != nil {
				return
			}
			tstime.Sleep(s.ctx, acceptPause) // it may be out of memory
			continue
		}
		s.spawn(func(q []byte) {
			if a := s.answer(q, "udp", from); a != nil {
				_, _ = c.WriteToUDPAddrPort(a, from)
			}
		}, q)
	}
}

// readQuery waits for a datagram. Like readAnswer it has a buffer only when there is one:
// most pods ask seldom, and each has two sockets.
func readQuery(c *net.UDPConn) (q []byte, from netip.AddrPort, err error) {
	err = readReady(c, func(fd int, buf []byte) (done bool, err error) {
		n, sa, err := unix.Recvfrom(fd, buf[:longestQuery], 0)
		if err != nil {
			return false, err
		}
		q, from = bytes.Clone(buf[:n]), senderOf(sa)
		return true, nil
	})
	return q, from, err
}

func senderOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 { // of the pod: its interface's name is not known here
			addr = addr.WithZone(strconv.FormatUint(uint64(sa.ZoneId), 10))
		}
		return netip.AddrPortFrom(addr, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// spawn has a query answered, unless too many are. The query is the answer's.
func (s *dnsServer) spawn(answer func([]byte), q []byte) {
	if s.queries.Add(1) > mostQueries {
		s.queries.Add(-1)
		return
	}
	s.wg.Go(func() {
		defer s.queries.Add(-1)
		answer(q)
	})
}

func (s *dnsServer) serveTCP(l *net.TCPListener) {
	for {
		c, err := l.Accept()
		if err != nil {
			if s.ctx.Err() != nil {
				return
			}
			tstime.Sleep(s.ctx, acceptPause)
			continue
		}
		if s.streams.Add(1) > mostStreams {
			s.streams.Add(-1)
			c.Close()
			continue
		}
		s.wg.Go(func() {
			defer s.streams.Add(-1)
			s.serveStream(c)
		})
	}
}

// serveStream answers the queries of a connection, each as soon as its answer is there
// (RFC 7766, 6.2.1.1).
func (s *dnsServer) serveStream(c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(s.ctx, func() { c.Close() })()
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	var writing sync.Mutex
	for {
		_ = c.SetReadDeadline(time.Now().Add(s.idle))
		q, err := readStream(c, longestQuery)
		if err != nil {
			return
		}
		s.spawn(func(q []byte) {
			a := s.answer(q, "tcp", from)
			if a == nil {
				return
			}
			writing.Lock()
			defer writing.Unlock()
			_ = c.SetWriteDeadline(time.Now().Add(s.idle))
			if writeStream(c, a) != nil {
				c.Close() // half an answer may be out, and those that wait to be written hold the pod's queries
			}
		}, q)
	}
}

func readStream(r io.Reader, most int) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > most {
		return nil, io.ErrShortBuffer
	}
	msg := make([]byte, n)
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeStream(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

// answer returns the answer to a query, nil for none.
func (s *dnsServer) answer(q []byte, network string, from netip.AddrPort) []byte {
	name, ok := queryName(q)
	if !ok {
		return nil
	}
	if s.node.zones.Load().ofTailnet(name) {
		a, err := s.manager.Query(s.ctx, q, network, from)
		if err != nil {
			return serverFailure(q)
		}
		return a
	}
	return s.forward(q, network)
}

// forward asks the pod's original nameservers, one after the other, as the pod's
// programs would.
func (s *dnsServer) forward(q []byte, network string) (answer []byte) {
	servers := s.node.servers.Load()
	if servers == nil {
		return serverFailure(q)
	}
	for i, addr := range *servers {
		patience := queryPatience
		if i < len(*servers)-1 {
			patience = nextPatience
		}
		a, err := s.exchange(q, network, netip.AddrPortFrom(addr, 53), patience)
		if s.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			continue
		}
		if answer = a; !isRefusal(a) {
			return a
		}
	}
	if answer == nil {
		return serverFailure(q)
	}
	return answer
}

var datagrams = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// exchange asks one nameserver from within the pod.
func (s *dnsServer) exchange(q []byte, network string, to netip.AddrPort, patience time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	var c net.Conn
	var err error
	if network == "udp" {
		c, err = s.sockets.DialUDP(to)
	} else {
		c, err = s.sockets.DialTCP(ctx, to)
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if network != "udp" {
		if err := writeStream(c, q); err != nil {
			return nil, err
		}
		return readStream(c, 1<<16-1)
	}
	if _, err := c.Write(q); err != nil {
		return nil, err
	}
	return readAnswer(c, q)
}

// readAnswer waits for the answer to a query. It allocates a buffer only when data is
// there: a pod may have any number of queries wait for answers that never come.
func readAnswer(c net.Conn, q []byte) (answer []byte, err error) {
	err = readReady(c, func(fd int, buf []byte) (done bool, err error) {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return false, err
		}
		if a := buf[:n]; n >= 12 && a[0] == q[0] && a[1] == q[1] && a[2]&0x80 != 0 {
			answer = bytes.Clone(a)
		}
		return answer != nil, nil
	})
	return answer, err
}

// readReady has read read datagrams from a socket, each as soon as there is one, until it
// is done or fails. The buffer is read's during the call only.
func readReady(c net.Conn, read func(fd int, buf []byte) (done bool, err error)) error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		buf := datagrams.Get().(*[]byte)
		defer datagrams.Put(buf)
		for {
			done, err := read(int(fd), *buf)
			switch {
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				return false
			case err != nil:
				failed = err
				return true
			case done:
				return true
			}
		}
	})
	return errors.Join(err, failed)
}

// isRefusal reports whether a resolver would ask its next nameserver after this
// answer (SERVFAIL, NOTIMP, REFUSED; glibc, resolv/res_send.c).
func isRefusal(a []byte) bool {
	if len(a) < 4 {
		return true
	}
	rcode := a[3] & 0xf
	return rcode == 2 || rcode == 4 || rcode == 5
}

// serverFailure returns the answer to a query that no nameserver has answered.
func serverFailure(q []byte) []byte {
	end := 12
	for end < len(q) && q[end] != 0 {
		end += 1 + int(q[end])
	}
	if end += 5; end > len(q) { // the root label, type and class
		return nil
	}
	a := bytes.Clone(q[:end])
	a[2] |= 0x80                            // response
	a[3] = 0x80 | 2                         // recursion available, SERVFAIL
	binary.BigEndian.PutUint16(a[4:], 1)    // questions
	copy(a[6:12], []byte{0, 0, 0, 0, 0, 0}) // of all else, none
	return a
}
