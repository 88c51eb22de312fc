// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tailscale.com/wgengine/router"

	"tailscale-nri/engine/internal/nstest"
)

// guardedCluster is a cluster whose pod's link is restored whenever the watch asks for
// it.
type guardedCluster struct {
	*cluster
	watch    *Watch
	host     string
	pod      *netlink.Handle
	ts0      netlink.Link // as it was at first
	want     string       // see show
	restored atomic.Int32
	minded   atomic.Int32 // changes in the pod
	heard    func(Change)
}

func guardCluster(t *testing.T, host string) *guardedCluster {
	t.Helper()
	c := &guardedCluster{cluster: newCluster(t, host), host: host}
	c.pod = c.cluster.pod.Netlink()
	w, err := OpenWatch()
	if err != nil {
		t.Fatal(err)
	}
	c.watch = w
	var ended []chan struct{}
	done := make(chan struct{})
	spawn := func(f func()) {
		over := make(chan struct{})
		ended = append(ended, over)
		go func() { defer close(over); f() }()
	}
	spawn(func() { w.Run(done, func(err error) { t.Errorf("the watch was lost: %v", err) }) })
	wake := make(chan struct{}, 1)
	c.heard = func(change Change) {
		if c.router.MayAffect(change) {
			if change.kind != changedDropFilters {
				c.minded.Add(1)
			}
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}
	w.Add(c.link, c.heard)
	spawn(func() {
		for {
			select {
			case <-done:
				return
			case <-wake:
			}
			c.restored.Add(1)
			missing, err := c.link.Restore()
			more, rerr := c.router.Restore()
			t.Logf("restored %q (%v)", append(missing, more...), errors.Join(err, rerr))
		}
	})
	t.Cleanup(func() {
		close(done)
		for _, over := range ended {
			<-over
		}
	})
	if c.ts0, err = c.pod.LinkByName(PodLink); err != nil {
		t.Fatal(err)
	}
	c.want = show(t, c.pod)
	return c
}

// intact returns what is not as it was.
func (c *guardedCluster) intact(t *testing.T) error {
	t.Helper()
	host, err := netlink.LinkByName(c.host)
	if err != nil {
		return err
	}
	if filters, err := netlink.FilterList(host, netlink.HANDLE_MIN_INGRESS); err != nil || len(filters) == 0 {
		return fmt.Errorf("no filter (%w)", err)
	}
	qdiscs, err := netlink.QdiscList(host)
	isRoot := func(q netlink.Qdisc) bool { return q.Attrs().Parent == netlink.HANDLE_ROOT && q.Type() == blackhole }
	if err != nil || !slices.ContainsFunc(qdiscs, isRoot) {
		return fmt.Errorf("the root qdisc is not %s: %v (%w)", blackhole, qdiscs, err)
	}
	ts0, err := c.pod.LinkByName(PodLink)
	if err != nil {
		return err
	}
	for _, l := range []netlink.Link{host, ts0} {
		if a := l.Attrs(); a.RawFlags&fineFlags != fineFlags || a.MTU != MTU {
			return fmt.Errorf("%s has flags %x and MTU %d", a.Name, a.RawFlags, a.MTU)
		}
	}
	if mac := ts0.Attrs().HardwareAddr.String(); mac != c.ts0.Attrs().HardwareAddr.String() {
		return fmt.Errorf("ts0 has the MAC address %s", mac)
	}
	if got := show(t, c.pod); got != c.want {
		return fmt.Errorf("ts0 has\n%s\nwant\n%s", got, c.want)
	}
	return nil
}

func (c *guardedCluster) until(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func (c *guardedCluster) ipv6Off(value string) error {
	var err error
	c.cluster.pod.Do(func() error {
		err = os.WriteFile("/proc/sys/net/ipv6/conf/ts0/disable_ipv6", []byte(value), 0)
		return nil
	})
	return err
}

func (c *guardedCluster) deleteRoutes(h *netlink.Handle) error {
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	for i := range routes {
		err = errors.Join(err, unlessGone(h.RouteDel(&routes[i])))
	}
	return err
}

// unlessGone leaves out the error of what is gone already: the guard may be restoring
// the rest by then, and removes it for that.
func unlessGone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func deleteRules(h *netlink.Handle) error {
	rules, err := h.RuleList(netlink.FAMILY_ALL)
	for i := range rules {
		if rules[i].Protocol == routeProtocol {
			err = errors.Join(err, unlessGone(h.RuleDel(&rules[i])))
		}
	}
	return err
}

// Whatever is changed about the link, at either end, comes back, and the socket
// on it goes on.
func TestChangesAreRestored(t *testing.T) {
	c := guardCluster(t, "tsrestored")
	got := packetsOf(t, c.device)
	h, ts0 := c.pod, c.ts0
	host, err := netlink.LinkByName(c.host)
	if err != nil {
		t.Fatal(err)
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	deleteAddr := func(addr string) error {
		return h.AddrDel(ts0, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(addr))})
	}
	for _, tt := range []struct {
		name   string
		change func() error
	}{
		{"ts0 down", func() error { return h.LinkSetDown(ts0) }},
		{"ts0 down and up", func() error { return errors.Join(h.LinkSetDown(ts0), h.LinkSetUp(ts0)) }},
		{"ARP on", func() error { return h.LinkSetARPOn(ts0) }},
		{"another MTU", func() error { return h.LinkSetMTU(ts0, 1500) }},
		{"another MAC address", func() error { return h.LinkSetHardwareAddr(ts0, mac) }},
		{"ts0 renamed", func() error { return h.LinkSetName(ts0, "vpn0") }},
		{"routes deleted", func() error { return c.deleteRoutes(h) }},
		{"rules deleted", func() error { return deleteRules(h) }},
		{"IPv4 address deleted", func() error { return deleteAddr(ownAddr + "/32") }},
		{"IPv6 address deleted", func() error { return deleteAddr(ownAddr6 + "/128") }},
		{"IPv6 off and on", func() error { return errors.Join(c.ipv6Off("1"), c.ipv6Off("0")) }},
		{"filters deleted", func() error {
			return netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: host.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
			}})
		}},
		{"qdisc deleted", func() error { return netlink.QdiscDel(rootQdisc(host, blackhole)) }},
		{"another qdisc", func() error { return netlink.QdiscReplace(rootQdisc(host, "pfifo")) }},
		{"filter deleted", func() error {
			filters, err := netlink.FilterList(host, netlink.HANDLE_MIN_INGRESS)
			for _, f := range filters {
				err = errors.Join(err, netlink.FilterDel(f))
			}
			return err
		}},
		{"host end down", func() error { return netlink.LinkSetDown(host) }},
		{"host end down and up", func() error { return errors.Join(netlink.LinkSetDown(host), netlink.LinkSetUp(host)) }},
		{"host end renamed", func() error { return netlink.LinkSetName(host, "lan7") }},
		{"host end's MAC address", func() error { return netlink.LinkSetHardwareAddr(host, mac) }}, // as udev does
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.change(); err != nil {
				t.Fatal(err)
			}
			c.until(t, "not back", func() error { return c.intact(t) })
			src, dst := netip.MustParseAddr(peerAddr6), netip.MustParseAddr(ownAddr6)
			// The kernel makes an IPv6 address's own route in a thread of its own.
			c.until(t, "no answer", func() error {
				if _, err := c.device.Write([][]byte{pingPacket(t, src, dst)}, 0); err != nil {
					return err
				}
				select {
				case f := <-got:
					if f == (flow{dst, src}) {
						return nil
					}
				case <-time.After(100 * time.Millisecond):
				}
				return errors.New("another packet, or none")
			})
		})
	}
}

// IPv6 may be off for long: its node has IPv4 meanwhile.
func TestIPv6ComesBack(t *testing.T) {
	c := guardCluster(t, "tsv6back")
	if err := c.ipv6Off("1"); err != nil {
		t.Fatal(err)
	}
	want := "addr " + ownAddr + "/32\n"
	c.until(t, "IPv6 is still there", func() error {
		if got := show(t, c.pod); !strings.HasPrefix(got, want) || strings.Contains(got, "fd7a:") {
			return fmt.Errorf("ts0 has\n%s", got)
		}
		return nil
	})
	if err := c.ipv6Off("0"); err != nil {
		t.Fatal(err)
	}
	c.until(t, "not back", func() error { return c.intact(t) })
}

// Changes that the router makes itself, and changes of other pods, cause no call.
func TestOwnChangesAreNone(t *testing.T) {
	c := guardCluster(t, "tsown")
	for i := range 20 {
		// With new addresses all rules are made again.
		if i == 10 {
			c.awaitQuiet(t)
			if n := c.minded.Load(); n != 0 {
				t.Errorf("%d of our own changes counted as another's", n)
			}
		}
		cfg := &router.Config{
			LocalAddrs: prefixes(fmt.Sprintf("100.64.0.%d/32", 7-i/10), fmt.Sprintf("fd7a:115c:a1e0::%d/128", 7-i/10)),
			Routes:     prefixes(fmt.Sprintf("100.64.0.%d/32", i+10), "192.0.2.0/24", "fd7a:115c:a1e0::/48"),
		}
		if err := c.router.Set(cfg); err != nil {
			t.Fatal(err)
		}
	}
	other := mustEnsure(t, nstest.NewPod(t), "tsownother")
	if err := Remove(other.Host); err != nil {
		t.Fatal(err)
	}
	c.want = show(t, c.pod)
	c.awaitQuiet(t)
	if n := c.minded.Load(); n > 10 {
		t.Errorf("%d of our own changes counted as another's, with new addresses once", n)
	}
}

func rootQdisc(link netlink.Link, kind string) netlink.Qdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT},
		QdiscType:  kind,
	}
}

// awaitQuiet returns when all that has happened has been heard.
func (c *guardedCluster) awaitQuiet(t *testing.T) {
	t.Helper()
	before := c.restored.Load()
	host, err := netlink.LinkByName(c.host)
	if err != nil {
		t.Fatal(err)
	}
	filters, err := netlink.FilterList(host, netlink.HANDLE_MIN_INGRESS)
	for _, f := range filters {
		err = errors.Join(err, netlink.FilterDel(f))
	}
	if err != nil {
		t.Fatal(err)
	}
	c.until(t, "not heard", func() error {
		if c.restored.Load() == before {
			return errors.New("the watch is silent")
		}
		return nil
	})
}

// When messages are lost, all links are checked.
func TestLostMessages(t *testing.T) {
	c := guardCluster(t, "tslost")
	c.watch.Remove(c.host) // hears nothing
	if err := deleteRules(c.pod); err != nil {
		t.Fatal(err)
	}
	c.watch.Add(c.link, c.heard)
	c.watch.lookAtAll(Change{kind: changedUnseen})
	c.until(t, "not back", func() error { return c.intact(t) })
}

// A link that is down is not gone, and one that goes while it is down is.
func TestDownIsNotGone(t *testing.T) {
	pod := newTestPod(t, 1)
	d := mustOpen(t, pod.link)
	go readUntilError(d)
	host, err := netlink.LinkByName(pod.link.Host)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetDown(host); err != nil {
		t.Fatal(err)
	}
	ping := pingPacket(t, netip.MustParseAddr(peerAddr), pod.v4)
	for deadline := time.Now().Add(10 * time.Second); !d.down.Load(); time.Sleep(time.Millisecond) {
		if _, err := d.Write([][]byte{ping}, 0); err != nil && !errors.Is(err, unix.ENETDOWN) {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("the device has not noticed that its link is down")
		}
	}
	select {
	case <-d.Gone():
		t.Error("a link that is down counts as gone")
	default:
	}
	if err := netlink.LinkDel(host); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Gone():
	case <-time.After(20 * time.Second):
		t.Error("nothing noticed that the link is gone")
	}
}
