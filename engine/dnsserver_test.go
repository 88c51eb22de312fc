// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/internal/podnet"
)

// A client that asks over TCP and reads no answers is disconnected: otherwise the
// answers would wait, one after the other, and keep the pod from asking anything else.
func TestDNSStreamTakesNothing(t *testing.T) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var node nodeDNS
	node.layOut(nil) // nobody to ask: all fails at once
	s := &dnsServer{node: &node, sockets: &podnet.DNS{}, idle: time.Second}
	s.ctx, s.cancel = context.WithCancel(t.Context())
	s.wg.Go(func() { s.serveTCP(l) })
	defer func() { s.cancel(); l.Close(); s.wg.Wait() }()
	small := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error { // before there is a window
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
	}}
	c, err := small.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	q := append([]byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"), bytes.Repeat(append([]byte{60}, bytes.Repeat([]byte("a"), 60)...), 4)...)
	q = append(q, 0, 0, 1, 0, 1)
	go func() {
		for writeStream(c, q) == nil {
		}
	}()
	busy := func() int32 { return s.streams.Load() + s.queries.Load() }
	for deadline := time.Now().Add(20 * time.Second); busy() == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	for deadline := time.Now().Add(20 * time.Second); busy() > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if busy() > 0 {
		t.Errorf("%d connections are there still, and %d queries", s.streams.Load(), s.queries.Load())
	}
}

// Queries that are never answered cost the process little, however many a pod has.
func TestDNSWaitingQueries(t *testing.T) {
	c := nstest.NewCluster(t, nil)
	pod := nstest.NewPod(t)
	c.Connect(pod)
	var u *net.UDPConn // hears, and says nothing
	c.Do(func() (err error) {
		u, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4zero, Port: 54})
		return err
	})
	defer u.Close()
	ns, err := podnet.FindNamespace(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := podnet.OpenDNS(t.Context(), ns)
	if err != nil {
		t.Fatal(err)
	}
	defer sockets.Close()
	s := &dnsServer{sockets: sockets}
	s.ctx, s.cancel = context.WithCancel(t.Context())
	q := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01")
	inUse := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := inUse()
	for range mostQueries {
		s.wg.Go(func() { _, _ = s.exchange(q, "udp", netip.AddrPortFrom(c.IP4, 54), time.Minute) })
	}
	buf := make([]byte, 512)
	_ = u.SetReadDeadline(time.Now().Add(20 * time.Second))
	for range mostQueries { // all have asked
		if _, err := u.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	if used := int64(inUse()) - int64(before); used > mostQueries*16<<10 {
		t.Errorf("%d queries have %d bytes", mostQueries, used)
	}
	s.cancel()
	s.wg.Wait()
}

// TestDNSReadQuery: a query and whoever sent it, in both families; one that is too long is cut off, as any datagram is.
func TestDNSReadQuery(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(host)})
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		client, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		for _, size := range []int{0, 17, longestQuery, longestQuery + 1} {
			sent := bytes.Repeat([]byte{7}, size)
			time.AfterFunc(time.Millisecond, func() { _, _ = client.Write(sent) }) // while it is waited for
			q, from, err := readQuery(server)
			if err != nil || !bytes.Equal(q, sent[:min(size, longestQuery)]) || from.Port() != client.LocalAddr().(*net.UDPAddr).AddrPort().Port() || from.Addr().Unmap() != netip.MustParseAddr(host) {
				t.Errorf("%s: %d bytes of %d from %v: %v", host, len(q), size, from, err)
			}
		}
		server.Close()
		if _, _, err := readQuery(server); err == nil {
			t.Errorf("%s: a query from a closed socket", host)
		}
	}
	if got, want := senderOf(&unix.SockaddrInet6{Port: 53, ZoneId: 7, Addr: [16]byte{0xfe, 0x80, 15: 1}}), netip.MustParseAddrPort("[fe80::1%7]:53"); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
