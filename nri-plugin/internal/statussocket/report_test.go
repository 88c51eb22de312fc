// SPDX-License-Identifier: BSD-3-Clause

package statussocket

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale-nri/engine"
	"tailscale-nri/engine/measure"
	"tailscale-nri/nri-plugin/internal/status"
)

// TestNodeOf: nothing that the engine knows is lost, or another thing's.
func TestNodeOf(t *testing.T) {
	at := func(n int64) time.Time { return time.Unix(n, 0) }
	d := engine.Detail{
		NodeStatus: engine.NodeStatus{
			Namespace: "ns", Pod: "pod", UID: "uid", SandboxID: "sb", State: engine.Running, Reason: "why",
			Hostname: "asked", DNSName: "given.ts.net", Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1")}, Tags: []string{"tag:a"}, NodeID: "n1",
			Since: at(1), AttachedAt: at(2), ReadyIn: 1500 * time.Millisecond, Features: engine.Features{DNS: true, Profile: "lab"},
		},
		LoginServer: "https://hs", Active: true, Path: measure.DERP, PathDERP: "fra",
		Measured: measure.Pod{Control: true, KeyExpiry: at(3), HomeDERP: "nyc", Newest: at(4), Oldest: at(5), Peers: 6, Sessions: 7},
		Sessions: []engine.PeerSession{
			{Name: "p", Address: netip.MustParseAddr("100.64.0.2"), Active: true, Path: measure.PeerRelay, Endpoint: "e", LastWrite: at(8), LastHandshake: at(9), BytesIn: 10, BytesOut: 11},
			{Name: "q", DERP: "fra"},
		},
	}
	for path := range measure.Paths {
		d.Measured.Traffic[path] = [2]measure.Traffic{measure.In: {Packets: 1, Bytes: 100}, measure.Out: {Packets: 1, Bytes: 1000}}
	}
	want := status.Node{
		Namespace: "ns", Pod: "pod", UID: "uid", SandboxID: "sb", State: status.Running, Reason: "why",
		Hostname: "asked", DNSName: "given.ts.net", Addresses: d.Addresses, Tags: d.Tags, NodeID: "n1", LoginServer: "https://hs", Profile: "lab",
		Features: map[string]string{"dns": "true"}, Since: at(1), AttachedAt: at(2), ReadyIn: 1.5,
		ControlConnected: true, KeyExpiry: at(3), Path: status.DERP, DERP: "nyc", PathDERP: "fra", LastHandshake: at(4),
		BytesIn: 400, BytesOut: 4000, LocalBytesIn: 100, LocalBytesOut: 1000, Peers: 6, Sessions: 7, SessionPeers: []status.Peer{
			{Name: "p", Address: netip.MustParseAddr("100.64.0.2"), Path: status.PeerRelay, Endpoint: "e", LastWrite: at(8), LastHandshake: at(9), BytesIn: 10, BytesOut: 11},
			{Name: "q", DERP: "fra"},
		},
	}
	if got := nodeOf(&d); !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
	text, err := json.Marshal(want)
	for v := range slices.Values(reflect.VisibleFields(reflect.TypeFor[status.Node]())) {
		if key, _, _ := strings.Cut(v.Tag.Get("json"), ","); err != nil || !strings.Contains(string(text), `"`+key+`":`) {
			t.Errorf("%s is not tried: %v", v.Name, err)
		}
	}
	for name, state := range map[string]engine.State{status.Pending: engine.Pending, status.Running: engine.Running, status.Stopped: engine.Stopped, status.Leaving: engine.Leaving} {
		if string(state) != name {
			t.Errorf("the engine says %s, the status %s", state, name)
		}
	}
	d.Active = false
	if got := nodeOf(&d); got.Path != "" {
		t.Errorf("idle: %+v", got)
	}
}
