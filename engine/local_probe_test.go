// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"tailscale-nri/engine/internal/nstest"
)

// ask sends one packet of a kind to an address, and waits for what comes of it.
func ask(from *nstest.Pod, to netip.Addr, p probe) (outcome string) {
	from.Do(func() error {
		var err error
		switch p.kind {
		case "ping":
			err = ping(to)
		case "udp", "tcp":
			err = exchangeOnce(p.kind, netip.AddrPortFrom(to, p.port))
		}
		var late net.Error
		switch {
		case err == nil:
			outcome = answered
		case errors.Is(err, syscall.ECONNREFUSED):
			outcome = refused
		case errors.As(err, &late) && late.Timeout(), errors.Is(err, syscall.ENETUNREACH): // no link, no route
			outcome = silent
		default:
			outcome = err.Error()
		}
		return nil
	})
	return outcome
}

// A UDP probe has a port that none had before it, below those that the kernel gives
// out: a filter lets through what comes back to a flow that it has let out, also after
// its policy has changed, and a kernel that gives an earlier port again makes the probe
// part of that flow.
const firstProbePort, probePorts = 10_000, 20_000

var lastProbe atomic.Uint32

// exchangeOnce says a word and expects it back.
func exchangeOnce(network string, to netip.AddrPort) error {
	deadline := time.Now().Add(silence)
	dialer := net.Dialer{Deadline: deadline}
	if network == "udp" {
		dialer.LocalAddr = &net.UDPAddr{Port: firstProbePort + int(lastProbe.Add(1))%probePorts}
	}
	c, err := dialer.Dial(network, to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(deadline)
	if _, err := c.Write([]byte("word")); err != nil {
		return err
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != "word" {
		return fmt.Errorf("got back %q", got)
	}
	return nil
}

var lastPing atomic.Uint32

func ping(to netip.Addr) error {
	network, proto := "ip4:icmp", 1
	var echo, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if to.Is6() {
		network, proto, echo, reply = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	c, err := net.ListenPacket(network, "") // unlike a dialled one it reads without the IP header
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(silence))
	n := lastPing.Add(1)
	body := &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: int(n & 0xffff), Data: []byte("ping")}
	question, err := (&icmp.Message{Type: echo, Body: body}).Marshal(nil)
	if err != nil {
		return err
	}
	if _, err := c.WriteTo(question, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return err
	}
	for buf := make([]byte, 1500); ; {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil {
			return err
		}
		if e, ok := m.Body.(*icmp.Echo); ok && m.Type == reply && e.Seq == body.Seq {
			return nil
		}
	}
}
