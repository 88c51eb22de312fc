// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"time"

	"tailscale-nri/k3d/lab/internal/wait"
)

// stream holds one TCP connection open and sends a numbered line at a time. Each line of output is the number, when
// the answer came and how long it took, so that a gap can be read off.
func stream(ctx context.Context, opt options, addr string) error {
	conn, err := (&net.Dialer{Timeout: opt.timeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintln(opt.out, "connected", conn.LocalAddr(), "->", conn.RemoteAddr())
	if opt.span > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, opt.span)
		defer cancel()
	}
	lines := bufio.NewReader(conn)
	for n := 1; ctx.Err() == nil; n++ {
		sent := time.Now()
		if err := ask(conn, lines, n); err != nil {
			return fmt.Errorf("line %d after %v: %w", n, time.Since(sent).Round(time.Millisecond), err)
		}
		now := time.Now()
		fmt.Fprintln(opt.out, n, now.UTC().Format("15:04:05.000"), now.Sub(sent).Round(time.Microsecond))
		_ = wait.Pause(ctx, opt.every)
	}
	return nil
}

func ask(conn net.Conn, lines *bufio.Reader, n int) error {
	if _, err := fmt.Fprintln(conn, n); err != nil {
		return err
	}
	line, err := lines.ReadString('\n')
	if err != nil {
		return err
	}
	if want := fmt.Sprintln(n); line != want {
		return fmt.Errorf("got %q, want %q", line, want)
	}
	return nil
}
