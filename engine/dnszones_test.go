// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"tailscale.com/net/dns"
	"tailscale.com/types/dnstype"
	"tailscale.com/util/dnsname"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/internal/podstate"
)

func TestDNSZones(t *testing.T) {
	c, err := podstate.ParseResolvConf([]byte("nameserver 10.96.0.10\nsearch ns.svc.k8s.example.com svc.k8s.example.com k8s.example.com host.example.net\n"))
	if err != nil {
		t.Fatal(err)
	}
	ranges := []netip.Prefix{netip.MustParsePrefix("100.72.0.0/14"), netip.MustParsePrefix("10.0.0.0/8")}
	split := &dns.Config{AcceptDNS: true, Routes: map[dnsname.FQDN][]*dnstype.Resolver{
		"tail.ts.net.": nil, "72.100.in-addr.arpa.": nil, "64.100.in-addr.arpa.": nil,
		"example.com.": {{Addr: "192.0.2.1"}}, "svc.k8s.example.com.": {{Addr: "192.0.2.1"}}, "host.example.net.": {{Addr: "192.0.2.1"}},
	}}
	all := &dns.Config{AcceptDNS: true, DefaultResolvers: []*dnstype.Resolver{{Addr: "8.8.8.8"}}}
	for _, tt := range []struct {
		cfg  *dns.Config
		name string
		want bool
	}{
		{split, "peer.tail.ts.net", true},
		{split, "tail.ts.net", true},
		{split, "nottail.ts.net", false},
		{split, "ts.net", false},
		{split, "www.example.com", true},
		{split, "web.ns.svc.k8s.example.com", false}, // though it is the tailnet's, too
		{split, "k8s.example.com", false},
		{split, "a.host.example.net", true}, // no cluster's, and named
		{split, "1.0.64.100.in-addr.arpa", true},
		{split, "1.0.72.100.in-addr.arpa", false},
		{split, "1.0.75.100.in-addr.arpa", false},
		{split, "example.org", false},
		{split, "", false},
		{all, "example.org", true},
		{all, "web.ns.svc.k8s.example.com", false},
		{all, "a.host.example.net", false},
		{all, "peer", false},
		{all, "web.ns.svc.cluster.local", false}, // though no search domain names it
		{all, "8.8.8.8.in-addr.arpa", false},
		{nil, "example.org", false},
	} {
		if got := newDNSZones(c, ranges, tt.cfg).ofTailnet(tt.name); got != tt.want {
			t.Errorf("%q is the tailnet's: %v, want %v", tt.name, got, tt.want)
		}
	}
	if newDNSZones(nil, nil, nil).ofTailnet("a.b") {
		t.Error("a tailnet that is not known has a name")
	}
}

// A node that is not in the tailnet any more is not asked, since it would have no
// answer; its search domains stay.
func TestDNSWithoutTailnet(t *testing.T) {
	var d nodeDNS
	cfg := &dns.Config{AcceptDNS: true, DefaultResolvers: []*dnstype.Resolver{{Addr: "8.8.8.8"}}, SearchDomains: []dnsname.FQDN{"tail.ts.net."}}
	if !d.setTailnetConfig(cfg, nil) || !d.zones.Load().ofTailnet("example.org") {
		t.Error("the tailnet's resolvers are not asked")
	}
	if d.setTailnetConfig(&dns.Config{}, nil) || d.zones.Load().ofTailnet("example.org") || !slices.Equal(d.search, []string{"tail.ts.net"}) {
		t.Errorf("after the end: asked %v, search domains %v", d.zones.Load().ofTailnet("example.org"), d.search)
	}
}

func TestReverseZones(t *testing.T) {
	for prefix, want := range map[string][]string{
		"10.0.0.0/8":           {"10.in-addr.arpa"},
		"10.32.0.0/15":         {"32.10.in-addr.arpa", "33.10.in-addr.arpa"},
		"192.168.1.7/32":       {"7.1.168.192.in-addr.arpa"},
		"fd00:42::/32":         {"2.4.0.0.0.0.d.f.ip6.arpa"},
		"fd00:42:8000::/35":    {"8.2.4.0.0.0.0.d.f.ip6.arpa", "9.2.4.0.0.0.0.d.f.ip6.arpa"},
		"0.0.0.0/0":            {"in-addr.arpa"},
		"fd7a:115c:a1e0::/48":  {"0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"},
		"100.64.128.0/18":      nil,
		"100.64.128.255/18":    nil,
		"2001:db8:8000::/33":   nil,
		"255.255.255.255/31":   {"254.255.255.255.in-addr.arpa", "255.255.255.255.in-addr.arpa"},
		"2001:db8::ff/127":     nil,
		"169.254.0.0/16":       {"254.169.in-addr.arpa"},
		"fd7a:115c:a1e0::1/48": {"0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"},
	} {
		got := reverseZones(netip.MustParsePrefix(prefix))
		switch {
		case want != nil && !slices.Equal(got, want):
			t.Errorf("%s: %v, want %v", prefix, got, want)
		case len(got) == 0 || len(got) > 128:
			t.Errorf("%s: %v", prefix, got)
		}
	}
}

// FuzzDNSQuery: whatever a pod sends, nothing panics, and an answer has the query's ID.
func FuzzDNSQuery(f *testing.F) {
	f.Add([]byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03org\x00\x00\x01\x00\x01"))
	f.Add([]byte("\x12\x34\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x3f"))
	f.Fuzz(func(t *testing.T, q []byte) {
		name, ok := queryName(q)
		if !ok {
			return
		}
		if len(name) > 400 {
			t.Errorf("a name of %d bytes", len(name))
		}
		if a := serverFailure(q); a != nil && (a[0] != q[0] || a[1] != q[1] || a[2]&0x80 == 0 || a[3]&0xf != 2) {
			t.Errorf("%x", a)
		}
	})
}

// When a process is killed, the pod has the cluster's names. The next process gives it
// the tailnet's again.
func TestDNSProcessKilled(t *testing.T) {
	w := newWorld(t)
	c := nstest.NewCluster(t, clusterNames())
	a := w.namedPod("a", c)
	a.pod.NetNS = strings.Replace(a.pod.NetNS, "self", fmt.Sprint(os.Getpid()), 1) // the process's, too
	w.boot()
	a.attach(w)
	self := w.await(a.pod.UID, Running).Addresses[0]
	w.halt()
	name := "k8s-default-a.lab.ts.net."
	for range 2 {
		a.expect(t, name)
		p := startProcess(t)
		if r, ok := p.ask(order{Do: "boot", Dir: w.dir, APIURL: w.control.APIURL(), ControlURL: w.control.ControlURL()}); !ok || r.Err != "" {
			t.Fatalf("booting: %v, %s", ok, r.Err)
		}
		a.awaitAnswer(w, name, self)
		a.expect(t, webName, clusterNames()[webName][0])
		p.kill()
		a.expect(t, webName, clusterNames()[webName][0])
		a.expect(t, name)
	}
	w.boot()
	w.await(a.pod.UID, Running)
	a.expect(t, name, self)
	w.Forget(context.Background(), a.pod.SandboxID)
	w.awaitForgotten(a.pod.UID)
}

// TestShareRoutes: pods of one tailnet hold one map of its zones, pods of another have their own.
func TestShareRoutes(t *testing.T) {
	tailnet := func(server string) *dns.Config {
		return &dns.Config{AcceptDNS: true, Routes: map[dnsname.FQDN][]*dnstype.Resolver{
			"64.100.in-addr.arpa.": nil, "corp.example.": {{Addr: server}},
		}}
	}
	same := func(a, b *dns.Config) bool {
		return reflect.ValueOf(a.Routes).Pointer() == reflect.ValueOf(b.Routes).Pointer()
	}
	first, second, other, fewer := tailnet("192.0.2.1"), tailnet("192.0.2.1"), tailnet("192.0.2.2"), &dns.Config{}
	a, b := shareRoutes(first), shareRoutes(second)
	if !same(a, b) || !reflect.DeepEqual(b, second) || same(first, second) {
		t.Errorf("%v and %v share nothing", a, b)
	}
	for _, cfg := range []*dns.Config{other, fewer, tailnet("192.0.2.1")} {
		if got := shareRoutes(cfg); got != cfg || same(got, a) {
			t.Errorf("got %v for %v", got, cfg)
		}
	}
}
