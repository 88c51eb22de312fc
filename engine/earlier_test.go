// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
)

// A link that an earlier version has made keeps its name, its addresses and its
// pod's connections for as long as the sandbox lives. Where the record of it is lost, it
// gets the name of today and keeps the rest. The next sandbox of the pod has the name
// of today.
func TestLinkOfEarlierVersion(t *testing.T) {
	w := newWorld(t)
	w.boot()
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	w.mustAttach(podA)
	w.mustAttach(podB)
	before, nodeB := w.await(podA.UID, Running), w.await(podB.UID, Running)
	conn := dialEcho(t, a, b, nodeB.Addresses[0])
	w.halt()

	path := filepath.Join(w.dir, podA.UID, podstate.RecordFile)
	if err := toEarlierVersion(path, podA.SandboxID); err != nil {
		t.Fatal(err)
	}
	earlier := "ts" + podA.SandboxID
	for _, tt := range []struct {
		name    string
		spoil   func() error
		earlier bool // the name that the link has
	}{
		{"its record", func() error { return nil }, true},
		{"no record", func() error { return os.Remove(path) }, false},
	} {
		name := tt.name
		if err := tt.spoil(); err != nil {
			t.Fatal(err)
		}
		w.boot()
		w.mustAttach(podA)
		after := w.await(podA.UID, Running)
		w.await(podB.UID, Running)
		if after.NodeID != before.NodeID || after.Addresses[0] != before.Addresses[0] {
			t.Errorf("with %s: %s %v, before %s %v", name, after.NodeID, after.Addresses, before.NodeID, before.Addresses)
		}
		if err := exchange(conn, "after"); err != nil {
			t.Errorf("with %s the connection did not survive: %v", name, err)
		}
		expectLinks(t, name, map[string]bool{earlier: tt.earlier, podnet.HostLink(podA.SandboxID): !tt.earlier})
		w.halt()
	}

	w.boot()
	_, next := w.pod("a")
	next.SandboxID = "sbnext"
	w.mustAttach(next)
	w.await(next.UID, Running)
	expectLinks(t, "the next sandbox", map[string]bool{earlier: false, podnet.HostLink(next.SandboxID): true})
	w.halt()
}

// toEarlierVersion gives a sandbox's link, and its record, the earlier name.
func toEarlierVersion(path, sandboxID string) error {
	link, err := netlink.LinkByName(podnet.HostLink(sandboxID))
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	record := strings.Replace(string(data), podnet.HostLink(sandboxID), "ts"+sandboxID, 1)
	return errors.Join(
		netlink.LinkSetDown(link), // before Linux 6.2 a link that is up keeps its name
		netlink.LinkSetName(link, "ts"+sandboxID),
		netlink.LinkSetUp(link),
		os.WriteFile(path, []byte(record), 0o600),
	)
}

func expectLinks(t *testing.T, what string, want map[string]bool) {
	t.Helper()
	for name, there := range want {
		if found, err := podnet.Exists(name); err != nil || found != there {
			t.Errorf("%s: %s is there: %v (%v), want %v", what, name, found, err, there)
		}
	}
}
