// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// PeerConfig says what a peer logs in to, and with what.
type PeerConfig struct {
	Name        string // of its namespaces, its log and in the tailnet; lower-case letters and digits. "" means "peer"
	LoginServer string // "" means Tailscale's own
	AuthKey     string
	// Recent runs the stock tailscaled of the engine's own version (bin/tailscaled-new). false means an older one, that of
	// tools/go.mod.
	Recent bool
}

// suffix is that of the peer's binaries.
func (c PeerConfig) suffix() string {
	if c.Recent {
		return "-new"
	}
	return ""
}

// Peer is a stock tailscaled in kernel mode, in namespaces of its own.
type Peer struct {
	lab     *Lab
	name    string
	suffix  string // of its binaries
	process *Process
	IP4     netip.Addr // in the tailnet
	IP6     netip.Addr
}

var peerName = regexp.MustCompile(`^[a-z][a-z0-9]{0,20}$`)

// StartPeer makes a peer and returns when it is in the tailnet. Peers end with the lab.
func (l *Lab) StartPeer(ctx context.Context, cfg PeerConfig) (*Peer, error) {
	cfg.Name = cmp.Or(cfg.Name, "peer")
	if !peerName.MatchString(cfg.Name) || cfg.Name == netNS || cfg.Name == nodeNS {
		return nil, fmt.Errorf("peer name %q is taken or not lower-case letters and digits; give another", cfg.Name)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return nil, errors.New("missing /dev/net/tun, which a stock tailscaled needs; load it with: modprobe tun")
	}
	peer := &Peer{lab: l, name: cfg.Name, suffix: cfg.suffix()}
	if err := CheckBuilt("lab-tools", peer.bin("tailscaled"), peer.bin("tailscale")); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if err := l.cfg.makeNetNode(ctx, l.nextPeer(cfg.Name)); err != nil {
		return nil, fmt.Errorf("making peer %s: %w", cfg.Name, err)
	}
	if err := peer.start(ctx); err != nil {
		return nil, err
	}
	return peer, peer.login(ctx, cfg)
}

// nextPeer gives the first peer PeerIP4 and PeerIP6 and each later one the next addresses.
func (l *Lab) nextPeer(name string) netNode {
	ip4, ip6 := netip.MustParseAddr(PeerIP4), netip.MustParseAddr(PeerIP6)
	made, _ := filepath.Glob(l.cfg.nsFile(mountNS("*")))
	nodes := len(l.nodes)
	if l.node != nil {
		nodes++
	}
	for range len(made) - nodes {
		ip4, ip6 = ip4.Next(), ip6.Next()
	}
	return netNode{name, ip4.String(), ip6.String(), func() error { return l.cfg.hideMachine(l.cfg.path(name, "run")) }}
}

// start runs tailscaled with its usual paths, which are the peer's own, and without Tailscale's log server.
func (p *Peer) start(ctx context.Context) (err error) {
	cmd := p.Command(context.WithoutCancel(ctx), p.bin("tailscaled"), "--no-logs-no-support",
		"--statedir=/var/lib/tailscale", "--socket="+peerSocket)
	p.process, err = p.lab.cfg.start(p.name, cmd)
	if err != nil {
		return err
	}
	return p.process.Await(ctx, func(ctx context.Context) error {
		_, err := os.Stat(p.lab.cfg.path(p.name, peerSocket))
		return err
	})
}

func (p *Peer) bin(name string) string { return p.lab.cfg.bin(name + p.suffix) }

const peerSocket = "/run/tailscale/tailscaled.sock"

// Restart ends the peer's tailscaled as a crash would and starts it again on the state that it has left.
func (p *Peer) Restart(ctx context.Context) error {
	if err := p.process.Kill(ctx); err != nil {
		return fmt.Errorf("ending peer %s: %w", p.name, err)
	}
	// It stays behind, and start takes it for the new one's.
	if err := os.Remove(p.lab.cfg.path(p.name, peerSocket)); err != nil {
		return fmt.Errorf("removing the socket of peer %s: %w", p.name, err)
	}
	return p.start(ctx)
}

// login hands the key over in a file, so that it is neither in the process list nor in an error.
func (p *Peer) login(ctx context.Context, cfg PeerConfig) error {
	const keyFile = "/run/authkey"
	outside := p.lab.cfg.path(p.name, keyFile)
	if err := os.WriteFile(outside, []byte(cfg.AuthKey), 0o600); err != nil {
		return fmt.Errorf("handing peer %s its key: %w", p.name, err)
	}
	defer os.Remove(outside)
	args := []string{"up", "--auth-key=file:" + keyFile, "--hostname=" + cfg.Name, "--accept-dns=false"}
	if cfg.LoginServer != "" {
		args = append(args, "--login-server="+cfg.LoginServer)
	}
	begin := time.Now()
	if _, err := p.Tailscale(ctx, args...); err != nil {
		return fmt.Errorf("logging peer %s in: %w", p.name, err)
	}
	p.lab.cfg.Logger.Info("peer is in the tailnet", "peer", p.name, "took", time.Since(begin).Round(time.Millisecond))
	return p.readAddrs(ctx)
}

func (p *Peer) readAddrs(ctx context.Context) error {
	out, err := p.Tailscale(ctx, "ip")
	if err != nil {
		return fmt.Errorf("asking peer %s for its addresses: %w", p.name, err)
	}
	for line := range strings.FieldsSeq(out) {
		addr, err := netip.ParseAddr(line)
		if err != nil {
			return fmt.Errorf("reading an address of peer %s: %w", p.name, err)
		}
		if addr.Is4() {
			p.IP4 = addr
		} else {
			p.IP6 = addr
		}
	}
	return nil
}

// Process is the peer's tailscaled.
func (p *Peer) Process() *Process { return p.process }

// Command runs a program in the peer's namespaces; it ends with ctx.
func (p *Peer) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return p.lab.cfg.command(ctx, p.name, name, args...)
}

// Exec runs a command in the peer's namespaces to its end and returns its standard output.
func (p *Peer) Exec(ctx context.Context, name string, args ...string) (string, error) {
	return Run(p.Command(ctx, name, args...))
}

// Tailscale runs the stock command line, such as Tailscale(ctx, "ping", "-c", "1", "100.64.0.2").
func (p *Peer) Tailscale(ctx context.Context, args ...string) (string, error) {
	return p.Exec(ctx, p.bin("tailscale"), append([]string{"--socket=" + peerSocket}, args...)...)
}
