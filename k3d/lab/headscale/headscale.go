// SPDX-License-Identifier: BSD-3-Clause

// Package headscale runs a real Headscale, as a process of its own in the
// caller's network namespace, and asks it by its own command line.
//
// It serves plain HTTP with MagicDNS under "lab.hs.net", a policy that lets
// all talk to all unless there is another, and the DERP map that it is given:
// its embedded DERP server needs TLS. What it keeps, and its unix socket, lie in
// one directory.
//
// It does not build Headscale (make lab-tools does), and asks no Headscale but
// the one that it started.
package headscale

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"tailscale.com/tailcfg"

	"tailscale-nri/k3d/lab/internal/wait"
)

// Config describes a server. Addr, Dir and Binary are required.
type Config struct {
	Addr   netip.Addr // where it listens, and what nodes dial
	Dir    string     // for its database, keys, configuration, socket and log
	Binary string     // a headscale

	// DERPMap is what nodes are given; nil is none at all.
	DERPMap *tailcfg.DERPMap

	// Inactivity is how long an ephemeral node may be cut off before it is
	// deleted. 0 is Headscale's own default, 30 min; it takes no less than 65 s.
	Inactivity time.Duration
}

// Server is a running Headscale.
type Server struct {
	cfg  Config
	url  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of its end, valid once done is closed
}

// Start makes a configuration and starts Headscale. It returns when the server
// answers, or when ctx is done.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if _, err := os.Stat(cfg.Binary); err != nil {
		return nil, fmt.Errorf("missing %s; build it with: make lab-tools", cfg.Binary)
	}
	port, err := freePort(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("finding a port for Headscale: %w", err)
	}
	s := &Server{cfg: cfg, url: "http://" + netip.AddrPortFrom(cfg.Addr, port).String()}
	if err := s.configure(); err != nil {
		return nil, err
	}
	if err := s.run(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// freePort returns a TCP port that was free just now.
func freePort(addr netip.Addr) (uint16, error) {
	ln, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort().Port(), nil
}

func (s *Server) path(name string) string { return filepath.Join(s.cfg.Dir, name) }

// configure writes the server's files. JSON is YAML.
func (s *Server) configure() error {
	listen := strings.TrimPrefix(s.url, "http://")
	inactivity := s.cfg.Inactivity
	if inactivity == 0 {
		inactivity = 30 * time.Minute
	}
	derp := map[string]any{"server": map[string]any{"enabled": false}, "urls": []string{}, "paths": []string{}, "auto_update_enabled": false}
	if s.cfg.DERPMap != nil {
		derp["paths"] = []string{s.path("derp.yaml")}
		if err := s.writeDERPMap(s.cfg.DERPMap); err != nil {
			return err
		}
	}
	return s.write("config.yaml", map[string]any{
		"server_url": s.url, "listen_addr": listen,
		"metrics_listen_addr": "", "grpc_listen_addr": "",
		"noise":    map[string]any{"private_key_path": s.path("noise.key")},
		"prefixes": map[string]any{"v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48", "allocation": "sequential"},
		"derp":     derp,
		"database": map[string]any{"type": "sqlite", "sqlite": map[string]any{"path": s.path("db.sqlite"), "write_ahead_log": true}},
		"policy":   map[string]any{"mode": "database"},
		"dns": map[string]any{
			"magic_dns": true, "base_domain": Domain, "override_local_dns": false,
			"nameservers": map[string]any{"global": []string{}},
		},
		"node": map[string]any{"ephemeral": map[string]any{"inactivity_timeout": inactivity.String()}},
		// Before 0.29.
		"ephemeral_node_inactivity_timeout": inactivity.String(),
		"unix_socket":                       s.path("headscale.sock"), "unix_socket_permission": "0700",
		"logtail": map[string]any{"enabled": false}, "disable_check_updates": true,
		"log": map[string]any{"level": "debug", "format": "text"},
	})
}

// Domain is the MagicDNS domain.
const Domain = "lab.hs.net"

func (s *Server) write(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "\t")
	if err == nil {
		err = os.WriteFile(s.path(name), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("writing Headscale's %s: %w", name, err)
	}
	return nil
}

// writeDERPMap writes a DERP map in the form of Headscale's files: the fields'
// names in lower case, as yaml.v3 reads a struct without tags.
func (s *Server) writeDERPMap(m *tailcfg.DERPMap) error {
	out := []byte("regions:\n")
	for id, r := range m.Regions {
		var nodes []any
		for _, n := range r.Nodes {
			nodes = append(nodes, map[string]any{
				"name": n.Name, "regionid": n.RegionID, "hostname": n.HostName, "ipv4": n.IPv4, "ipv6": n.IPv6,
				"stunport": n.STUNPort, "derpport": n.DERPPort, "insecurefortests": n.InsecureForTests, "stuntestip": n.STUNTestIP,
			})
		}
		region, err := json.Marshal(map[string]any{
			"regionid": r.RegionID, "regioncode": r.RegionCode, "regionname": r.RegionName, "nodes": nodes,
		})
		if err != nil {
			return fmt.Errorf("writing Headscale's DERP map: %w", err)
		}
		out = fmt.Appendf(out, "  %d: %s\n", id, region)
	}
	if err := os.WriteFile(s.path("derp.yaml"), out, 0o600); err != nil {
		return fmt.Errorf("writing Headscale's DERP map: %w", err)
	}
	return nil
}

// run starts the process and waits until it answers.
func (s *Server) run(ctx context.Context) error {
	out, err := os.OpenFile(s.path("headscale.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("starting Headscale: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(s.cfg.Binary, "-c", s.path("config.yaml"), "serve")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting Headscale: %w", err)
	}
	s.cmd, s.done = cmd, make(chan struct{})
	go func(done chan struct{}) {
		s.err = cmd.Wait()
		close(done)
	}(s.done)
	err = wait.UntilEnd(ctx, pollInterval, s.done, func(ctx context.Context) error {
		_, err := s.CLI(ctx, "users", "list")
		return err
	})
	switch {
	case errors.Is(err, wait.ErrEnded):
		return fmt.Errorf("the headscale server has ended (%w): %s", s.err, s.tail())
	case err != nil:
		return fmt.Errorf("waiting for Headscale: %w", err)
	}
	return nil
}

const pollInterval = 50 * time.Millisecond

// tail is the end of the server's log.
func (s *Server) tail() string {
	all, _ := os.ReadFile(s.path("headscale.log"))
	lines := bytes.Split(bytes.TrimSpace(all), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-10):], []byte("\n")))
}

// Stop ends the process; what it keeps stays for Restart.
func (s *Server) Stop() error {
	if s.done == nil {
		return nil
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-s.done:
	case <-time.After(stopPatience):
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	s.done = nil
	return nil
}

// stopPatience is how long Headscale, which waits for its nodes' polls, gets.
const stopPatience = 3 * time.Second

// Restart starts the process again after Stop.
func (s *Server) Restart(ctx context.Context) error { return s.run(ctx) }

// Close ends the server.
func (s *Server) Close() error { return s.Stop() }

// URL is the login server's.
func (s *Server) URL() string { return s.url }

// LogPath is the file with all that the server has written.
func (s *Server) LogPath() string { return s.path("headscale.log") }
