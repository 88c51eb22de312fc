// SPDX-License-Identifier: BSD-3-Clause

package hostnet

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"tailscale.com/net/netmon"
)

// The shared list follows what happens, and is not asked for while nothing does.
func TestSharedInterfaces(t *testing.T) {
	in, done := newInterfaces(listInterfaces), make(chan struct{})
	defer close(done)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "shared0"
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "shared1"}
	has := func() bool {
		list, err := in.get()
		if err != nil {
			t.Error(err)
		}
		return slices.ContainsFunc(list, func(i netmon.Interface) bool { return i.Name == attrs.Name })
	}
	var found atomic.Bool // by the last look
	go in.watch(done, func(err error) { t.Error(err) }, func() { found.Store(has()) })
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("not seen: " + what)
			}
		}
	}
	settled := func() bool {
		in.mu.Lock()
		defer in.mu.Unlock()
		return in.fresh
	}
	until("it watches", func() bool { return !has() && settled() })
	addr, err := netlink.ParseAddr("192.0.2.77/32")
	if err == nil {
		err = netlink.LinkAdd(link)
	}
	if err == nil {
		err = netlink.AddrAdd(link, addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	until("a new address", has)
	until("a look at a new address", found.Load)
	checkCopied(t)
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	until("a link that is gone", func() bool { return !has() })
	until("a look after a link has gone", func() bool { return !found.Load() })
}

// A pod's link that comes and goes, and has no address but IPv6's own, leaves the
// list as it is; an address, or a change of a link that has one, does not.
func TestSharedInterfacesLeaveOutPods(t *testing.T) {
	in := &interfaces{fresh: true, watches: 1, list: []netmon.Interface{{Interface: &net.Interface{Index: 7}}}}
	for _, c := range []struct {
		what string
		link int
		addr string
		want bool // still fresh
	}{
		{"another link", 8, "", true},
		{"another link's own address", 8, "fe80::1", true},
		{"another link's IPv4 address", 8, "10.42.0.1", false},
		{"another link's IPv6 address", 8, "fd00::1", false},
		{"a listed link", 7, "", false},
		{"a listed link's own address", 7, "fe80::1", false},
	} {
		in.fresh = true
		if outdated := in.changed(c.link, net.ParseIP(c.addr)); in.fresh != c.want || outdated == c.want {
			t.Errorf("%s: fresh is %v, and outdated by that %v, want fresh: %v", c.what, in.fresh, outdated, c.want)
		}
	}
}

// A list that the kernel has interrupted, since an address came or went meanwhile, is
// asked for again, and is no error.
func TestInterruptedList(t *testing.T) {
	const links = 100 // whose addresses the kernel needs several answers for
	var last netlink.Link
	for i := range links {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("many%d", i)
		link := &netlink.Veth{LinkAttrs: attrs, PeerName: fmt.Sprintf("manyp%d", i)}
		err := netlink.LinkAdd(link)
		if err == nil {
			defer func() { _ = netlink.LinkDel(link) }()
		}
		for n := range 3 {
			addr, parseErr := netlink.ParseAddr(fmt.Sprintf("fd77::%x:%x/128", i, n))
			if err = errors.Join(err, parseErr); err == nil {
				err = netlink.AddrAdd(link, addr)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		last = link
	}
	addr, err := netlink.ParseAddr("fe80::77/64")
	if err != nil {
		t.Fatal(err)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := errors.Join(netlink.AddrAdd(last, addr), netlink.AddrDel(last, addr)); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	defer func() { close(done); <-ended }()
	for i := range 200 {
		if _, err := listInterfaces(); err != nil {
			t.Fatalf("list %d: %v", i, err)
		}
	}
}

// After a list that could not be had there is another look.
func TestFailedList(t *testing.T) {
	var asked atomic.Int64
	in := newInterfaces(func() ([]netmon.Interface, error) {
		if asked.Add(1) == 1 {
			return nil, errors.New("the kernel says no")
		}
		return nil, nil
	})
	done, found := make(chan struct{}), make(chan struct{}, 16)
	defer close(done)
	go in.watch(done, func(err error) { t.Error(err) }, func() {
		if _, err := in.get(); err == nil {
			found <- struct{}{}
		}
	})
	select {
	case <-found:
	case <-time.After(20 * time.Second):
		t.Errorf("asked %d times, in vain", asked.Load())
	}
}

// checkCopied finds whether the list holds the kernel's whole answer.
func checkCopied(t *testing.T) {
	t.Helper()
	list, err := listInterfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if got := cap(i.HardwareAddr); got > 64 {
			t.Errorf("%s: its hardware address holds %d bytes of the kernel's answer", i.Name, got)
		}
		for _, a := range i.AltAddrs {
			if got := cap(a.(*net.IPNet).IP); got > 64 {
				t.Errorf("%s: address %v holds %d bytes of the kernel's answer", i.Name, a, got)
			}
		}
	}
}
