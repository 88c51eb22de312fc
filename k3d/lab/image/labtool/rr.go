// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"tailscale-nri/k3d/lab/internal/quantile"
)

// roundTrips is what rr prints; times are in microseconds.
type roundTrips struct {
	Answers, Lost int
	P50, P99      float64
}

// rr sends a message to an echo, the next when the last is answered. A datagram that is lost is waited for until the
// time-out and counted. Each message differs from the one before, whose answer may come late.
func rr(ctx context.Context, opt options, addr string) error {
	network := "tcp"
	if opt.datagrams {
		network = "udp"
	}
	conn, err := (&net.Dialer{Timeout: opt.timeout}).DialContext(ctx, network, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	var took []time.Duration
	var r roundTrips
	message, answer := payload(max(1, opt.size)), make([]byte, max(1, opt.size))
	for end := time.Now().Add(opt.span); time.Now().Before(end) && ctx.Err() == nil; {
		begin := time.Now()
		conn.SetDeadline(begin.Add(opt.timeout))
		message[0]++
		err := roundTrip(conn, opt.datagrams, message, answer)
		switch {
		case err == nil:
			took = append(took, time.Since(begin))
		case opt.datagrams && errors.Is(err, os.ErrDeadlineExceeded):
			r.Lost++
		default:
			return err
		}
	}
	if len(took) == 0 {
		return errors.New("no answer")
	}
	micros := func(q float64) float64 { return float64(quantile.Of(took, q)) / float64(time.Microsecond) }
	r.Answers, r.P50, r.P99 = len(took), micros(0.5), micros(0.99)
	return json.NewEncoder(opt.out).Encode(r)
}

// roundTrip sends message and waits for it to come back; answer has room for it. Other datagrams are passed over.
func roundTrip(conn net.Conn, datagrams bool, message, answer []byte) error {
	if _, err := conn.Write(message); err != nil {
		return err
	}
	read := io.ReadFull
	if datagrams {
		read = io.Reader.Read
	}
	for {
		n, err := read(conn, answer)
		switch {
		case err != nil:
			return err
		case bytes.Equal(answer[:n], message):
			return nil
		case !datagrams:
			return errors.New("the answer is not what was sent")
		}
	}
}

// payload is one in which a byte that is lost, doubled or in another place is seen.
func payload(size int) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(i)
	}
	return p
}
