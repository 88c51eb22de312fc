// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// startProfile takes a CPU profile of the plugin of a host for as long as a transfer goes on, if profiles are wanted and
// when is true. What it returns waits for the profile.
func (c Config) startProfile(ctx context.Context, when bool, h *host, name string) func() error {
	if c.Profiles == "" || !when {
		return func() error { return nil }
	}
	ended := make(chan error, 1)
	go func() {
		ended <- c.profile(ctx, h, name+".cpu", "profile?seconds="+strconv.Itoa(max(1, int(c.Span.Seconds()))))
	}()
	return func() error { return <-ended }
}

// heapProfile is of what a process holds after a garbage collection.
func (c Config) heapProfile(ctx context.Context, h *host, name string) error {
	if c.Profiles == "" {
		return nil
	}
	return c.profile(ctx, h, name+".heap", "heap?gc=1")
}

// profile fetches one from a plugin that was built with the tag "profile".
func (c Config) profile(ctx context.Context, h *host, name, what string) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			socket := h.Path("run", "tailscale-nri", fmt.Sprintf("profile-%d.sock", h.plugin.Serving()))
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://plugin/debug/pprof/"+what, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("asking for a profile, which takes a plugin built with -tags profile: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("asking for profile %s: %s", what, res.Status)
	}
	if err := os.MkdirAll(c.Profiles, 0o755); err != nil {
		return fmt.Errorf("writing profile %s: %w", name, err)
	}
	file := strings.NewReplacer("/", "_", "=", "-").Replace(name) + ".pb.gz"
	out, err := os.Create(filepath.Join(c.Profiles, file))
	if err != nil {
		return fmt.Errorf("writing profile %s: %w", name, err)
	}
	_, err = io.Copy(out, res.Body)
	return errors.Join(err, out.Close())
}
