// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"tailscale-nri/k3d/lab/internal/wait"
)

// serving runs a server command on a free port of host until the test ends, and returns its address.
func serving(t *testing.T, name, host string) string {
	t.Helper()
	addr := freeAddr(t, host)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- commands[name].run(ctx, options{out: io.Discard}, addr) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s ended with %v", name, err)
		}
	})
	awaitListener(t, addr)
	return addr
}

func freeAddr(t *testing.T, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func awaitListener(t *testing.T, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := wait.Until(ctx, time.Millisecond, func(context.Context) error {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ask runs a client command and returns what it printed.
func asking(t *testing.T, opt options, name, arg string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	opt.out = &out
	if opt.timeout == 0 {
		opt.timeout = 10 * time.Second
	}
	err := commands[name].run(t.Context(), opt, arg)
	return out.String(), err
}

var hosts = []string{"127.0.0.1", "::1"}

func TestServe(t *testing.T) {
	for _, host := range hosts {
		addr := serving(t, "serve", host)
		out, err := asking(t, options{}, "get", "http://"+addr+"/")
		var a answer
		if err := errors.Join(err, json.Unmarshal([]byte(out), &a)); err != nil {
			t.Fatal(err)
		}
		if a.Local != addr || a.Remote == "" || len(a.Addrs["lo"]) == 0 {
			t.Errorf("asked %s, answered %+v", addr, a)
		}
		if out, err := asking(t, options{}, "get", "http://"+addr+"/bytes"); err != nil || len(out) != 1<<20 {
			t.Errorf("got %d bytes: %v", len(out), err)
		}
	}
}

func TestStream(t *testing.T) {
	addr := serving(t, "echo", "127.0.0.1")
	out, err := asking(t, options{span: 50 * time.Millisecond, every: time.Millisecond}, "stream", addr)
	if lines := strings.Count(out, "\n"); err != nil || lines < 2 {
		t.Errorf("%d lines: %v\n%s", lines, err, out)
	}
}

func TestRoundTrips(t *testing.T) {
	for _, datagrams := range []bool{false, true} {
		addr := serving(t, "echo", "127.0.0.1")
		out, err := asking(t, options{span: 50 * time.Millisecond, size: 1200, datagrams: datagrams}, "rr", addr)
		var r roundTrips
		if err := errors.Join(err, json.Unmarshal([]byte(out), &r)); err != nil {
			t.Fatal(err)
		}
		if r.Answers == 0 || r.Lost > 0 || r.P50 <= 0 || r.P99 < r.P50 {
			t.Errorf("datagrams %v: %+v", datagrams, r)
		}
	}
	if out, err := asking(t, options{timeout: time.Millisecond, span: 10 * time.Millisecond, datagrams: true}, "rr", freeAddr(t, "127.0.0.1")); err == nil {
		t.Errorf("nobody answers, and rr prints %s", out)
	}
}

// TestRoundTripsLost asks a socket that answers once.
func TestRoundTripsLost(t *testing.T) {
	once, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer once.Close()
	go func() {
		buf := make([]byte, 10)
		if n, from, err := once.ReadFrom(buf); err == nil {
			once.WriteTo(buf[:n], from)
		}
	}()
	out, err := asking(t, options{span: 50 * time.Millisecond, timeout: 5 * time.Millisecond, datagrams: true}, "rr", once.LocalAddr().String())
	var r roundTrips
	if err := errors.Join(err, json.Unmarshal([]byte(out), &r)); err != nil || r.Answers != 1 || r.Lost == 0 {
		t.Errorf("%v: %+v", err, r)
	}
}

// TestRoundTripsOfAnother has a socket answer each message with the one before.
func TestRoundTripsOfAnother(t *testing.T) {
	late, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	go func() {
		buf, before := make([]byte, 100), make([]byte, 50)
		for {
			n, from, err := late.ReadFrom(buf)
			if err != nil {
				return
			}
			late.WriteTo(before, from)
			before = append(before[:0], buf[:n]...)
		}
	}()
	out, err := asking(t, options{span: 20 * time.Millisecond, timeout: 5 * time.Millisecond, size: 50, datagrams: true}, "rr", late.LocalAddr().String())
	if err == nil {
		t.Errorf("answers to other messages are counted: %s", out)
	}
}

// TestStreamBreaks has an echo that answers twice and is gone, and one that answers wrongly.
func TestStreamBreaks(t *testing.T) {
	for _, c := range []struct {
		name  string
		serve func(net.Conn)
	}{
		{"connection ends", func(c net.Conn) { io.CopyN(c, c, int64(len("1\n2\n"))) }},
		{"wrong answer", func(c net.Conn) { io.WriteString(c, "1\nnonsense\n"); io.Copy(io.Discard, c) }},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer l.Close()
			if conn, err := l.Accept(); err == nil {
				defer conn.Close()
				c.serve(conn)
			}
		}()
		out, err := asking(t, options{every: time.Millisecond}, "stream", l.Addr().String())
		if err == nil || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%s: %v\n%s", c.name, err, out)
		}
	}
}

func TestPing(t *testing.T) {
	for _, host := range hosts {
		out, err := asking(t, options{count: 2, size: 1252}, "ping", host)
		if err != nil || strings.Count(out, "\n") != 2 {
			t.Errorf("pinging %s: %v: %s", host, err, out)
		}
	}
	if _, err := asking(t, options{count: 1, timeout: 50 * time.Millisecond}, "ping", "nonsense"); err == nil {
		t.Error("pinging nonsense gave no error")
	}
}

func TestRun(t *testing.T) {
	for _, args := range [][]string{{}, {"nonsense"}, {"get"}, {"get", "-nonsense"}, {"sleep", "nonsense"}} {
		if err := run(t.Context(), args); err == nil {
			t.Errorf("%q gave no error", args)
		}
	}
	if err := run(t.Context(), []string{"sleep", "1ms"}); err != nil {
		t.Error(err)
	}
}
