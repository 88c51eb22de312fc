// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"tailscale-nri/engine/internal/nstest"
)

// A pod with CAP_NET_ADMIN can send to netlink sockets of its netns. What it sends is
// not taken for the kernel's answer, and none of it reaches a socket that is connected.
func TestForgedAnswers(t *testing.T) {
	pod := newTestPod(t, 1)
	ns, err := netns.GetFromPath(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	open := func() rtnl {
		s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return rtnl{s}
	}
	asking, forging := open(), open()
	port, err := asking.GetPid()
	if err != nil {
		t.Fatal(err)
	}
	// "There is no such link", in answer to the first request.
	forged := binary.NativeEndian.AppendUint32(nil, unix.SizeofNlMsghdr+20)
	forged = binary.NativeEndian.AppendUint16(forged, unix.NLMSG_ERROR)
	forged = append(forged, 0, 0)
	forged = binary.NativeEndian.AppendUint32(forged, 1)
	forged = append(forged, 0, 0, 0, 0)
	notFound := -int32(unix.ENODEV)
	forged = binary.NativeEndian.AppendUint32(forged, uint32(notFound))
	forged = append(forged, make([]byte, 16)...)
	forge := func() error {
		return unix.Sendto(forging.GetFd(), forged, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port})
	}
	if err := forge(); err != nil {
		t.Fatalf("the forged answer cannot be sent, so that this test proves nothing: %v", err)
	}
	ts0, err := asking.byName(PodLink)
	if err != nil || ts0.Attrs().Name != PodLink {
		t.Errorf("with a forged answer %s is %v (%v)", PodLink, ts0, err)
	}

	connected, err := openRtnl(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	if port, err = connected.GetPid(); err != nil {
		t.Fatal(err)
	}
	if err := forge(); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("sending to a connected socket = %v, want that it is refused", err)
	}
}

// A link that has been given hundreds of names is described by one long message.
func TestLongAnswer(t *testing.T) {
	pod := newTestPod(t, 1)
	h := pod.Netlink()
	ts0, err := h.LinkByName(PodLink)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 400 {
		if err := h.LinkAddAltName(ts0, fmt.Sprintf("alt%d%s", i, strings.Repeat("x", 100))); err != nil {
			t.Fatal(err)
		}
	}
	mustEnsure(t, pod.Pod, pod.link.Host)
}

// A pod that renames its CNI's interface to ts0 does not have the other end taken for
// ours.
func TestRenamedCNI(t *testing.T) {
	pod := nstest.NewPod(t)
	h := pod.Netlink()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	name := fmt.Sprintf("cni%d", os.Getpid())
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(int(here))}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Remove(name) })
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetName(eth0, PodLink); err != nil {
		t.Fatal(err)
	}
	ns, err := FindNamespace(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	host := HostLink("renamedcni")
	if _, err := Ensure(ns, host, nil); err == nil || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("Ensure = %v", err)
	}
	if found, err := Exists(name); !found || err != nil {
		t.Errorf("the CNI's interface has another name (%v)", err)
	}
}

// What isolates a link is guarded from the moment that it is there.
func TestFoundBeforeIsolated(t *testing.T) {
	pod := nstest.NewPod(t)
	ns, err := FindNamespace(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	host, calls := HostLink("found"), 0
	t.Cleanup(func() { _ = Remove(host) })
	_, err = Ensure(ns, host, func(l *Link) {
		calls++
		link, err := netlink.LinkByIndex(l.hostIndex)
		if err != nil {
			t.Fatal(err)
		}
		if a := link.Attrs(); a.Name != host || a.RawFlags&unix.IFF_UP != 0 || a.ParentIndex != l.podIndex || a.NetNsID != l.nsid {
			t.Errorf("found with %+v as %+v", a, l)
		}
		if filters, err := netlink.FilterList(link, netlink.HANDLE_MIN_INGRESS); err != nil || len(filters) != 0 {
			t.Errorf("it is isolated by then: %v (%v)", filters, err)
		}
	})
	if err != nil || calls != 1 {
		t.Errorf("%d calls (%v), want 1", calls, err)
	}
}
