// SPDX-License-Identifier: BSD-3-Clause

package hostnet

import (
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"tailscale.com/net/netmon"
)

// The shared list follows what happens, and is not asked for while nothing does.
func TestSharedInterfaces(t *testing.T) {
	in, done := &interfaces{}, make(chan struct{})
	defer close(done)
	go in.watch(done, func(err error) { t.Error(err) })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "shared0"
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "shared1"}
	has := func() bool {
		list, err := in.get()
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list, func(i netmon.Interface) bool { return i.Name == attrs.Name })
	}
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
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	until("a link that is gone", func() bool { return !has() })
}
