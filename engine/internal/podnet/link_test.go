// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tailscale/wireguard-go/tun"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tailscale-nri/engine/internal/nstest"
)

func TestHostLink(t *testing.T) {
	for _, tt := range []struct{ sandbox, want string }{
		{"0123456789abcdef0123456789abcdef", "vetht0123456789"},
		{"abc", "vethtabc"},
	} {
		if got := HostLink(tt.sandbox); got != tt.want {
			t.Errorf("HostLink(%q) = %q, want %q", tt.sandbox, got, tt.want)
		}
		for name, want := range map[string]bool{
			tt.want: true, ("ts" + tt.sandbox)[:min(len(tt.sandbox)+2, 15)]: true,
			"": false, "eth0": false, "vetht": false, "ts": false, tt.want + "0": false,
		} {
			if IsHostLink(name, tt.sandbox) != want {
				t.Errorf("IsHostLink(%q, %q) is not %v", name, tt.sandbox, want)
			}
		}
	}
}

func TestEnsure(t *testing.T) {
	pod := nstest.NewPod(t)
	l := mustEnsure(t, pod, "tsensure")
	h := pod.Netlink()
	ts0, err := h.LinkByName(PodLink)
	if err != nil {
		t.Fatal(err)
	}
	host, err := netlink.LinkByName("tsensure")
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []netlink.Link{ts0, host} {
		a := end.Attrs()
		if a.MTU != MTU || a.Flags&net.FlagUp == 0 || a.RawFlags&unix.IFF_NOARP == 0 {
			t.Errorf("%s: MTU %d, flags %v; want MTU %d, up, NOARP", a.Name, a.MTU, a.Flags, MTU)
		}
	}
	for name, list := range map[string]func(netlink.Link, int) ([]netlink.Addr, error){"tsensure": netlink.AddrList, PodLink: h.AddrList} {
		link := host
		if name == PodLink {
			link = ts0
		}
		if addrs, err := list(link, netlink.FAMILY_ALL); err != nil || len(addrs) != 0 {
			t.Errorf("%s has addresses %v (%v), want none", name, addrs, err)
		}
	}
	routes, err := netlink.RouteList(host, netlink.FAMILY_V4)
	if err != nil || len(routes) != 0 {
		t.Errorf("the host has routes over the link: %v (%v)", routes, err)
	}

	if missing, err := l.Restore(); err != nil || len(missing) != 0 {
		t.Errorf("of a link that nobody has changed, Restore says that %q were missing (%v)", missing, err)
	}
	again := mustEnsure(t, pod, "tsensure")
	if again.hostIndex != l.hostIndex || again.podMAC.String() != l.podMAC.String() {
		t.Errorf("the second Ensure made a new link: index %d, then %d", l.hostIndex, again.hostIndex)
	}
}

func TestEnsureReplacesStaleHostEnd(t *testing.T) {
	first, second := nstest.NewPod(t), nstest.NewPod(t)
	old := mustEnsure(t, first, "tsstale")
	h := first.Netlink()
	ts0, err := h.LinkByName(PodLink)
	if err != nil {
		t.Fatal(err)
	}
	// The name now belongs to a sandbox with another netns.
	l := mustEnsure(t, second, "tsstale")
	if l.hostIndex == old.hostIndex {
		t.Error("the host end of another netns was adopted")
	}
	if _, err := h.LinkByIndex(ts0.Attrs().Index); !isNotFound(err) {
		t.Errorf("the stale link is still in the first pod: %v", err)
	}
}

func TestEnsureRefusesForeignTS0(t *testing.T) {
	pod := nstest.NewPod(t)
	h := pod.Netlink()
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: PodLink}, PeerName: "other"}); err != nil {
		t.Fatal(err)
	}
	ns, err := FindNamespace(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	_, err = Ensure(ns, "tsforeign", nil)
	if err == nil || !strings.Contains(err.Error(), "remove or rename it") {
		t.Errorf("Ensure = %v, want an error with the remedy", err)
	}
	if found, _ := Exists("tsforeign"); found {
		t.Error("a host end was left behind")
	}
}

func TestNamespaceGone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "cni-1")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := FindNamespace(filepath.Join(dir, "absent"), file); !errors.Is(err, ErrGone) {
		t.Errorf("FindNamespace of no netns = %v, want ErrGone", err)
	}

	pod, other := nstest.NewPod(t), nstest.NewPod(t)
	ns, err := FindNamespace(file, pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	// The path leads to another netns now, as a reused pid or descriptor does.
	ns.Paths = []string{other.Path()}
	if _, err := Ensure(ns, "tsgone", nil); !errors.Is(err, ErrGone) {
		t.Errorf("Ensure in a reused netns = %v, want ErrGone", err)
	}
	if h := other.Netlink(); h != nil {
		if _, err := h.LinkByName(PodLink); !isNotFound(err) {
			t.Errorf("the other pod was touched: %v", err)
		}
	}
}

func TestRemove(t *testing.T) {
	pod := nstest.NewPod(t)
	mustEnsure(t, pod, "tsremove")
	for range 2 {
		if err := Remove("tsremove"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pod.Netlink().LinkByName(PodLink); !isNotFound(err) {
		t.Errorf("ts0 is still there: %v", err)
	}
}

// A link must go with its pod although we have a socket on its host end, and
// the socket must say so; a Read that waits then waits for Close.
func TestPodEnds(t *testing.T) {
	pod := nstest.NewPod(t)
	d := mustOpen(t, mustEnsure(t, pod, "tsend"))
	errc := make(chan error, 1)
	go func() { errc <- readUntilError(d) }()
	pod.End()
	select {
	case <-d.Gone():
	case err := <-errc:
		t.Fatalf("Read = %v before Close", err)
	case <-time.After(30 * time.Second):
		t.Fatal("nothing noticed within 30 s of the pod's end")
	}
	if found, err := Exists("tsend"); found || err != nil {
		t.Errorf("the host end is still there (%v)", err)
	}
	if _, err := d.Write([][]byte{ipFrame(nil, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"))[ethHdrLen:]}, 0); !errors.Is(err, ErrGone) {
		t.Errorf("Write = %v, want ErrGone", err)
	}
	d.Close()
	if err := <-errc; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read = %v, want os.ErrClosed", err)
	}
}

func TestReadEndsWithClose(t *testing.T) {
	d := mustOpen(t, mustEnsure(t, nstest.NewPod(t), "tsclose"))
	errc := make(chan error, 1)
	go func() { errc <- readUntilError(d) }()
	d.Close()
	if err := <-errc; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read = %v, want os.ErrClosed", err)
	}
	if _, ok := <-d.Events(); !ok {
		t.Error("the event up was lost")
	}
	if _, ok := <-d.Events(); ok {
		t.Error("Events is still open")
	}
}

func readUntilError(d *Device) error {
	b := newBatch()
	for {
		if _, err := b.read(d); err != nil {
			return err
		}
	}
}

// batch is what a reader of a device brings along: wireguard-go's
// (device/packetbuf.go, batchingSlabSize).
type batch struct {
	slab    []byte
	packets []tun.ReadPacket
}

func newBatch() batch {
	return batch{make([]byte, 2*maxIPPacket), make([]tun.ReadPacket, batchSize)}
}

// read returns the packets of one Read.
func (b batch) read(d *Device) ([][]byte, error) {
	n, err := d.Read(b.slab, b.packets)
	return b.first(n), err
}

// split returns the packets of one frame.
func (b batch) split(h vnetHdr, packet []byte) ([][]byte, error) {
	options, err := h.check(packet)
	if err != nil {
		return nil, err
	}
	n, err := split(h, options, packet, b.slab, b.packets)
	return b.first(n), err
}

func (b batch) first(n int) (packets [][]byte) {
	for _, p := range b.packets[:n] {
		packets = append(packets, b.slab[p.Offset:][:p.Size])
	}
	return packets
}
