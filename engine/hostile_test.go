// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tailscale-nri/engine/internal/nstest"
)

// TestHostilePod has a pod with CAP_NET_RAW try what it must not get: to speak
// under another pod's address, to reach the host's stack or another pod's UDP
// port there by its own link, and to have the host forward. What each frame came
// to is looked for on every link of the host and of the other pods.
func TestHostilePod(t *testing.T) {
	for _, local := range []bool{true, false} {
		t.Run(map[bool]string{true: "local delivery", false: "WireGuard"}[local], func(t *testing.T) { testHostilePod(t, local) })
	}
}

func testHostilePod(t *testing.T, local bool) {
	w := newWorld(t)
	w.boot(func(c *Config) { c.NoLocalDelivery = !local })
	hostile, podHostile := w.pod("hostile")
	victim, podVictim := w.pod("victim")
	third, podThird := w.pod("third")
	for _, pod := range []Pod{podHostile, podVictim, podThird} {
		w.mustAttach(pod)
	}
	own, other, goal := w.await(podHostile.UID, Running), w.await(podVictim.UID, Running), w.await(podThird.UID, Running)
	hostEnd := hostEndOf(t, w, podHostile)
	taps := map[string]*tap{"victim's ts0": newTap(t, victim), "third pod's ts0": newTap(t, third)}
	host := newHostTap(t, hostEnd.Attrs().Index)
	out := newTap(t, hostile)

	toHost, everyone, allHosts := macOf(hostEnd), [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, [6]byte{0x33, 0x33, 0, 0, 0, 1}
	gateway := [6]byte{2, 0, 0, 0, 0, 1}
	loopback, linkLocal := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("fe80::1")
	for i, try := range []struct {
		name     string
		src, dst netip.Addr
		to       [6]byte
		arrives  string // where, "" is nowhere
	}{
		{"its own address to another pod", own.Addresses[0], goal.Addresses[0], gateway, "third pod's ts0"},
		{"its own IPv6 address to another pod", own.Addresses[1], goal.Addresses[1], gateway, "third pod's ts0"},
		{"another pod's address as its own", other.Addresses[0], goal.Addresses[0], gateway, ""},
		{"another pod's IPv6 address as its own", other.Addresses[1], goal.Addresses[1], gateway, ""},
		{"the receiver's own address", goal.Addresses[0], goal.Addresses[0], gateway, ""},
		{"MagicDNS's address", netip.MustParseAddr("100.100.100.100"), goal.Addresses[0], gateway, ""},
		{"the host's address as its own", nstest.HostAddr, goal.Addresses[0], gateway, ""},
		{"loopback as its own", loopback, goal.Addresses[0], gateway, ""},
		{"the host, by the host end's MAC", own.Addresses[0], nstest.HostAddr, toHost, ""},
		{"the host, by broadcast", own.Addresses[0], nstest.HostAddr, everyone, ""},
		{"the host's loopback", loopback, loopback, toHost, ""},
		{"the host's link, IPv6 multicast", linkLocal, netip.MustParseAddr("ff02::1"), allHosts, ""},
		{"another pod, forwarded by the host", own.Addresses[0], goal.Addresses[0], toHost, "third pod's ts0"}, // by the tailnet, as ever
		{"a stranger, forwarded by the host", own.Addresses[0], netip.MustParseAddr("192.0.2.7"), toHost, ""},
		{"a cloud's metadata", own.Addresses[0], netip.MustParseAddr("169.254.169.254"), toHost, ""},
	} {
		if err := out.sendTo(rawPacket{src: try.src, dst: try.dst}.bytes(mark(i)), try.to, try.dst.Is6()); err != nil {
			t.Fatalf("%s: %v", try.name, err)
		}
		if try.arrives != "" {
			w.until(try.name, func() bool { return len(taps[try.arrives].find(mark(i))) > 0 }, func() string { return "it has not arrived" })
		}
		defer func() {
			seen := map[string]int{"the host's stack": len(host.find(mark(i)))}
			for where, tap := range taps {
				seen[where] = len(tap.find(mark(i)))
				if n := seen[where]; n > 0 && where != try.arrives {
					t.Errorf("%s: seen %d times on %s", try.name, n, where)
				}
			}
			// What arrives crosses the receiver's own link, on the host.
			if n := seen["the host's stack"]; n > 0 && try.arrives == "" {
				t.Errorf("%s: the host's stack has seen it %d times", try.name, n)
			}
			t.Logf("%s: sent from %v to %v, seen %v", try.name, try.src, try.dst, seen)
		}()
	}
	// Another pod's UDP port on the host, from the hostile pod's own link.
	port := w.find(podVictim.SandboxID).record().Port
	frame := rawPacket{src: own.Addresses[0], dst: nstest.HostAddr, payload: udpTo(own.Addresses[0], nstest.HostAddr, port, []byte(mark(99)))}
	if err := out.sendTo(frame.bytes(""), toHost, false); err != nil {
		t.Fatal(err)
	}
	time.Sleep(silence) // for what should not come
	if n := len(host.find(mark(99))); n > 0 {
		t.Errorf("another pod's UDP port was reached through ts0")
	}
	// The tap of the host can see: the same bytes from within the host.
	c, err := net.Dial("udp", netip.AddrPortFrom(nstest.HostAddr, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(mark(100))); err != nil {
		t.Fatal(err)
	}
	w.until("the host's tap sees", func() bool { return len(host.find(mark(100))) > 0 }, func() string { return "nothing" })
	expectTalk(t, victim, third, goal.Addresses[0])
}

func hostEndOf(t *testing.T, w *world, pod Pod) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(w.find(pod.SandboxID).record().Link)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func macOf(l netlink.Link) (mac [6]byte) {
	copy(mac[:], l.Attrs().HardwareAddr)
	return mac
}

// sendTo is send, to a MAC address.
func (tp *tap) sendTo(b []byte, mac [6]byte, v6 bool) error {
	proto := uint16(unix.ETH_P_IP)
	if v6 {
		proto = unix.ETH_P_IPV6
	}
	to := &unix.SockaddrLinklayer{Protocol: htons(proto), Ifindex: tp.index, Halen: 6}
	copy(to.Addr[:], mac[:])
	return unix.Sendto(tp.fd, b, 0, to)
}

// newHostTap sees what crosses every link of the host, in either direction, but
// the one given.
func newHostTap(t *testing.T, but int) *tap {
	t.Helper()
	tp := &tap{}
	var err error
	if tp.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	tick := unix.Timeval{Usec: 50_000}
	if err := errors.Join(
		unix.SetsockoptTimeval(tp.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tick),
		unix.Bind(tp.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)}),
	); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for buf := make([]byte, 1<<16); ; {
			select {
			case <-stop:
				return
			default:
			}
			n, from, err := unix.Recvfrom(tp.fd, buf, 0)
			if ll, ok := from.(*unix.SockaddrLinklayer); err != nil || !ok || ll.Ifindex == but {
				continue
			}
			tp.mu.Lock()
			tp.came = append(tp.came, bytes.Clone(buf[:n]))
			tp.mu.Unlock()
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped; unix.Close(tp.fd) })
	return tp
}
