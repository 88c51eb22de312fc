// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"tailscale-nri/engine/internal/nstest"
)

// A pod that may change its netns chooses the numbers of both ends of a veth
// pair of its own. What that says of the host's interfaces is not believed.
func TestForgedPair(t *testing.T) {
	c := newCluster(t, "tsforged")
	// An interface of the host's.
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "victim0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "victim1"}); err != nil {
		t.Fatal(err)
	}
	victim, err := netlink.LinkByName("victim0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(victim) })

	pod := c.pod.Netlink()
	ts0, err := pod.LinkByName(PodLink)
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.LinkDel(ts0); err != nil {
		t.Fatal(err)
	}
	c.pod.Do(func() error { return addForgedPair(ts0.Attrs().Index, victim.Attrs().Index) })
	if _, err := c.link.Restore(); !errors.Is(err, ErrGone) {
		t.Errorf("a forged pair was taken for the link: %v", err)
	}
	after, err := netlink.LinkByIndex(victim.Attrs().Index)
	if err != nil {
		t.Fatal(err)
	}
	if after.Attrs().Name != "victim0" || after.Attrs().RawFlags != victim.Attrs().RawFlags {
		t.Errorf("the host's interface was changed: %+v", after.Attrs())
	}
}

// A link whose end was put into another netns ends, so that another is made.
func TestEndInAnotherNetns(t *testing.T) {
	c := newCluster(t, "tsmoved")
	go readUntilError(c.device)
	ts0, err := c.pod.Netlink().LinkByName(PodLink)
	if err != nil {
		t.Fatal(err)
	}
	ns, err := os.Open(nstest.NewPod(t).Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := c.pod.Netlink().LinkSetNsFd(ts0, int(ns.Fd())); err != nil {
		t.Fatal(err)
	}
	if _, err := c.link.Restore(); !errors.Is(err, ErrGone) {
		t.Errorf("got %v, want that the link is gone", err)
	}
	select {
	case <-c.device.Gone():
	case <-time.After(20 * time.Second):
		t.Error("the device does not know that its link is gone")
	}
	mustEnsure(t, c.pod, "tsmoved")
}

// While ts0 is down, what has its address as its source does not leave by eth0.
func TestNoLeakWhileDown(t *testing.T) {
	c := newCluster(t, "tsleak")
	h := c.pod.Netlink()
	ts0, err := h.LinkByName(PodLink)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetDown(ts0); err != nil {
		t.Fatal(err)
	}
	routes, err := h.RouteGetWithOptions(net.ParseIP(peerAddr), &netlink.RouteGetOptions{SrcAddr: net.ParseIP(ownAddr)})
	if !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("to a peer there is %v (%v)", routes, err)
	}
	_, err = c.link.Restore()
	if _, rerr := c.router.Restore(); errors.Join(err, rerr) != nil {
		t.Fatal(err, rerr)
	}
	routes, err = h.RouteGetWithOptions(net.ParseIP(peerAddr), &netlink.RouteGetOptions{SrcAddr: net.ParseIP(ownAddr)})
	if err != nil || routes[0].LinkIndex != ts0.Attrs().Index {
		t.Errorf("afterwards there is %v (%v)", routes, err)
	}
}

// The filters are there again before the host end is up.
func TestFiltersComeFirst(t *testing.T) {
	pod := newTestPod(t, 1)
	host, err := netlink.LinkByName(pod.link.Host)
	if err != nil {
		t.Fatal(err)
	}
	clsact := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: host.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := errors.Join(netlink.LinkSetDown(host), netlink.QdiscDel(clsact), netlink.QdiscDel(rootQdisc(host, blackhole))); err != nil {
		t.Fatal(err)
	}
	heard, err := openEventSocket(unix.NETLINK_ROUTE, []int{unix.RTNLGRP_LINK, unix.RTNLGRP_TC})
	if err != nil {
		t.Fatal(err)
	}
	defer heard.file.Close()
	if _, err := pod.link.Restore(); err != nil {
		t.Fatal(err)
	}
	// What the kernel has done has been announced by now.
	w := filterWatch{index: uint32(host.Attrs().Index)}
	for buf, oob := make([]byte, 64<<10), make([]byte, 64); !w.raised; {
		var n, oobn int
		if cerr := heard.conn.Control(func(fd uintptr) { n, oobn, _, _, err = unix.Recvmsg(int(fd), buf, oob, 0) }); cerr != nil || err != nil {
			t.Fatalf("nothing was heard of the host end being raised: %v, %v", cerr, err)
		}
		if nsidOf(oob[:oobn]) == thisNetns {
			w.hear(t, buf[:n])
		}
	}
	if w.filters != 1 || w.qdiscs != 1 {
		t.Errorf("the host end is raised with %d filters and %d qdiscs, want 1 and 1", w.filters, w.qdiscs)
	}
}

// filterWatch counts what isolates a host end until that is raised.
type filterWatch struct {
	index           uint32
	filters, qdiscs int
	raised          bool
}

func (w *filterWatch) hear(t *testing.T, raw []byte) {
	messages, err := syscall.ParseNetlinkMessage(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		switch {
		case w.raised, binary.NativeEndian.Uint32(m.Data[4:]) != w.index:
		case m.Header.Type == unix.RTM_NEWTFILTER:
			w.filters++
		case m.Header.Type == unix.RTM_NEWQDISC:
			if (answer{msg: m.Data}).qdiscKind() == blackhole {
				w.qdiscs++
			}
		case m.Header.Type == unix.RTM_NEWLINK:
			w.raised = binary.NativeEndian.Uint32(m.Data[8:])&unix.IFF_UP != 0
		}
	}
}

// addForgedPair makes a veth pair of these numbers, in the netns of the thread.
func addForgedPair(index, peerIndex int) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(PodLink)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC).Index = int32(peerIndex)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("forged0"))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// A begun link lets nothing of the host pass, and nothing at all while its host end is
// down. Ensure completes it, also if somebody else has raised that.
func TestBegin(t *testing.T) {
	for _, done := range []string{"", "raised", "renamed"} {
		pod := nstest.NewPod(t)
		ns, err := FindNamespace(pod.Path())
		if err != nil {
			t.Fatal(err)
		}
		name := HostLink("begin" + done)
		t.Cleanup(func() { _ = Remove(name) })
		begun, err := Begin(ns, name, nil)
		if err != nil {
			t.Fatal(err)
		}
		host, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if host.Attrs().RawFlags&unix.IFF_UP != 0 {
			t.Error("the host end is up")
		}
		expectQdiscs(t, host)
		switch done {
		case "raised":
			err = netlink.LinkSetUp(host)
		case "renamed":
			err = netlink.LinkSetName(host, fmt.Sprint("other", os.Getpid()))
		}
		if err != nil {
			t.Fatal(err)
		}
		if filters, err := netlink.FilterList(host, netlink.HANDLE_MIN_INGRESS); err != nil || len(filters) != 0 {
			t.Errorf("%d filters are there before Ensure (%v), which then has nothing to prove", len(filters), err)
		}
		whole := mustEnsure(t, pod, name)
		if whole.hostIndex != begun.hostIndex {
			t.Errorf("Ensure made another link: index %d, then %d", begun.hostIndex, whole.hostIndex)
		}
		if filters, err := netlink.FilterList(host, netlink.HANDLE_MIN_INGRESS); err != nil || len(filters) != 1 {
			t.Errorf("%d filters after Ensure (%v), want 1", len(filters), err)
		}
		expectQdiscs(t, host)
		if addrs, err := netlink.AddrList(host, netlink.FAMILY_ALL); err != nil || len(addrs) != 0 {
			t.Errorf("the host end has the addresses %v (%v)", addrs, err)
		}
		if missing, err := whole.Restore(); err != nil || len(missing) != 0 {
			t.Errorf("Restore says that %q were missing (%v)", missing, err)
		}
		if again, err := Begin(ns, name, nil); err != nil || again.hostIndex != whole.hostIndex {
			t.Errorf("Begin of a whole link = %+v, %v", again, err)
		}
	}
}

// expectQdiscs checks that a host end has both its qdiscs.
func expectQdiscs(t *testing.T, host netlink.Link) {
	t.Helper()
	list, err := netlink.QdiscList(host)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, q := range list {
		kinds = append(kinds, q.Type())
	}
	for _, want := range []string{blackhole, "clsact"} {
		if !slices.Contains(kinds, want) {
			t.Errorf("the host end has the qdiscs %q, and not %s", kinds, want)
		}
	}
}
