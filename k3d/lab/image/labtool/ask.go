// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"tailscale-nri/k3d/lab/internal/wait"
)

// result is what crossed, as the receiver saw it.
type result struct {
	Bytes    int64   `json:"bytes"`
	Seconds  float64 `json:"seconds"`
	Sent     int     `json:"sent,omitempty"`     // packets
	Received int     `json:"received,omitempty"` // packets
}

// stream holds one TCP connection open and sends a numbered line at a time. Each line of output is the number, when
// the answer came and how long it took, so that a gap can be read off.
func stream(ctx context.Context, opt options, addr string) error {
	conn, err := (&net.Dialer{Timeout: opt.timeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintln(opt.out, "connected", conn.LocalAddr(), "->", conn.RemoteAddr())
	ctx, cancel := span(ctx, opt)
	defer cancel()
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

// span is ctx with the end that -for asks for.
func span(ctx context.Context, opt options) (context.Context, context.CancelFunc) {
	if opt.span == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, opt.span)
}

// send fills connections to a sink until the time is over, and adds up what the sink says.
func send(ctx context.Context, opt options, addr string) error {
	if opt.span == 0 {
		opt.span = 5 * time.Second
	}
	type outcome struct {
		result
		err error
	}
	outcomes := make(chan outcome)
	for range opt.streams {
		go func() {
			r, err := sendOne(ctx, opt, addr)
			outcomes <- outcome{r, err}
		}()
	}
	var total result
	var failed error
	for range opt.streams {
		o := <-outcomes
		total.Bytes += o.Bytes
		total.Seconds = max(total.Seconds, o.Seconds)
		failed = errors.Join(failed, o.err)
	}
	if failed != nil {
		return failed
	}
	return json.NewEncoder(opt.out).Encode(total)
}

func sendOne(ctx context.Context, opt options, addr string) (result, error) {
	conn, err := (&net.Dialer{Timeout: opt.timeout}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return result{}, err
	}
	defer conn.Close()
	end := time.Now().Add(opt.span)
	conn.SetWriteDeadline(end)
	chunk := make([]byte, 256<<10)
	for err == nil && ctx.Err() == nil {
		_, err = conn.Write(chunk)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return result{}, err
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return result{}, err
	}
	conn.SetReadDeadline(end.Add(opt.timeout + opt.span))
	var r result
	err = json.NewDecoder(conn).Decode(&r)
	return r, err
}

// udp sends numbered packets and counts those that come back until nothing has come for the time-out.
func udp(ctx context.Context, opt options, addr string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	widen(conn.(*net.UDPConn))
	received := make(chan result)
	go func() { received <- receive(conn, opt) }()
	payload := make([]byte, opt.size)
	begin := time.Now()
	for n := range opt.count {
		if _, err := conn.Write(payload); err != nil {
			return err
		}
		// By the clock, since a timer of less than a millisecond is late by more than itself.
		if early := time.Until(begin.Add(time.Duration(n+1) * opt.every)); early > 0 {
			_ = wait.Pause(ctx, early)
		}
	}
	r := <-received
	r.Sent = opt.count
	return json.NewEncoder(opt.out).Encode(r)
}

func receive(conn net.Conn, opt options) (r result) {
	begin := time.Now()
	buf := make([]byte, 64<<10)
	for r.Received < opt.count {
		conn.SetReadDeadline(time.Now().Add(opt.timeout))
		n, err := conn.Read(buf)
		if err != nil {
			return r
		}
		r.Received++
		r.Bytes += int64(n)
		r.Seconds = time.Since(begin).Seconds()
	}
	return r
}
