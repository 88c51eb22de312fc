// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// statusRounds is how often the status is asked for.
const statusRounds = 20

// statusTimes reads how long the plugin takes to say how its nodes are: as they are, and with a session of a stock peer's
// with each, which takes longer. peer is nil where no peer sees them.
func (t *tailnet) statusTimes(ctx context.Context, h *host, peer *place, name, of string, r *report) error {
	if err := h.timeStatus(ctx, name, of, r); err != nil || peer == nil {
		return err
	}
	nodes, err := h.status(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if _, err := peer.run(ctx, t.lab.ToolPath(), "ping", "-timeout", "10s", n.Addresses[0].String()); err != nil {
			return err
		}
	}
	return h.timeStatus(ctx, name+"/sessions=1", of, r)
}

// timeStatus asks for the status again and again.
func (h *host) timeStatus(ctx context.Context, name, of string, r *report) error {
	name = "Status/" + name
	for range statusRounds {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://plugin/v1/status", nil)
		if err != nil {
			return err
		}
		begin := time.Now()
		res, err := h.client.Do(req)
		if err != nil {
			return fmt.Errorf("asking the plugin for its status: %w", err)
		}
		n, err := io.Copy(io.Discard, res.Body)
		took := time.Since(begin)
		res.Body.Close()
		switch {
		case err != nil:
			return fmt.Errorf("reading the plugin's status: %w", err)
		case res.StatusCode == http.StatusNotFound:
			return nil // a build that has no such answer
		}
		r.add(name, of, measured{unitMillis: millis(took), unitBytes: float64(n)})
	}
	r.figure("status_"+of+"/"+name, name, of, unitMillis, 0.5)
	return nil
}
