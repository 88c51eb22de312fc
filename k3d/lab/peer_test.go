// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"context"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"tailscale-nri/k3d/lab/control"
)

// TestPeers has two stock peers, of both versions, meet in the tailnet: what the plugin's nodes will find there works.
func TestPeers(t *testing.T) {
	lab := upLab(t)
	plane, err := lab.StartControl(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	peers := map[string]*Peer{}
	for _, name := range []string{"peer", "peer2"} {
		peers[name] = startPeer(t, lab, plane, name)
	}
	for _, ip := range []netip.Addr{peers["peer2"].IP4, peers["peer2"].IP6} {
		assertCarries(t, peers["peer"], peers["peer2"], ip)
	}
	assertDevices(t, plane, peers)
	if out, err := exec.Command("ip", "-o", "addr").CombinedOutput(); err != nil || strings.Contains(string(out), "tailscale0") {
		t.Errorf("the machine itself has a peer's interface: %v: %s", err, out)
	}
}

func startPeer(t *testing.T, lab *Lab, plane *ControlPlane, name string) *Peer {
	t.Helper()
	key, err := plane.NewKey(t.Context(), "tag:peer")
	if err != nil {
		t.Fatal(err)
	}
	peer, err := lab.StartPeer(t.Context(), PeerConfig{
		Name: name, LoginServer: plane.ControlURL, AuthKey: key, Recent: name == "peer2",
	})
	if err != nil {
		t.Fatal(err)
	}
	if !peer.IP4.Is4() || !peer.IP6.Is6() {
		t.Errorf("%s has addresses %v and %v", name, peer.IP4, peer.IP6)
	}
	return peer
}

// assertCarries echoes over the tailnet with TCP, UDP and ICMP.
func assertCarries(t *testing.T, from, to *Peer, ip netip.Addr) {
	t.Helper()
	tool := from.lab.ToolPath()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	echo := to.Command(ctx, tool, "echo", net.JoinHostPort(ip.String(), "7"))
	if err := echo.Start(); err != nil {
		t.Fatal(err)
	}
	defer echo.Wait()
	defer cancel()
	addr := net.JoinHostPort(ip.String(), "7")
	eventually(t, "a stream to "+addr, func(ctx context.Context) error {
		_, err := from.Exec(ctx, tool, "stream", "-for", "50ms", "-every", "10ms", addr)
		return err
	})
	out, err := from.Exec(t.Context(), tool, "rr", "-udp", "-for", "20ms", addr)
	if err != nil || !strings.Contains(out, `"Lost":0`) {
		t.Errorf("UDP to %s: %v: %s", addr, err, out)
	}
	if out, err := from.Exec(t.Context(), tool, "ping", "-count", "3", ip.String()); err != nil {
		t.Errorf("pinging %s: %v: %s", ip, err, out)
	}
}

func assertDevices(t *testing.T, plane *ControlPlane, peers map[string]*Peer) {
	t.Helper()
	devices, err := plane.Devices(t.Context())
	if err != nil || len(devices) != len(peers) {
		t.Fatalf("the tailnet has %+v: %v", devices, err)
	}
	for _, d := range devices {
		if p := peers[d.Hostname]; p == nil || d.Addresses[0] != p.IP4 || !d.Online {
			t.Errorf("device %+v, peer %+v", d, p)
		}
	}
}

// TestControlPlane asks over the socket for all that the tailnet can do.
func TestControlPlane(t *testing.T) {
	lab := upLab(t)
	if _, err := lab.Control(t.Context()); err == nil {
		t.Error("a control plane answers before it was started")
	}
	if _, err := lab.StartControl(t.Context()); err != nil {
		t.Fatal(err)
	}
	plane, err := lab.Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{plane.ControlURL + "/key?v=138", plane.APIURL + "/"} {
		if out, err := lab.InNode(t.Context(), lab.ToolPath(), "get", url); err != nil && !strings.Contains(err.Error(), "404") {
			t.Errorf("GET %s from the node: %v: %s", url, err, out)
		}
	}
	for _, ask := range []func(context.Context) error{
		func(ctx context.Context) error { return plane.SetOutage(ctx, control.Refusing) },
		func(ctx context.Context) error { return plane.SetOutage(ctx, control.Up) },
		func(ctx context.Context) error { return plane.AddFault(ctx, control.Fault{Status: 500}) },
		plane.ClearFaults,
		func(ctx context.Context) error { _, err := plane.Counters(ctx); return err },
	} {
		if err := ask(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestStartPeerRefusesName(t *testing.T) {
	lab := &Lab{cfg: testConfig(t)}
	for _, name := range []string{"node", "net", "Peer", "a/b", "9", "p-2"} {
		if _, err := lab.StartPeer(t.Context(), PeerConfig{Name: name}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("peer name %q: %v", name, err)
		}
	}
}
