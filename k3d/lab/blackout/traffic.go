// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"tailscale-nri/k3d/lab/internal/nsthread"
	"tailscale-nri/k3d/lab/internal/wait"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// place is where sockets are opened.
type place struct {
	name string
	ns   *os.File // its network namespace
	addr netip.Addr
}

// traffic is what goes between a peer and nodes.
type traffic struct {
	links []*link
	every time.Duration // between two packets of one flow
	begin time.Time     // of its clock

	sending, receiving sync.WaitGroup
	stop               chan struct{} // closed when it is to end
}

// link is the traffic of one node.
type link struct {
	t    *traffic
	name string

	udpNode, udpPeer *net.UDPConn
	tcpNode, tcpPeer *net.TCPConn

	in, out        arrivals // datagrams to the node, and from it
	tcpIn, tcpOut  arrivals // the connection's two directions
	mu             sync.Mutex
	broken         error // of the connection
	toNode, toPeer netip.AddrPort
}

// openTraffic connects the peer with each node and lets packets flow until close. It gives up with ctx.
func openTraffic(ctx context.Context, peer place, nodes []place, every time.Duration) (*traffic, error) {
	t := &traffic{every: every, begin: time.Now(), stop: make(chan struct{})}
	var opening errgroup.Group
	for _, n := range nodes {
		l := &link{t: t, name: n.name}
		t.links = append(t.links, l)
		opening.Go(func() error { return l.open(ctx, peer, n) })
	}
	if err := opening.Wait(); err != nil {
		t.close()
		return nil, err
	}
	for i, l := range t.links {
		l.receive()
		// Apart from each other, so that the machine's work is as even as that of so many programs.
		phase := every * time.Duration(i) / time.Duration(len(t.links))
		t.sending.Go(func() { l.send(phase) })
	}
	return t, nil
}

// open makes the sockets. Both UDP sockets are unconnected, and so hear nothing of ICMP errors.
func (l *link) open(ctx context.Context, peer, n place) error {
	var listener *net.TCPListener
	err := nsthread.InNetNS(n.ns, func() (err error) {
		if l.udpNode, err = net.ListenUDP("udp4", udpAddr(n.addr)); err != nil {
			return err
		}
		listener, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(n.addr, 0)))
		return err
	})
	if err != nil {
		return fmt.Errorf("opening sockets in %s: %w", n.name, err)
	}
	defer listener.Close()
	err = nsthread.InNetNS(peer.ns, func() (err error) {
		if l.udpPeer, err = net.ListenUDP("udp4", udpAddr(peer.addr)); err != nil {
			return err
		}
		l.tcpPeer, err = dial(ctx, listener.Addr().String())
		return err
	})
	if err != nil {
		return fmt.Errorf("connecting the peer with %s: %w", n.name, err)
	}
	l.toNode, l.toPeer = addrOf(l.udpNode), addrOf(l.udpPeer)
	if err := listener.SetDeadline(time.Now().Add(dialPatience)); err != nil {
		return err
	}
	if l.tcpNode, err = listener.AcceptTCP(); err != nil {
		return fmt.Errorf("accepting the peer's connection in %s: %w", n.name, err)
	}
	return nil
}

// dialPatience is how long one attempt to connect may take: two handshakes of WireGuard that cross are 5 s.
const dialPatience = 20 * time.Second

// dial tries until ctx is done.
func dial(ctx context.Context, addr string) (*net.TCPConn, error) {
	var conn net.Conn
	err := wait.Until(ctx, pollInterval, func(ctx context.Context) (err error) {
		conn, err = (&net.Dialer{Timeout: dialPatience}).DialContext(ctx, "tcp4", addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func udpAddr(addr netip.Addr) *net.UDPAddr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))
}

func addrOf(conn *net.UDPConn) netip.AddrPort { return conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// now on the traffic's clock.
func (t *traffic) now() time.Duration { return time.Since(t.begin) }

// send lets one packet of each flow go at each tick. One that cannot be sent is lost, as any other.
func (l *link) send(phase time.Duration) {
	payload := make([]byte, 16)
	timer := time.NewTimer(phase)
	defer timer.Stop()
	for next := l.t.now() + phase; ; {
		select {
		case <-l.t.stop:
			return
		case <-timer.C:
		}
		_, _ = l.udpPeer.WriteToUDPAddrPort(payload, l.toNode)
		_, _ = l.udpNode.WriteToUDPAddrPort(payload, l.toPeer)
		l.push(l.tcpPeer, payload)
		l.push(l.tcpNode, payload)
		// By the clock; ticks that were missed are not made up for.
		for now := l.t.now(); next <= now; {
			next += l.t.every
		}
		timer.Reset(next - l.t.now())
	}
}

// push writes without ever waiting: a buffer that is full stays as it is.
func (l *link) push(conn *net.TCPConn, payload []byte) {
	raw, err := conn.SyscallConn()
	if err == nil {
		writeErr := raw.Write(func(fd uintptr) bool {
			if _, err = unix.SendmsgN(int(fd), payload, nil, nil, unix.MSG_NOSIGNAL); errors.Is(err, unix.EAGAIN) {
				err = nil
			}
			return true
		})
		err = errors.Join(err, writeErr)
	}
	if err != nil {
		l.breaks(fmt.Errorf("writing: %w", err))
	}
}

func (l *link) receive() {
	for _, r := range []struct {
		conn net.Conn
		came *arrivals
		fail func(error)
	}{
		{l.udpNode, &l.in, nil}, {l.udpPeer, &l.out, nil},
		{l.tcpNode, &l.tcpIn, l.breaks}, {l.tcpPeer, &l.tcpOut, l.breaks},
	} {
		l.t.receiving.Go(func() { l.take(r.conn, r.came, r.fail) })
	}
}

// take stamps what comes until the socket is closed, or fails if that is the end of it.
func (l *link) take(conn net.Conn, came *arrivals, fail func(error)) {
	buf := make([]byte, 64<<10)
	for {
		_, err := conn.Read(buf)
		switch {
		case err == nil:
			came.add(l.t.now())
		case errors.Is(err, net.ErrClosed):
			return
		case fail != nil:
			fail(fmt.Errorf("reading: %w", err))
			return
		}
	}
}

// breaks keeps the first reason for which the connection broke.
func (l *link) breaks(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken == nil {
		l.broken = err
	}
}

func (l *link) breakage() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken
}

// close ends it. It may be called when not all was opened.
func (t *traffic) close() {
	close(t.stop)
	t.sending.Wait()
	for _, l := range t.links {
		for _, conn := range []*net.TCPConn{l.tcpNode, l.tcpPeer} {
			if conn != nil {
				_ = conn.SetLinger(0) // nothing of it is to be on the way in the next turn
				conn.Close()
			}
		}
		for _, conn := range []*net.UDPConn{l.udpNode, l.udpPeer} {
			if conn != nil {
				conn.Close()
			}
		}
	}
	t.receiving.Wait()
}

const (
	// calm is for how long each flow must have been well for all to be.
	calm = time.Second
	// wellGap is the longest time between two packets of a flow that is well; far above what is measured, since a
	// loaded machine lets some come late.
	wellGap = 400 * time.Millisecond
)

// well is an error that says which flow is not well. A connection that broke is not waited for.
func (t *traffic) well(context.Context) error {
	now := t.now()
	for _, l := range t.links {
		flows := map[string]*arrivals{"in": &l.in, "out": &l.out}
		if l.breakage() == nil {
			flows["TCP to the node"], flows["TCP from the node"] = &l.tcpIn, &l.tcpOut
		}
		for name, came := range flows {
			if s := came.longest(now-calm, now); s.gap > max(wellGap, 4*t.every) {
				return fmt.Errorf("%s of %s was silent for %v", name, l.name, s.gap.Round(time.Millisecond))
			}
		}
	}
	return nil
}

// awaitWell returns when all flows are well, or with what still is not when ctx or the patience ends first.
func (t *traffic) awaitWell(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return wait.Until(ctx, pollInterval, t.well)
}

// giveUp takes the connections that are silent for broken.
func (t *traffic) giveUp() {
	now := t.now()
	for _, l := range t.links {
		if s := longer(l.tcpIn.longest(now-calm, now), l.tcpOut.longest(now-calm, now)); s.gap > wellGap {
			l.breaks(errors.New("still silent when it was no longer waited for"))
		}
	}
}

// pollInterval is how often to poll.
const pollInterval = 50 * time.Millisecond

// outcome is what one event did to one node.
type outcome struct {
	name         string
	in, out, tcp silence
	broken       error
}

// outcomes of the time watched, by node.
func (t *traffic) outcomes(from, until time.Duration) []outcome {
	var all []outcome
	for _, l := range t.links {
		all = append(all, outcome{
			name: l.name, in: l.in.longest(from, until), out: l.out.longest(from, until),
			tcp:    longer(l.tcpIn.longest(from, until), l.tcpOut.longest(from, until)),
			broken: l.breakage(),
		})
	}
	return all
}
