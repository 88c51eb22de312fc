// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"tailscale.com/net/tsaddr"
	"tailscale.com/tailcfg"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/k3d/lab/control"
)

// A pod's names are resolved by the cluster while the engine is away, from the first
// moment on and at the end. They are resolved by its node when the engine is back,
// whether it was stopped or killed. resolv.conf keeps its content and its inode.
func TestDNSAway(t *testing.T) {
	w := newWorld(t)
	c := nstest.NewCluster(t, clusterNames())
	a := w.namedPod("a", c)
	web := clusterNames()[webName][0]
	w.boot()
	if err := w.control.SetOutage(control.Refusing); err != nil {
		t.Fatal(err)
	}
	a.attach(w)
	a.expect(t, webName, web) // the node is nowhere near
	if err := w.control.SetOutage(control.Up); err != nil {
		t.Fatal(err)
	}
	self := w.await(a.pod.UID, Running)
	name := "k8s-default-a.lab.ts.net."
	path, _ := w.ResolvConf(a.pod.UID)
	was, _ := os.Stat(path)
	content := a.file(w)
	for range 2 {
		a.expect(t, name, self.Addresses[0])
		w.halt()
		a.expect(t, webName, web)
		a.expect(t, name)
		w.boot()
		if err := w.SetResolvConf(a.pod.UID, kubeletConf(c.IP4, c.IP6)); err != nil {
			t.Fatal(err)
		}
		if got := a.file(w); got != content {
			t.Errorf("after a restart, before the tailnet is heard:\n%s", got)
		}
		w.await(a.pod.UID, Running)
	}
	a.expect(t, name, self.Addresses[0])
	if is, err := os.Stat(path); err != nil || !os.SameFile(was, is) {
		t.Errorf("resolv.conf is another file: %v", err)
	}
	w.Forget(context.Background(), a.pod.SandboxID)
	w.awaitForgotten(a.pod.UID)
	a.expect(t, webName, web)
}

// The original may come late, and its owner may have written it into the empty file: a
// container that starts then finds the tailnet's names as soon as the engine has the
// original.
func TestDNSOriginalLate(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c := nstest.NewCluster(t, clusterNames())
	a := w.namedPod("a", c)
	w.mustAttach(a.pod)
	self := w.await(a.pod.UID, Running)
	path, err := w.ResolvConf(a.pod.UID)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, kubeletConf(c.IP4), 0); err != nil {
		t.Fatal(err)
	}
	w.control.SetDNS(dnsConfig(func(d *tailcfg.DNSConfig) { d.Domains = append(d.Domains, "corp.example") }))
	n := w.nodeOfUID(a.pod.UID)
	w.until("the search domain is heard of", func() bool { return slices.Contains(n.record().TailnetSearch, "corp.example") }, func() string { return "" })
	if got := a.file(w); got != string(kubeletConf(c.IP4)) {
		t.Errorf("before the engine has it, resolv.conf is\n%s", got)
	}
	if err := w.SetResolvConf(a.pod.UID, kubeletConf(c.IP4)); err != nil {
		t.Fatal(err)
	}
	a.expect(t, "k8s-default-a.lab.ts.net.", self.Addresses[0])
	a.expect(t, webName, clusterNames()[webName][0])
	if got := a.file(w); !strings.Contains(got, "nameserver 100.100.100.100\n") || !strings.Contains(got, " lab.ts.net corp.example\n") {
		t.Errorf("resolv.conf is\n%s", got)
	}
	if err := w.SetResolvConf(a.pod.UID, []byte("nameserver 100.100.100.100\n")); err == nil {
		t.Error("an original without a nameserver is taken")
	}
	a.expect(t, webName, clusterNames()[webName][0])
}

// Where the cluster has IPv6 only, so does resolv.conf.
func TestDNSOverIPv6(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c := nstest.NewCluster(t, clusterNames())
	a := w.namedPod("a", c)
	a.attach(w)
	if err := w.SetResolvConf(a.pod.UID, kubeletConf(c.IP6)); err != nil {
		t.Fatal(err)
	}
	self := w.await(a.pod.UID, Running)
	if got := a.file(w); !strings.Contains(got, "nameserver fd7a:115c:a1e0::53\n") || strings.Count(got, "nameserver") != 1 {
		t.Errorf("resolv.conf is\n%s", got)
	}
	a.resolver = tsaddr.TailscaleServiceIPv6()
	a.expect(t, webName, clusterNames()[webName][1])
	a.expect(t, "k8s-default-a.lab.ts.net.", self.Addresses[0])
	w.halt()
	a.expect(t, webName, clusterNames()[webName][1])
	for _, q := range c.Asked(webName) {
		if q.From != a.eth6 {
			t.Errorf("the cluster was asked by %v", q.From)
		}
	}
}

// A pod whose end was not announced is noticed, though our sockets are in its netns.
func TestDNSPodGone(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c := nstest.NewCluster(t, clusterNames())
	a := w.namedPod("a", c)
	a.attach(w)
	w.await(a.pod.UID, Running)
	a.End()
	w.await(a.pod.UID, Stopped)
}

// Where the sockets cannot be opened, the status says why, until they can be.
func TestDNSTrouble(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c := nstest.NewCluster(t, clusterNames())
	a := w.namedPod("a", c)
	var taken []net.Listener
	a.Do(func() error {
		for port := range 10 {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", 11600+port))
			if err != nil {
				return err
			}
			taken = append(taken, l)
		}
		return nil
	})
	a.attach(w)
	s := w.await(a.pod.UID, Running)
	if !strings.Contains(s.Reason, "resolved by the cluster's nameservers only") {
		t.Errorf("the reason is %q", s.Reason)
	}
	a.expect(t, webName, clusterNames()[webName][0])
	a.expect(t, "k8s-default-a.lab.ts.net.")
	for _, l := range taken {
		l.Close()
	}
	w.until("the reason is gone", func() bool { return w.await(a.pod.UID, Running).Reason == "" }, func() string { return "" })
	a.expect(t, "k8s-default-a.lab.ts.net.", s.Addresses[0])
}

// The tailnet's search domains come into the file even if it could not be written when
// they arrived, or the process ended before it was.
func TestDNSFileWrittenLater(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c := nstest.NewCluster(t, clusterNames())
	a := w.namedPod("a", c)
	a.attach(w)
	w.await(a.pod.UID, Running)
	path, err := w.ResolvConf(a.pod.UID)
	if err != nil {
		t.Fatal(err)
	}
	f := nstest.Lease(t, path)
	w.control.SetDNS(dnsConfig(func(d *tailcfg.DNSConfig) { d.Domains = append(d.Domains, "corp.example") }))
	n := w.nodeOfUID(a.pod.UID)
	w.until("the search domain is heard of", func() bool { return slices.Contains(n.record().TailnetSearch, "corp.example") }, func() string { return "" })
	f.Close()
	hasDomain := func() bool {
		data, err := os.ReadFile(path)
		return err == nil && strings.Contains(string(data), " lab.ts.net corp.example\n")
	}
	w.until("resolv.conf has the domain", hasDomain, func() string { return a.file(w) })

	w.halt()
	if err := os.WriteFile(path, kubeletConf(c.IP4), 0o600); err != nil {
		t.Fatal(err)
	}
	w.boot()
	w.until("resolv.conf has the domain again", hasDomain, func() string { data, _ := os.ReadFile(path); return string(data) })
}
