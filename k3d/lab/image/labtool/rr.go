// SPDX-License-Identifier: BSD-3-Clause

package main

import (
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
// time-out and counted.
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
	buf := make([]byte, max(1, opt.size))
	for end := time.Now().Add(opt.span); time.Now().Before(end) && ctx.Err() == nil; {
		begin := time.Now()
		conn.SetDeadline(begin.Add(opt.timeout))
		_, err := conn.Write(buf)
		if err == nil {
			_, err = io.ReadFull(conn, buf)
		}
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
