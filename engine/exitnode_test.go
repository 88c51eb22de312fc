// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"tailscale.com/tailcfg"
)

// A peer is found by each of its names, one of another tailnet by its whole name alone,
// and is the exit node if it is the only one that offers to be.
func TestChooseExit(t *testing.T) {
	peer := func(id tailcfg.NodeID, name, addr string, routes ...string) tailcfg.NodeView {
		n := &tailcfg.Node{ID: id, Name: name, Addresses: []netip.Prefix{netip.MustParsePrefix(addr + "/32")}}
		n.AllowedIPs = n.Addresses
		for _, r := range routes {
			n.AllowedIPs = append(n.AllowedIPs, netip.MustParsePrefix(r))
		}
		return n.View()
	}
	peers := []tailcfg.NodeView{
		peer(1, "gate.lab.ts.net.", "100.64.0.1", "0.0.0.0/0", "::/0"),
		peer(2, "gate.other.ts.net.", "100.64.0.2", "0.0.0.0/0"),
		peer(3, "gate2.lab.ts.net.", "100.64.0.3", "::/0"),
		peer(4, "plain.lab.ts.net.", "100.64.0.4", "10.0.0.0/8"),
		peer(5, "hall.lab.ts.net.", "100.64.0.5", "0.0.0.0/0"),
		peer(6, "hall.lab.ts.net.", "100.64.0.6"),
		peer(7, "twin.lab.ts.net.", "100.64.0.7", "0.0.0.0/0"),
		peer(8, "twin.lab.ts.net.", "100.64.0.8", "0.0.0.0/0"),
		peer(9, "yard.other.ts.net.", "100.64.0.9", "0.0.0.0/0"),
	}
	for name, want := range map[string]string{
		"twin": "the name of 2 peers", "gate": "1", "yard": "not known", "yard.other.ts.net": "9", "GATE.lab.ts.net": "1", "gate.other.ts.net.": "2", "gate2": "3", "100.64.0.1": "1", "100.64.0.99": "not known",
		"plain": "offers none", "100.64.0.4": "offers none", "hall": "5", "gat": "not known", "lab.ts.net": "not known",
	} {
		var named []tailcfg.NodeView
		for _, p := range peers {
			if isNamed(p, name, "lab.ts.net") {
				named = append(named, p)
			}
		}
		got, wrong := chooseExit(name, named)
		if got.Valid() {
			if id := strconv.Itoa(int(got.ID())); id != want {
				t.Errorf("%s is peer %s, want %s", name, id, want)
			}
			continue
		}
		if !strings.Contains(wrong, want) || !strings.Contains(wrong, "exit node "+name) {
			t.Errorf("%s: %q, want %s", name, wrong, want)
		}
	}
}
