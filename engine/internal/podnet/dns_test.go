// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"tailscale-nri/engine/internal/nstest"
)

const clusterName = "web.default.svc.cluster.local."

var clusterAddrs = []netip.Addr{netip.MustParseAddr("10.96.1.1"), netip.MustParseAddr("fd00:96::1:1")}

// dnsServerEnv makes the test binary a process that serves DNS in a pod, whose netns
// it says, until it is killed.
const dnsServerEnv = "TSNRI_TEST_DNS"

// runDNSServer answers everything with ServFail.
func runDNSServer() int {
	ns, err := FindNamespace(os.Getenv(dnsServerEnv))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	d, err := OpenDNS(context.Background(), ns)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, c := range d.UDP {
		go refuse(c)
	}
	fmt.Println("serving")
	select {}
}

func refuse(c *net.UDPConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		buf[2] |= 0x80
		buf[3] = buf[3]&0xf0 | byte(dnsmessage.RCodeServerFailure)
		_, _ = c.WriteToUDPAddrPort(buf[:n], from)
	}
}

// dnsPod is a pod in a cluster. Its DNS is led to the cluster's nameserver of one
// family.
func dnsPod(t *testing.T, v6 bool) (pod *nstest.Pod, c *nstest.Cluster, ns Namespace) {
	t.Helper()
	c = nstest.NewCluster(t, map[string][]netip.Addr{clusterName: clusterAddrs})
	pod = nstest.NewPod(t)
	c.Connect(pod)
	ns = mustFind(t, pod)
	if nat, err := EnsureDNS(ns, nameserversOf(c, v6)); err != nil || !nat {
		t.Fatalf("EnsureDNS = %v, %v", nat, err)
	}
	return pod, c, ns
}

func nameserversOf(c *nstest.Cluster, v6 bool) []netip.Addr {
	if v6 {
		return []netip.Addr{c.IP6}
	}
	return []netip.Addr{c.IP6, c.IP4} // which has IPv4 used all the same
}

func mustFind(t *testing.T, pod *nstest.Pod) Namespace {
	t.Helper()
	ns, err := FindNamespace(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// expectCluster asks at the service address, and wants the cluster's answer.
func expectCluster(t *testing.T, pod *nstest.Pod, v6 bool) {
	t.Helper()
	i, kind := 0, dnsmessage.TypeA
	if v6 {
		i, kind = 1, dnsmessage.TypeAAAA
	}
	for _, network := range []string{"udp", "tcp"} {
		m, err := pod.Ask(network, dnsService(v6), clusterName, kind)
		if err != nil || !slices.Equal(nstest.Addrs(m), clusterAddrs[i:i+1]) {
			t.Errorf("%s to %v: %v, %v", network, dnsService(v6), m.GoString(), err)
		}
	}
}

// While no process serves, the cluster's nameserver answers, and sees the pod's
// address.
func TestDNSWithoutUs(t *testing.T) {
	for v6, want := range map[bool]string{false: "10.70.1.2", true: "fd00:70:1::2"} {
		pod, c, ns := dnsPod(t, v6)
		for range 3 { // again changes nothing
			expectCluster(t, pod, v6)
			if nat, err := EnsureDNS(ns, nameserversOf(c, v6)); err != nil || !nat {
				t.Fatalf("EnsureDNS = %v, %v", nat, err)
			}
		}
		for _, a := range c.Asked(clusterName) {
			if a.From.String() != want {
				t.Errorf("%s came from %v", a.Network, a.From)
			}
		}
		if _, err := pod.Ask("udp", dnsService(!v6), clusterName, dnsmessage.TypeA); err == nil {
			t.Error("the other family is led, too")
		}
		// Programs that look for an address of their own do not find the service
		// addresses.
		pod.Do(func() error {
			addrs, err := net.InterfaceAddrs()
			for _, a := range addrs {
				if strings.HasPrefix(a.String(), "100.100") || strings.HasPrefix(a.String(), "fd7a") {
					t.Errorf("the pod has the address %v", a)
				}
			}
			return err
		})
	}
}

// A process that serves is asked while it lives. From the moment at which it is killed
// the cluster is asked, also by a socket that has asked before.
func TestDNSKilled(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		testDNSKilled(t, v6)
	}
}

func testDNSKilled(t *testing.T, v6 bool) {
	pod, _, _ := dnsPod(t, v6)
	kind, want := dnsmessage.TypeA, clusterAddrs[:1]
	if v6 {
		kind, want = dnsmessage.TypeAAAA, clusterAddrs[1:]
	}
	var conn net.Conn
	pod.Do(func() (err error) {
		conn, err = net.Dial("udp", netip.AddrPortFrom(dnsService(v6), dnsPort).String())
		return err
	})
	defer conn.Close()
	for range 3 {
		// The netns's path is /proc/self/fd/N here.
		cmd := exec.Command("/proc/self/exe", "-test.run=^$")
		cmd.Env = append(os.Environ(), dnsServerEnv+"="+strings.Replace(pod.Path(), "self", fmt.Sprint(os.Getpid()), 1))
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 200)
		if n, err := out.Read(line); err != nil || !strings.HasPrefix(string(line), "serving") {
			t.Fatalf("%s, %v", line[:n], err)
		}
		for _, v6 := range []bool{false, true} {
			m, err := pod.Ask("udp", dnsService(v6), clusterName, dnsmessage.TypeA)
			if err != nil || m.RCode != dnsmessage.RCodeServerFailure {
				t.Errorf("while the process lives: %v, %v", m.GoString(), err)
			}
		}
		if m, err := nstest.AskOn(conn, clusterName, dnsmessage.TypeA); err != nil || m.RCode != dnsmessage.RCodeServerFailure {
			t.Errorf("on an open socket, while the process lives: %v, %v", m.GoString(), err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		expectCluster(t, pod, v6)
		if m, err := nstest.AskOn(conn, clusterName, kind); err != nil || !slices.Equal(nstest.Addrs(m), want) {
			t.Errorf("on an open socket, after the process was killed: %v, %v", m.GoString(), err)
		}
	}
}

// Packets from outside the pod are not answered, whatever their destination is.
func TestDNSHearsThePodOnly(t *testing.T) {
	pod, c, ns := dnsPod(t, false)
	d, err := OpenDNS(context.Background(), ns)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var heard atomic.Int32
	for i, u := range d.UDP {
		go func() {
			buf := make([]byte, 512)
			for {
				n, from, err := u.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				heard.Add(1)
				_, _ = u.WriteToUDPAddrPort(buf[:n], from)
			}
		}()
		go func() {
			for {
				conn, err := d.TCP[i].Accept()
				if err != nil {
					return
				}
				heard.Add(1)
				conn.Close()
			}
		}()
	}
	// A neighbour on eth0 has a route to the service addresses by the pod.
	h := c.Netlink()
	for _, via := range []string{"10.70.1.2", "fd00:70:1::2"} {
		gw := netip.MustParseAddr(via)
		svc := dnsService(gw.Is6())
		if err := h.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(svc, svc.BitLen())), Gw: gw.AsSlice()}); err != nil {
			t.Fatal(err)
		}
		for _, at := range []netip.AddrPort{netip.AddrPortFrom(svc, dnsPort), netip.AddrPortFrom(gw, dnsPort), netip.AddrPortFrom(svc, firstPort)} {
			for _, network := range []string{"udp", "tcp"} {
				if m, err := c.AskAt(network, at, clusterName, dnsmessage.TypeA); err == nil {
					t.Errorf("%s to %v: %v", network, at, m.GoString())
				}
			}
		}
		if n := heard.Load(); n != 0 {
			t.Errorf("a neighbour was heard at %v, %d times", svc, n)
		}
		if _, err := pod.Ask("udp", svc, clusterName, dnsmessage.TypeA); err != nil {
			t.Errorf("the pod itself: %v", err)
		}
		if _, err := pod.Ask("tcp", svc, clusterName, dnsmessage.TypeA); err == nil || heard.Swap(0) != 2 {
			t.Errorf("the pod itself: %v", err)
		}
	}
}

// The sockets that are dialed are the pod's.
func TestDNSDials(t *testing.T) {
	pod, c, ns := dnsPod(t, false)
	d, err := OpenDNS(context.Background(), ns)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for i, addr := range []netip.Addr{c.IP4, c.IP6} {
		want := []string{"10.70.1.2", "fd00:70:1::2"}[i]
		for network, dial := range map[string]func() (net.Conn, error){
			"udp": func() (net.Conn, error) { return d.DialUDP(netip.AddrPortFrom(addr, 53)) },
			"tcp": func() (net.Conn, error) { return d.DialTCP(ctx, netip.AddrPortFrom(addr, 53)) },
		} {
			conn, err := dial()
			if err != nil {
				t.Errorf("%s to %v: %v", network, addr, err)
				continue
			}
			m, err := nstest.AskOn(conn, clusterName, []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA}[i])
			if err != nil || len(nstest.Addrs(m)) != 1 {
				t.Errorf("%s to %v: %v, %v", network, addr, m.GoString(), err)
			}
			conn.Close()
		}
		for _, a := range c.Asked(clusterName) {
			if a.From.Is6() == addr.Is6() && a.From.String() != want {
				t.Errorf("%v was asked from %v", addr, a.From)
			}
		}
	}
	if _, err := d.DialTCP(ctx, netip.AddrPortFrom(c.IP4, 54)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a port where nobody listens: %v", err)
	}
	soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := d.DialTCP(soon, netip.MustParseAddrPort("10.70.1.77:53")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an address where nobody is: %v", err)
	}
	if err := d.Gone(); err != nil {
		t.Error(err)
	}
	pod.End()
	if err := d.Gone(); !errors.Is(err, ErrGone) {
		t.Errorf("Gone = %v", err)
	}
	d.Close()
	if _, err := d.DialUDP(netip.AddrPortFrom(c.IP4, 53)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A pod's own DNS server may have port 53 of all addresses, if it comes first or
// second, and is asked there.
func TestDNSServerInPod(t *testing.T) {
	pod, c, ns := dnsPod(t, false)
	all := netip.IPv6Unspecified()
	c.ServeDNS(pod, all)
	own := func() {
		t.Helper()
		for _, network := range []string{"udp", "tcp"} {
			if m, err := pod.Ask(network, netip.MustParseAddr("10.70.1.2"), clusterName, dnsmessage.TypeA); err != nil || len(nstest.Addrs(m)) != 1 {
				t.Errorf("the pod's own server over %s: %v, %v", network, m.GoString(), err)
			}
		}
	}
	own()
	d, err := OpenDNS(context.Background(), ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range d.UDP {
		go refuse(u)
	}
	own()
	for _, v6 := range []bool{false, true} {
		if m, err := pod.Ask("udp", dnsService(v6), clusterName, dnsmessage.TypeA); err != nil || m.RCode != dnsmessage.RCodeServerFailure {
			t.Errorf("at %v: %v, %v", dnsService(v6), m.GoString(), err)
		}
	}
	d.Close()
	other := nstest.NewPod(t)
	c.Connect(other)
	d, err = OpenDNS(t.Context(), mustFind(t, other))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c.ServeDNS(other, all)
}

// Tables and routes that a pod has flushed come back, and a table that a socket of ours
// owns cannot be flushed.
func TestDNSFlushed(t *testing.T) {
	pod, c, ns := dnsPod(t, false)
	d, err := OpenDNS(context.Background(), ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range d.UDP {
		go refuse(u)
	}
	if ok, err := d.Intact(); !ok || err != nil {
		t.Errorf("Intact = %v, %v", ok, err)
	}
	s, err := openNft(netnsOf(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// Without a name or a family it deletes all tables (nft flush ruleset).
	if err := s.run(func(b *rawBatch) { b.ask(unix.NFT_MSG_DELTABLE, 0, unix.AF_UNSPEC) }); err != nil {
		t.Fatal(err)
	}
	lo, err := pod.Netlink().LinkByName("lo")
	if err == nil {
		err = errors.Join(pod.Netlink().LinkSetDown(lo), pod.Netlink().LinkSetUp(lo))
	}
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := d.Intact(); ok || err != nil {
		t.Errorf("after a flush: Intact = %v, %v", ok, err)
	}
	if m, err := pod.Ask("udp", dnsService(false), clusterName, dnsmessage.TypeA); err != nil || m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("while we serve: %v, %v", m.GoString(), err)
	}
	if _, err := EnsureDNS(ns, []netip.Addr{c.IP4, c.IP6}); err != nil {
		t.Fatal(err)
	}
	if ok, err := d.Intact(); !ok || err != nil {
		t.Errorf("Intact = %v, %v", ok, err)
	}
	d.Close()
	expectCluster(t, pod, false)
}

func netnsOf(t *testing.T, pod *nstest.Pod) netns.NsHandle {
	t.Helper()
	h, err := netns.GetFromPath(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// A pod's own NAT of DNS, as a service mesh has it, applies to queries for the cluster,
// ours too, and not to the pod's queries to us.
func TestDNSWithMesh(t *testing.T) {
	pod, c, ns := dnsPod(t, false)
	var proxy *net.UDPConn
	pod.Do(func() (err error) {
		proxy, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: dnsPort})
		return err
	})
	defer proxy.Close()
	go refuse(proxy)
	s, err := openNft(netnsOf(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	rule := matchMeta(unix.NFT_META_L4PROTO, unix.NFT_CMP_EQ, []byte{unix.IPPROTO_UDP})
	rule = append(rule, matchBytes(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, []byte{0, dnsPort})...)
	mesh := &rawTable{family: unix.NFPROTO_IPV4, name: "mesh", chains: []rawChain{{
		name: "output", kind: "nat", hook: unix.NF_INET_LOCAL_OUT, priority: nftDstNAT - 1,
		rules: [][]rawExpr{append(rule, dstNAT(unix.NFPROTO_IPV4, []byte{127, 0, 0, 1})...)},
	}}}
	if err := s.run(func(b *rawBatch) { b.makeTable(mesh); b.fillTable(mesh) }); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDNS(t.Context(), ns)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	go func() { // answers from what it asks of the cluster, and says that it was here
		buf := make([]byte, 512)
		for {
			n, from, err := d.UDP[0].ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			conn, err := d.DialUDP(netip.AddrPortFrom(c.IP4, dnsPort))
			if err != nil {
				return
			}
			_, _ = conn.Write(buf[:n])
			n, _ = conn.Read(buf)
			conn.Close()
			buf[3] |= 0x80 // recursion available
			_, _ = d.UDP[0].WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	m, err := pod.Ask("udp", dnsService(false), clusterName, dnsmessage.TypeA)
	if err != nil || !m.RecursionAvailable || m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("%v, %v; want the mesh's answer, by way of us", m.GoString(), err)
	}
	if asked := c.Asked(clusterName); len(asked) > 0 {
		t.Errorf("the mesh was passed by: %v", asked)
	}
}

// Where the kernel has no tables that end with their socket, nothing is led anywhere:
// our sockets are at port 53, and without them nothing answers there.
func TestDNSWithoutOwnedTables(t *testing.T) {
	can := canOwnTables
	canOwnTables = func() (bool, error) { return false, nil }
	defer func() { canOwnTables = can }()
	c := nstest.NewCluster(t, map[string][]netip.Addr{clusterName: clusterAddrs})
	pod := nstest.NewPod(t)
	c.Connect(pod)
	ns := mustFind(t, pod)
	if nat, err := EnsureDNS(ns, []netip.Addr{c.IP4}); nat || err != nil {
		t.Fatalf("EnsureDNS = %v, %v", nat, err)
	}
	d, err := OpenDNS(t.Context(), ns)
	if err != nil {
		t.Fatal(err)
	}
	go refuse(d.UDP[0])
	if m, err := pod.Ask("udp", dnsService(false), clusterName, dnsmessage.TypeA); err != nil || m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("while we serve: %v, %v", m.GoString(), err)
	}
	if ok, err := d.Intact(); !ok || err != nil {
		t.Errorf("Intact = %v, %v", ok, err)
	}
	d.Close()
	if m, err := pod.Ask("udp", dnsService(false), clusterName, dnsmessage.TypeA); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after that: %v, %v; want the refusal that has a resolver ask the next nameserver", m.GoString(), err)
	}
	var l net.Listener
	pod.Do(func() (err error) { l, err = net.Listen("tcp", ":53"); return err })
	defer l.Close()
	if d, err := OpenDNS(t.Context(), ns); err == nil || !strings.Contains(err.Error(), "a program of the pod has the port 100.100.100.100:53") {
		t.Errorf("OpenDNS = %v, %v", d, err)
	}
}
