// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A packet filter lets the same through because of earlier packets on both ways.
func TestLocalConnections(t *testing.T) {
	eachLane(newLanes(t, "conn"), func(l *lane) {
		for _, family := range []int{4, 6} {
			l.policy(rule("tag:a", "tag:b"))
			l.expectOpenSurvives(family)
			l.expectReplies(family)
		}
	})
}

// expectOpenSurvives has a rule taken away while a connection is open: the
// connection stays, a new one does not come about.
func (l *lane) expectOpenSurvives(family int) {
	l.t.Helper()
	to := netip.AddrPortFrom(l.addr(l.b, family), 80)
	var c net.Conn
	var err error
	l.a.Do(func() error { c, err = net.DialTimeout("tcp", to.String(), 5*time.Second); return nil })
	if err != nil {
		l.t.Errorf("%s: %v", l.way, err)
		return
	}
	defer c.Close()
	talk := func(when string) {
		if err := exchange(c, "word"); err != nil {
			l.t.Errorf("%s: IPv%d connection %s: %v", l.way, family, when, err)
		}
	}
	talk("under the rule")
	l.policy()
	if got := l.ask(l.a, l.b, probe{"tcp", family, 80}); got != silent {
		l.t.Errorf("%s: a new IPv%d connection without the rule: %s", l.way, family, got)
	}
	talk("without the rule")
	l.policy(rule("tag:a", "tag:b"))
	talk("under the rule again")
}

// expectReplies sends UDP where a may send to b, and b may only reply.
func (l *lane) expectReplies(family int) {
	l.t.Helper()
	asker := l.udp(l.a, family, 0)
	server := l.udp(l.b, family, 0)
	other := l.udp(l.b, family, 0)
	mute := l.udp(l.b, family, 0)
	for _, c := range []*net.UDPConn{asker, server, other, mute} {
		defer c.Close()
	}
	from := func(s side, c *net.UDPConn) netip.AddrPort {
		return netip.AddrPortFrom(l.addr(s, family), portOf(c))
	}
	a, b := from(l.a, asker), from(l.b, server)
	step := func(what string, c *net.UDPConn, to netip.AddrPort, at *net.UDPConn, want bool) {
		l.t.Helper()
		if got := arrives(c, to, at); got != want {
			l.t.Errorf("%s: IPv%d: %s arrives: %v, want %v", l.way, family, what, got, want)
		}
	}
	step("what nobody asked for", server, a, asker, false)
	step("a question", asker, b, server, true)
	step("its answer", server, a, asker, true)
	step("an answer from another port", other, a, asker, false)
	l.policy()
	step("an answer without a rule", server, a, asker, true)
	step("a question of the same flow, which b has answered", asker, b, server, true)
	// A node remembers the packets that it has sent, whatever became of them.
	step("a question to a port whose words were refused", asker, from(l.b, other), other, true)
	step("a question to a port that never spoke", asker, from(l.b, mute), mute, false)
	l.policy(rule("tag:a", "tag:b"))
}

func (l *lane) udp(s side, family int, port uint16) (c *net.UDPConn) {
	l.t.Helper()
	s.Do(func() (err error) {
		c, err = net.ListenUDP(fmt.Sprintf("udp%d", family), &net.UDPAddr{Port: int(port)})
		return err
	})
	return c
}

func portOf(c *net.UDPConn) uint16 { return c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// arrives sends a word, and reports whether it comes.
func arrives(from *net.UDPConn, to netip.AddrPort, at *net.UDPConn) bool {
	word := fmt.Appendf(nil, "%016x", rand.Uint64())
	if _, err := from.WriteToUDPAddrPort(word, to); err != nil {
		return false
	}
	at.SetReadDeadline(time.Now().Add(silence))
	for buf := make([]byte, 100); ; {
		n, _, err := at.ReadFromUDPAddrPort(buf)
		if err != nil {
			return false
		}
		if bytes.Equal(buf[:n], word) {
			return true
		}
	}
}

// Bulk data arrives whole, in both directions at once.
func TestLocalBulk(t *testing.T) {
	eachLane(newLanes(t, "bulk"), func(l *lane) {
		var wg sync.WaitGroup
		for _, family := range []int{4, 6} {
			for _, way := range [][2]side{{l.a, l.b}, {l.b, l.a}} {
				wg.Go(func() { l.transfer(way[0], way[1], family) })
			}
		}
		wg.Wait()
		for _, s := range []side{l.a, l.b} {
			const least = 2 * bulk / 1280
			if n := l.deliveredLocally(s); l.local && n < least || !l.local && n > 0 {
				t.Errorf("%s: %s has delivered %d packets locally, of at least %d", l.way, s.spec.Name, n, least)
			}
		}
		for _, family := range []int{4, 6} {
			l.segments(l.a, l.b, family)
		}
		l.policy()
		l.segmentsRefused(l.a, l.b)
	})
}

// segmentsRefused sends data that the kernel cuts where nothing is allowed: each
// datagram counts.
func (l *lane) segmentsRefused(from, to side) {
	l.t.Helper()
	const size, count = 1000, 40
	before := l.aclDrops(to)
	sender := l.udp(from, 4, 0)
	defer sender.Close()
	setUDP(l.t, sender, unix.UDP_SEGMENT, size)
	if _, err := sender.WriteToUDPAddrPort(make([]byte, size*count), netip.AddrPortFrom(l.addr(to, 4), 53)); err != nil {
		l.t.Errorf("%s: sending: %v", l.way, err)
	}
	l.until(l.way+": all are refused", func() bool { return l.aclDrops(to)-before == count },
		func() string { return fmt.Sprint(l.aclDrops(to) - before) })
}

// bulk is how much TCP carries, in bytes.
const bulk = 24 << 20

// transfer sends random bytes over TCP and compares their hash.
func (l *lane) transfer(from, to side, family int) {
	l.t.Helper()
	var ln net.Listener
	to.Do(func() (err error) {
		ln, err = net.Listen("tcp", netip.AddrPortFrom(l.addr(to, family), 0).String())
		return err
	})
	defer ln.Close()
	came := make(chan [sha256.Size]byte, 1)
	go func() {
		defer close(came)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		h := sha256.New()
		if n, err := io.Copy(h, c); n == bulk && err == nil {
			came <- [sha256.Size]byte(h.Sum(nil))
		}
	}()
	var c net.Conn
	from.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", ln.Addr().String(), 10*time.Second)
		return err
	})
	c.SetDeadline(time.Now().Add(time.Minute))
	h := sha256.New()
	source := rand.NewChaCha8([32]byte{byte(family)})
	if _, err := io.CopyN(io.MultiWriter(c, h), source, bulk); err != nil {
		l.t.Errorf("%s: sending: %v", l.way, err)
	}
	c.Close()
	if got, ok := <-came; !ok || got != [sha256.Size]byte(h.Sum(nil)) {
		l.t.Errorf("%s: TCP over IPv%d from %s: what came is not what was sent (whole: %v)", l.way, family, from.spec.Name, ok)
	}
}

// segments sends UDP that the kernel is to cut, many datagrams a call, to a
// socket that takes several at a time.
func (l *lane) segments(from, to side, family int) {
	l.t.Helper()
	const size, perCall, calls = 1200, 40, 50
	receiver := l.udp(to, family, 0)
	defer receiver.Close()
	receiver.SetReadBuffer(8 << 20)
	sender := l.udp(from, family, 0)
	defer sender.Close()
	setUDP(l.t, sender, unix.UDP_SEGMENT, size)
	setUDP(l.t, receiver, unix.UDP_GRO, 1)

	target := netip.AddrPortFrom(l.addr(to, family), portOf(receiver))
	go func() {
		for call := range calls {
			var b []byte
			for i := range perCall {
				b = append(b, datagram(call*perCall+i, size)...)
			}
			b = b[:len(b)-size/2] // the last one is shorter
			sender.WriteToUDPAddrPort(b, target)
			time.Sleep(2 * time.Millisecond)
		}
	}()
	seen := map[int]bool{}
	buf, oob := make([]byte, 1<<16), make([]byte, 100)
	for receiver.SetReadDeadline(time.Now().Add(2 * time.Second)); len(seen) < perCall*calls; {
		n, oobn, _, _, err := receiver.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			break
		}
		each := segmentSize(oob[:oobn], n)
		for part := range slices.Chunk(buf[:n], each) {
			i := int(binary.BigEndian.Uint32(part))
			if want := datagram(i, size); seen[i] || !bytes.Equal(part, want[:len(part)]) || (len(part) != size && i%perCall != perCall-1) {
				l.t.Errorf("%s: datagram %d of IPv%d: %d bytes, which are not those sent, or not for the first time", l.way, i, family, len(part))
				return
			}
			seen[i] = true
		}
	}
	if lost := perCall*calls - len(seen); lost > 0 {
		l.t.Errorf("%s: %d datagrams of IPv%d did not arrive", l.way, lost, family)
	}
}

// datagram returns the content of the datagram of a number.
func datagram(i, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(b)
	binary.BigEndian.PutUint32(b, uint32(i))
	return b
}

// segmentSize returns the length of each datagram of a read.
func segmentSize(oob []byte, n int) int {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return n
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_UDP && m.Header.Type == unix.UDP_GRO {
			return int(binary.NativeEndian.Uint16(m.Data))
		}
	}
	return n
}

func setUDP(t *testing.T, c *net.UDPConn, option, value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, option, value); err != nil {
			t.Errorf("setting UDP option %d: %v", option, err)
		}
	})
}
