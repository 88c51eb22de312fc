// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"tailscale-nri/k3d/lab/internal/wait"
)

// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443) echo messages.
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// ping sends echo requests on a raw socket, which a container's CAP_NET_RAW allows.
func ping(ctx context.Context, opt options, arg string) error {
	addr, err := netip.ParseAddr(arg)
	if err != nil {
		return err
	}
	network, request, reply := "ip4:icmp", byte(echoRequest4), byte(echoReply4)
	if addr.Is6() {
		network, request, reply = "ip6:ipv6-icmp", echoRequest6, echoReply6
	}
	dialed, err := net.Dial(network, arg)
	if err != nil {
		return err
	}
	conn := dialed.(*net.IPConn)
	defer conn.Close()
	for n := 1; n <= opt.count && ctx.Err() == nil; n++ {
		took, err := pingOnce(conn, opt, request, reply, uint16(n))
		if err != nil {
			return fmt.Errorf("ping %d to %s: %w", n, arg, err)
		}
		fmt.Fprintln(opt.out, n, took.Round(time.Microsecond))
		if n < opt.count {
			_ = wait.Pause(ctx, opt.every)
		}
	}
	return ctx.Err()
}

func pingOnce(conn *net.IPConn, opt options, request, reply byte, seq uint16) (time.Duration, error) {
	message := echoMessage(request, uint16(os.Getpid()), seq, opt.size)
	begin := time.Now()
	conn.SetDeadline(begin.Add(opt.timeout))
	if _, err := conn.Write(message); err != nil {
		return 0, err
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := conn.ReadFrom(buf) // which takes the IPv4 header off, other than Read
		if err != nil {
			return 0, err
		}
		// All but the type and the checksum comes back as it went; anything else is not ours.
		if n == len(message) && buf[0] == reply && bytes.Equal(buf[4:n], message[4:]) {
			return time.Since(begin), nil
		}
	}
}

// echoMessage leaves the checksum of ICMPv6 to the kernel, which knows the source address (RFC 3542, 3.1).
func echoMessage(kind byte, id, seq uint16, size int) []byte {
	m := make([]byte, 8+size)
	m[0] = kind
	binary.BigEndian.PutUint16(m[4:], id)
	binary.BigEndian.PutUint16(m[6:], seq)
	for i := range size {
		m[8+i] = byte(i)
	}
	if kind == echoRequest4 {
		binary.BigEndian.PutUint16(m[2:], checksum(m))
	}
	return m
}

// checksum of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
