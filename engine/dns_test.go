// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"tailscale.com/net/tsaddr"
	"tailscale.com/tailcfg"
	"tailscale.com/types/dnstype"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
)

const (
	webName  = "web.default.svc.cluster.local."
	corpName = "db.corp.example."
	wwwName  = "www.example.org."
)

func clusterNames() map[string][]netip.Addr {
	return map[string][]netip.Addr{
		webName:  {netip.MustParseAddr("10.96.1.1"), netip.MustParseAddr("fd00:96::1:1")},
		corpName: {netip.MustParseAddr("192.0.2.1")},
		wwwName:  {netip.MustParseAddr("192.0.2.2")},
	}
}

// kubeletConf is what the kubelet makes for a pod in the cluster.
func kubeletConf(servers ...netip.Addr) []byte {
	var b strings.Builder
	fmt.Fprintln(&b, "search default.svc.cluster.local svc.cluster.local cluster.local example.net")
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %v\n", s)
	}
	fmt.Fprintln(&b, "options ndots:5")
	return []byte(b.String())
}

// named is a pod that resolves names by its node, in a cluster.
type named struct {
	*nstest.Pod
	pod      Pod
	eth4     netip.Addr
	eth6     netip.Addr
	cluster  *nstest.Cluster
	resolver netip.Addr
}

func (w *world) namedPod(name string, c *nstest.Cluster) *named {
	w.t.Helper()
	p, pod := w.pod(name)
	pod.Features.DNS = true
	n := &named{Pod: p, pod: pod, cluster: c, resolver: tsaddr.TailscaleServiceIP()}
	n.eth4, n.eth6 = c.Connect(p)
	return n
}

// attach attaches the pod, with the steps for its first container.
func (n *named) attach(w *world) {
	w.t.Helper()
	w.mustAttach(n.pod)
	if _, err := w.ResolvConf(n.pod.UID); err != nil {
		w.t.Fatal(err)
	}
	if err := w.SetResolvConf(n.pod.UID, kubeletConf(n.cluster.IP4, n.cluster.IP6)); err != nil {
		w.t.Fatal(err)
	}
}

func (n *named) file(w *world) string {
	w.t.Helper()
	path, err := w.ResolvConf(n.pod.UID)
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(data)
}

// expect asks over UDP and TCP, and wants these addresses; without any, the name must
// not exist.
func (n *named) expect(t *testing.T, name string, want ...netip.Addr) {
	t.Helper()
	kind := dnsmessage.TypeA
	if len(want) > 0 && want[0].Is6() {
		kind = dnsmessage.TypeAAAA
	}
	for _, network := range []string{"udp", "tcp"} {
		m, err := n.Ask(network, n.resolver, name, kind)
		code := dnsmessage.RCodeSuccess
		if len(want) == 0 {
			code = dnsmessage.RCodeNameError
		}
		if err != nil || m.RCode != code || !slices.Equal(nstest.Addrs(m), want) {
			t.Errorf("%s %s at %v over %s: %v %v, %v; want %v %v", name, kind, n.resolver, network, m.RCode, nstest.Addrs(m), err, code, want)
		}
	}
}

// lastFrom is the address that asked for the name last.
func lastFrom(c *nstest.Cluster, name string) netip.Addr {
	if asked := c.Asked(name); len(asked) > 0 {
		return asked[len(asked)-1].From
	}
	return netip.Addr{}
}

func dnsConfig(change func(*tailcfg.DNSConfig)) *tailcfg.DNSConfig {
	cfg := &tailcfg.DNSConfig{Proxied: true, Domains: []string{"lab.ts.net"}}
	change(cfg)
	return cfg
}

// A pod resolves names of the tailnet and of the cluster, and its resolv.conf names
// the domains of both, the cluster's first.
func TestDNS(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c := nstest.NewCluster(t, clusterNames())
	a := w.namedPod("a", c)
	w.mustAttach(a.pod)
	if got := a.file(w); got != "" {
		t.Errorf("before the original is known: %q", got)
	}
	a.attach(w)
	_, podB := w.pod("b")
	w.mustAttach(podB)
	self := w.await(a.pod.UID, Running)
	peer := w.await(podB.UID, Running)

	const want = "# Kept by tailscale-nri.\nnameserver 100.100.100.100\n" +
		"search default.svc.cluster.local svc.cluster.local cluster.local example.net lab.ts.net\noptions ndots:5\n"
	if got := a.file(w); got != want {
		t.Errorf("resolv.conf is\n%s\nwant\n%s", got, want)
	}
	path, _ := w.ResolvConf(a.pod.UID)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("%s: %v, %v", path, info.Mode(), err)
	}
	for _, resolver := range []netip.Addr{tsaddr.TailscaleServiceIP(), tsaddr.TailscaleServiceIPv6()} {
		a.resolver = resolver
		a.expect(t, "k8s-default-b.lab.ts.net.", peer.Addresses[0])
		a.expect(t, "K8S-default-A.LAB.ts.net.", self.Addresses[0])
		a.expect(t, "nobody.lab.ts.net.")
		a.expect(t, webName, clusterNames()[webName][0])
		a.expect(t, webName, clusterNames()[webName][1])
		a.expect(t, "nothing.default.svc.cluster.local.")
		a.expect(t, wwwName, clusterNames()[wwwName][0])
		if m, err := a.Ask("udp", resolver, reverseName(peer.Addresses[0]), dnsmessage.TypePTR); err != nil || len(m.Answers) != 1 ||
			m.Answers[0].Body.(*dnsmessage.PTRResource).PTR.String() != "k8s-default-b.lab.ts.net." {
			t.Errorf("the peer's name: %v, %v", m.GoString(), err)
		}
		if m, err := a.Ask("udp", resolver, nstest.BigName, dnsmessage.TypeTXT); err != nil || !m.Truncated {
			t.Errorf("an answer that takes TCP, over UDP: %v, %v", m.GoString(), err)
		}
		if m, err := a.Ask("tcp", resolver, nstest.BigName, dnsmessage.TypeTXT); err != nil || len(m.Answers) != 40 {
			t.Errorf("an answer that takes TCP: %d answers, %v", len(m.Answers), err)
		}
	}
	if got := c.Asked("k8s-default-b.lab.ts.net."); len(got) > 0 {
		t.Errorf("the cluster was asked for a peer's name: %v", got)
	}
	for _, q := range c.Asked(webName) {
		if q.From != a.eth4 && q.From != a.eth6 {
			t.Errorf("the cluster was asked by %v, which is not the pod's eth0", q.From)
		}
	}
	if path, err := w.ResolvConf(podB.UID); path != "" || err != nil {
		t.Errorf("ResolvConf of a pod that did not ask = %q, %v", path, err)
	}
	if err := w.SetResolvConf(podB.UID, kubeletConf(c.IP4)); err != nil || w.entriesOf(podB.UID, podstate.ResolvConfFile) {
		t.Errorf("SetResolvConf of a pod that did not ask: %v", err)
	}
}

func (w *world) entriesOf(uid, name string) bool {
	_, err := os.Stat(w.dir + "/" + uid + "/" + name)
	return err == nil
}

func reverseName(a netip.Addr) string {
	b := a.As4()
	return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa.", b[3], b[2], b[1], b[0])
}

// awaitAnswer asks until the answer is the wanted one, within a second, and returns how
// long that took.
func (n *named) awaitAnswer(w *world, name string, want netip.Addr) {
	w.t.Helper()
	start, last := time.Now(), ""
	w.until(fmt.Sprintf("%s is %v", name, want), func() bool {
		m, err := n.Ask("udp", n.resolver, name, dnsmessage.TypeA)
		last = fmt.Sprint(m.RCode, nstest.Addrs(m), err)
		return err == nil && slices.Equal(nstest.Addrs(m), []netip.Addr{want})
	}, func() string { return last })
	w.t.Logf("%s was %v after %v", name, want, time.Since(start))
}

// Changes of the tailnet's DNS by an admin take effect in the pod at once: split DNS to
// a resolver that is a peer, resolvers for all names, search domains, records.
func TestDNSChanges(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c := nstest.NewCluster(t, clusterNames())
	a := w.namedPod("a", c)
	a.attach(w)
	b, podB := w.pod("b")
	w.mustAttach(podB)
	self := w.await(a.pod.UID, Running)
	peer := w.await(podB.UID, Running)
	tailnet := nstest.NewCluster(t, map[string][]netip.Addr{ // the resolver in b
		corpName: {netip.MustParseAddr("198.51.100.1")},
		wwwName:  {netip.MustParseAddr("198.51.100.2")},
		webName:  {netip.MustParseAddr("198.51.100.3")},
	})
	tailnet.ServeDNS(b, peer.Addresses...)
	a.expect(t, corpName, clusterNames()[corpName][0])

	resolver := []*dnstype.Resolver{{Addr: peer.Addresses[0].String()}}
	w.control.SetDNS(dnsConfig(func(d *tailcfg.DNSConfig) {
		d.Routes = map[string][]*dnstype.Resolver{"corp.example": resolver}
		d.Domains = append(d.Domains, "corp.example", "cluster.local")
		d.ExtraRecords = []tailcfg.DNSRecord{{Name: "extra.example.", Value: "203.0.113.5"}}
	}))
	a.awaitAnswer(w, corpName, netip.MustParseAddr("198.51.100.1"))
	if from := lastFrom(tailnet, corpName); from != self.Addresses[0] {
		t.Errorf("the peer was asked by %v, want %v: over the tailnet, from within the pod", from, self.Addresses[0])
	}
	a.expect(t, corpName, netip.MustParseAddr("198.51.100.1"))
	a.expect(t, "extra.example.", netip.MustParseAddr("203.0.113.5"))
	a.expect(t, wwwName, clusterNames()[wwwName][0])
	if got := a.file(w); !strings.Contains(got, " example.net lab.ts.net corp.example\n") {
		t.Errorf("resolv.conf is\n%s", got)
	}

	// Resolvers for all names are not asked for the cluster's.
	w.control.SetDNS(dnsConfig(func(d *tailcfg.DNSConfig) { d.Resolvers = resolver }))
	a.awaitAnswer(w, wwwName, netip.MustParseAddr("198.51.100.2"))
	a.expect(t, corpName, netip.MustParseAddr("198.51.100.1"))
	a.expect(t, webName, clusterNames()[webName][0])
	a.expect(t, "k8s-default-b.lab.ts.net.", peer.Addresses[0])
	for _, name := range []string{"host.example.net.", "web.", "1.0.96.10.in-addr.arpa."} {
		a.expect(t, name)
		if lastFrom(c, name) != a.eth4 || len(tailnet.Asked(name)) > 0 {
			t.Errorf("%s was not asked of the cluster: %v, %v", name, c.Asked(name), tailnet.Asked(name))
		}
	}
	// Without MagicDNS, they are all that the tailnet has.
	w.control.SetDNS(&tailcfg.DNSConfig{Resolvers: resolver})
	w.until("the search domain is gone", func() bool { return !strings.Contains(a.file(w), "lab.ts.net") }, func() string { return a.file(w) })
	a.expect(t, wwwName, netip.MustParseAddr("198.51.100.2"))
	a.expect(t, webName, clusterNames()[webName][0])

	w.control.SetDNS(dnsConfig(func(d *tailcfg.DNSConfig) {}))
	a.awaitAnswer(w, wwwName, clusterNames()[wwwName][0])
}

// Only the pod is answered, and the pod does not reach this process's own netns.
func TestDNSIsThePodsOwn(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c := nstest.NewCluster(t, clusterNames())
	a := w.namedPod("a", c)
	a.attach(w)
	b, podB := w.pod("b")
	w.mustAttach(podB)
	self := w.await(a.pod.UID, Running)
	w.await(podB.UID, Running)
	h := b.Netlink()
	ts0, err := h.LinkByName(podnet.PodLink)
	if err == nil {
		err = h.RouteAdd(&netlink.Route{LinkIndex: ts0.Attrs().Index, Dst: &net.IPNet{IP: tsaddr.TailscaleServiceIP().AsSlice(), Mask: net.CIDRMask(32, 32)}})
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range append(slices.Clone(self.Addresses), tsaddr.TailscaleServiceIP()) {
		for _, network := range []string{"udp", "tcp"} {
			if m, err := b.Ask(network, addr, webName, dnsmessage.TypeA); err == nil {
				t.Errorf("a peer asked %v over %s: %v", addr, network, m.GoString())
			}
		}
	}
	// A resolver that only this process's netns has is not reached.
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: nstest.HostAddr.AsSlice(), Port: 53})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	heard := make(chan struct{}, 10)
	go func() {
		for buf := make([]byte, 512); ; {
			if _, _, err := u.ReadFrom(buf); err != nil {
				return
			}
			heard <- struct{}{}
		}
	}()
	w.control.SetDNS(dnsConfig(func(d *tailcfg.DNSConfig) {
		d.Routes = map[string][]*dnstype.Resolver{"corp.example": {{Addr: nstest.HostAddr.String()}}}
	}))
	w.until("the domain is the tailnet's", func() bool {
		n := len(c.Asked(corpName))
		a.Ask("udp", a.resolver, corpName, dnsmessage.TypeA)
		return len(c.Asked(corpName)) == n
	}, func() string { return "" })
	if err := w.SetResolvConf(a.pod.UID, kubeletConf(nstest.HostAddr)); err != nil {
		t.Fatal(err)
	}
	a.Ask("udp", a.resolver, wwwName, dnsmessage.TypeA)
	if len(heard) > 0 {
		t.Error("this process has asked in its own netns")
	}
}

// Many queries at once are answered, and no sockets or goroutines stay.
func TestDNSBurst(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c := nstest.NewCluster(t, clusterNames())
	a := w.namedPod("a", c)
	a.attach(w)
	self := w.await(a.pod.UID, Running)
	before := openFiles(t)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			name, want := webName, clusterNames()[webName][0]
			if i%2 == 1 {
				name, want = "k8s-default-a.lab.ts.net.", self.Addresses[0]
			}
			for range 5 {
				if m, err := a.Ask("udp", a.resolver, name, dnsmessage.TypeA); err != nil || !slices.Equal(nstest.Addrs(m), []netip.Addr{want}) {
					t.Errorf("%s: %v, %v", name, m.GoString(), err)
				}
			}
		})
	}
	wg.Wait()
	w.until("what the burst opened is closed", func() bool { return openFiles(t) <= before+20 }, func() string {
		return fmt.Sprintf("%d before, %d now", before, openFiles(t))
	})
}

func openFiles(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// Programs find with the C library's resolver and the pod's resolv.conf also names of
// one label, by the search domains of both.
func TestDNSForPrograms(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c := nstest.NewCluster(t, clusterNames())
	a := w.namedPod("a", c)
	a.attach(w)
	self := w.await(a.pod.UID, Running).Addresses[0]
	path, err := w.ResolvConf(a.pod.UID)
	if err != nil {
		t.Fatal(err)
	}
	lookUp := func(name string) string {
		var out []byte
		a.Do(func() error {
			cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$1" /etc/resolv.conf && getent ahostsv4 "$2"`, "sh", path, name)
			out, _ = cmd.CombinedOutput() // it fails for a name that does not exist
			return nil
		})
		addr, _, _ := strings.Cut(string(out), " ")
		return addr
	}
	web := clusterNames()[webName][0].String()
	for name, want := range map[string]string{
		"k8s-default-a": self.String(), "k8s-default-a.lab.ts.net": self.String(),
		"web": web, "web.default": web, "web.default.svc": web, "nobody": "",
	} {
		if got := lookUp(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	w.halt()
	if got := lookUp("web"); got != web {
		t.Errorf("while the engine is away, web is %q, want %q", got, web)
	}
}

// A resolver that is asked over HTTPS first is asked from within the pod, too.
func TestDNSOverHTTPS(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c := nstest.NewCluster(t, clusterNames())
	public := netip.MustParseAddr("8.8.8.8")
	h := c.Netlink()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: public.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	}
	if err != nil {
		t.Fatal(err)
	}
	internet := nstest.NewCluster(t, map[string][]netip.Addr{wwwName: {netip.MustParseAddr("198.51.100.8")}})
	internet.ServeDNS(c.Pod, public)
	https := make(chan netip.Addr, 100)
	c.Do(func() error {
		l, err := net.Listen("tcp", netip.AddrPortFrom(public, 443).String())
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				https <- conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
				conn.Close()
			}
		}()
		return nil
	})
	a := w.namedPod("a", c)
	a.attach(w)
	w.await(a.pod.UID, Running)
	w.control.SetDNS(dnsConfig(func(d *tailcfg.DNSConfig) { d.Resolvers = []*dnstype.Resolver{{Addr: public.String()}} }))
	a.awaitAnswer(w, wwwName, netip.MustParseAddr("198.51.100.8"))
	if from := lastFrom(internet, wwwName); from != a.eth4 {
		t.Errorf("asked over UDP by %v, want %v", from, a.eth4)
	}
	select {
	case from := <-https:
		if from != a.eth4 {
			t.Errorf("asked over HTTPS by %v, want %v", from, a.eth4)
		}
	default:
		t.Error("not asked over HTTPS")
	}
}
