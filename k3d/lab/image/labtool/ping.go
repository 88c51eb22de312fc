// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"tailscale-nri/k3d/lab/internal/wait"
)

// echoKind are the messages of one family.
type echoKind struct {
	network        string
	request, reply icmp.Type
}

var (
	echo4 = echoKind{"ip4:icmp", ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply}
	echo6 = echoKind{"ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply}
)

// ping sends echo requests on a raw socket, which a container's CAP_NET_RAW allows.
func ping(ctx context.Context, opt options, arg string) error {
	addr, err := netip.ParseAddr(arg)
	if err != nil {
		return err
	}
	kind := echo4
	if addr.Is6() {
		kind = echo6
	}
	dialed, err := net.Dial(kind.network, arg)
	if err != nil {
		return err
	}
	conn := dialed.(*net.IPConn)
	defer conn.Close()
	for n := 1; n <= opt.count && ctx.Err() == nil; n++ {
		took, err := pingOnce(conn, opt, kind, &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: n, Data: payload(opt.size)})
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

func pingOnce(conn *net.IPConn, opt options, kind echoKind, echo *icmp.Echo) (time.Duration, error) {
	message, err := (&icmp.Message{Type: kind.request, Body: echo}).Marshal(nil)
	if err != nil {
		return 0, err
	}
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
		got, err := icmp.ParseMessage(kind.reply.Protocol(), buf[:n])
		if err != nil || got.Type != kind.reply {
			continue // a message of another kind
		}
		reply, ok := got.Body.(*icmp.Echo)
		if ok && reply.ID == echo.ID && reply.Seq == echo.Seq && bytes.Equal(reply.Data, echo.Data) {
			return time.Since(begin), nil
		}
	}
}
