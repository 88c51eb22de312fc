// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"tailscale.com/net/dns"
	"tailscale.com/types/dnstype"
	"tailscale.com/util/dnsname"

	"tailscale-nri/engine/internal/nstest"
)

func TestResolvConf(t *testing.T) {
	long := strings.Repeat("a", 60) + "."
	for _, tt := range []struct {
		name, original string
		tailnet        []string
		spare          bool
		want           string // without the first line
		left           int
	}{
		{"of the kubelet", "search a.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5 edns0\n", []string{"x.ts.net"}, false,
			"nameserver 100.100.100.100\nsearch a.svc.cluster.local svc.cluster.local x.ts.net\noptions ndots:5 edns0\n", 0},
		{"nothing of the tailnet", "nameserver 10.96.0.10\nsearch b\nsearch a\n", nil, false, "nameserver 100.100.100.100\nsearch a\n", 0},
		{"no search domains", "nameserver 10.96.0.10\n", []string{"x.ts.net"}, false, "nameserver 100.100.100.100\nsearch x.ts.net\n", 0},
		{"no search domains at all", "nameserver 10.96.0.10\n", nil, false, "nameserver 100.100.100.100\n", 0},
		{"IPv6 only", "nameserver fd00::a\n", nil, false, "nameserver fd7a:115c:a1e0::53\n", 0},
		{"both families", "nameserver fd00::a\nnameserver 10.96.0.10\n", nil, false, "nameserver 100.100.100.100\n", 0},
		{"without NAT", "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\n", nil, true,
			"nameserver 100.100.100.100\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n", 0},
		{"the same domain", "nameserver 10.96.0.10\nsearch X.ts.net.\n", []string{"x.ts.net", "y"}, false, "nameserver 100.100.100.100\nsearch X.ts.net. y\n", 0},
		{"what is not known", "# a comment\n;another\nnameserver 10.96.0.10\nsortlist 10.0.0.0\ndomain d\n", nil, false,
			"nameserver 100.100.100.100\nsearch d\nsortlist 10.0.0.0\n", 0},
		{"no room", "nameserver 10.96.0.10\nsearch " + long + long + long + "a " + long[2:] + "\n", []string{"tail.ts.net", "x"}, false,
			"nameserver 100.100.100.100\nsearch " + long + long + long + "a " + long[2:] + " x\n", 1},
		{"among others", "nameserver 100.100.100.100\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver nonsense\n", nil, true,
			"nameserver 100.100.100.100\nnameserver 10.0.0.1\n", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parseResolvConf([]byte(tt.original))
			if err != nil {
				t.Fatal(err)
			}
			data, left := c.format(tt.tailnet, tt.spare)
			_, got, _ := strings.Cut(string(data), "\n")
			if got != tt.want || len(left) != tt.left {
				t.Errorf("got\n%s\nleft out %v; want\n%s\nleft out %d", got, left, tt.want, tt.left)
			}
		})
	}
	c, err := parseResolvConf([]byte(strings.Repeat("nameserver 10.0.0.1\n", 9)))
	if err != nil || len(c.Nameservers) != 3 {
		t.Errorf("nine nameservers: %+v, %v; want as many as a C library asks", c, err)
	}
	for _, bad := range []string{"", "nameserver ::ffff:100.100.100.100\n", "search a\n", "nameserver 100.100.100.100\nnameserver fd7a:115c:a1e0::53\n", "nameserver fe80::1%eth0\n", "nameserver\n"} {
		if c, err := parseResolvConf([]byte(bad)); err == nil || !strings.Contains(err.Error(), "dnsPolicy: ClusterFirst") {
			t.Errorf("%q: %+v, %v", bad, c, err)
		}
	}
}

// A file that is mounted somewhere is written in place.
func TestRewriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	var was os.FileInfo
	for i, content := range []string{"long and\nlonger\n", "short\n", "", "long and\nlonger\n", "long and\nlonger\n"} {
		if i == 2 { // a pod has filled it
			if err := os.Truncate(path, 1<<40); err != nil {
				t.Fatal(err)
			}
		}
		if err := rewriteFile(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("%q, %v; want %q", got, err, content)
		}
		is, err := os.Stat(path)
		if err != nil || was != nil && !os.SameFile(was, is) || is.Mode() != 0o644 {
			t.Errorf("%v, %v", is, err)
		}
		was = is
	}
}

// A lease of a program of the pod on the file holds up nothing.
func TestRewriteFileLeased(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := rewriteFile(path, []byte("before\n")); err != nil {
		t.Fatal(err)
	}
	f := lease(t, path)
	if err := rewriteFile(path, []byte("after\n")); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("with a lease: %v", err)
	}
	f.Close()
	if err := rewriteFile(path, []byte("after\n")); err != nil {
		t.Error(err)
	}
}

// lease takes a lease on the file, until it is closed.
func lease(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatalf("taking a lease: %v", err)
	}
	return f
}

// With a full disk the file stays as it was.
func TestRewriteFileDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=8k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "resolv.conf")
	if err := rewriteFile(path, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rest"), make([]byte, 64<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	err := rewriteFile(path, []byte("nameserver 100.100.100.100\n"))
	got, readErr := os.ReadFile(path)
	if !errors.Is(err, unix.ENOSPC) || readErr != nil || len(got) > 0 {
		t.Errorf("%v; the file has %q, %v", err, got, readErr)
	}
}

func TestDNSZones(t *testing.T) {
	c, err := parseResolvConf([]byte("nameserver 10.96.0.10\nsearch ns.svc.k8s.example.com svc.k8s.example.com k8s.example.com host.example.net\n"))
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
