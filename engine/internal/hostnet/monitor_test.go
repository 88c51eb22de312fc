// SPDX-License-Identifier: BSD-3-Clause

package hostnet

import (
	"testing"
	"time"

	"tailscale-nri/engine/internal/nstest"

	"github.com/vishvananda/netlink"
	"tailscale.com/net/netmon"
	"tailscale.com/util/eventbus"
)

// follow returns what a node of the monitor hears.
func follow(t *testing.T, m *Monitor) (*Follower, <-chan netmon.ChangeDelta) {
	t.Helper()
	bus := eventbus.New()
	t.Cleanup(bus.Close)
	heard := make(chan netmon.ChangeDelta, 16)
	eventbus.SubscribeFunc(bus.Client("backend"), func(d netmon.ChangeDelta) { heard <- d })
	f := m.Follow(bus)
	t.Cleanup(f.Stop)
	return f, heard
}

// last is the state that the node knows.
func (f *Follower) last() *netmon.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}

// awaitAddress waits for a change after which the host has the address.
func awaitAddress(t *testing.T, heard <-chan netmon.ChangeDelta, name string) {
	t.Helper()
	for late := time.After(20 * time.Second); ; {
		select {
		case d := <-heard:
			if len(d.CurrentState().InterfaceIPs[name]) > 0 {
				return
			}
		case <-late:
			t.Fatalf("heard nothing of %s", name)
		}
	}
}

// Each node hears of a change, a node whose backend was not there yet as soon as it
// is, and one that has ended hears of nothing.
func TestMonitor(t *testing.T) {
	m, err := NewMonitor(t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	one, atOne := follow(t, m)
	two, atTwo := follow(t, m)
	ended, atEnded := follow(t, m)
	one.Ready()
	ended.Ready()
	ended.Stop()
	nstest.HostLink(t, "hostnet0", "192.0.2.78/32")
	awaitAddress(t, atOne, "hostnet0")
	if len(atTwo) > 0 {
		t.Error("a backend that was not there yet was told")
	}
	two.Ready()
	awaitAddress(t, atTwo, "hostnet0")
	if len(atEnded) > 0 {
		t.Error("a node that has ended was told")
	}
	for late := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if one.last() == two.last() && one.last() == m.InterfaceState() {
			break // the state is one for all, and not one for each
		}
		if time.Now().After(late) {
			t.Fatal("the followers hold states of their own")
		}
	}
}

// What a node hears leads from the state that it knew, in whatever order the
// monitor's calls come, and what it knows already is not said again.
func TestFollowerGoesByTheState(t *testing.T) {
	m, err := NewMonitor(t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f, heard := follow(t, m)
	f.Ready()
	nstest.HostLink(t, "hostnet1", "192.0.2.79/32")
	awaitAddress(t, heard, "hostnet1")
	for len(heard) > 0 {
		<-heard
	}
	f.changed(0) // of an earlier change, late
	select {
	case d := <-heard:
		t.Errorf("heard %s again", d.StateDesc())
	case <-time.After(100 * time.Millisecond):
	}
	f.changed(time.Minute) // the host has slept, and nothing else has changed
	select {
	case d := <-heard:
		if d.JumpDuration != time.Minute {
			t.Errorf("the host slept for %v, want 1m", d.JumpDuration)
		}
	case <-time.After(20 * time.Second):
		t.Error("heard nothing of the host's sleep")
	}
}

// staleMonitor returns a monitor that has looked at the list of interfaces before that
// was outdated: it has missed the address of a link.
func staleMonitor(t *testing.T, name, cidr string) *Monitor {
	t.Helper()
	in := theInterfaces()
	looked := make(chan bool, 64)
	netmon.RegisterInterfaceGetter(func() ([]netmon.Interface, error) {
		looked <- true
		return in.get()
	})
	t.Cleanup(func() { netmon.RegisterInterfaceGetter(in.get) })
	m, err := NewMonitor(t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	in.outdate(1) // as if somebody watched, who hears of nothing yet
	defer in.outdate(-1)
	if _, err := in.get(); err != nil {
		t.Fatal(err)
	}
	nstest.HostLink(t, name, cidr)
	for quiet := false; !quiet; { // the kernel has events of a new link for two seconds
		select {
		case <-looked:
		case <-time.After(3 * time.Second):
			quiet = true
		}
	}
	if _, ok := m.InterfaceState().Interface[name]; ok {
		t.Error("the list was asked for again")
	}
	return m
}

// The monitor hears of a change by a socket of its own, and may look at the list before
// the list's watch has heard of it: then it has to look again.
func TestMonitorLooksAgain(t *testing.T) {
	m := staleMonitor(t, "hostnet2", "192.0.2.80/32")
	f, heard := follow(t, m)
	f.Ready()
	done := make(chan struct{})
	defer close(done)
	ShareInterfaces(m, done, func(err error) { t.Error(err) })
	awaitAddress(t, heard, "hostnet2")
}

// A node that starts finds the host as it is, whatever the monitor has missed.
func TestMonitorLooksForNewNodes(t *testing.T) {
	f, heard := follow(t, staleMonitor(t, "hostnet3", "192.0.2.82/32"))
	f.Ready()
	awaitAddress(t, heard, "hostnet3")
}

// The first state is of the same list as all later ones, which leaves the pods' links
// out: else the first event would be a change for each node.
func TestMonitorBegins(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "podlike"
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "podlikep"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = netlink.LinkDel(link) }()
	m, err := NewMonitor(t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, ok := m.InterfaceState().Interface["podlike"]; ok {
		t.Error("the first state has a link that no path can go over")
	}
}
