// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"tailscale.com/net/tsaddr"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
)

// serveBench has a pod's names resolved as a session would, without a tailnet.
func serveBench(b *testing.B, p *nstest.Pod, c *nstest.Cluster) *dnsServer {
	b.Helper()
	ns, err := podnet.FindNamespace(p.Path())
	if err != nil {
		b.Fatal(err)
	}
	conf, err := podstate.ParseResolvConf(kubeletConf(c.IP4, c.IP6))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := podnet.EnsureDNS(ns, conf.Nameservers); err != nil {
		b.Fatal(err)
	}
	sockets, err := podnet.OpenDNS(context.Background(), ns)
	if err != nil {
		b.Fatal(err)
	}
	node := &nodeDNS{}
	node.know(conf, nil)
	return serveDNS(context.Background(), node, sockets, nil)
}

// BenchmarkDNS measures a cluster name that is asked of the cluster's nameserver
// directly, by way of this process, and by the kernel's NAT while that is away.
func BenchmarkDNS(b *testing.B) {
	c := nstest.NewCluster(b, clusterNames())
	p := nstest.NewPod(b)
	c.Connect(p)
	ask := func(b *testing.B, server netip.Addr) {
		var took []time.Duration
		p.Do(func() error {
			for b.Loop() {
				start := time.Now()
				conn, err := net.Dial("udp", netip.AddrPortFrom(server, 53).String())
				if err != nil {
					return err
				}
				m, err := nstest.AskOn(conn, webName, dnsmessage.TypeA)
				conn.Close()
				if err != nil || len(m.Answers) != 1 {
					b.Fatal(m.GoString(), err)
				}
				took = append(took, time.Since(start))
			}
			return nil
		})
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	}
	for range 3 { // neighbours find each other first
		if _, err := p.Ask("udp", c.IP4, webName, dnsmessage.TypeA); err == nil {
			break
		}
	}
	b.Run("direct", func(b *testing.B) { ask(b, c.IP4) })
	s := serveBench(b, p, c)
	b.Run("served", func(b *testing.B) { ask(b, tsaddr.TailscaleServiceIP()) })
	s.close()
	b.Run("away", func(b *testing.B) { ask(b, tsaddr.TailscaleServiceIP()) })
}

// BenchmarkDNSMemory measures what a pod's sockets and goroutines take of this process,
// after a few queries.
func BenchmarkDNSMemory(b *testing.B) {
	const pods = 100
	c := nstest.NewCluster(b, clusterNames())
	var all []*nstest.Pod
	for range pods {
		p := nstest.NewPod(b)
		c.Connect(p)
		all = append(all, p)
	}
	serveBench(b, all[0], c).close()
	before, files := resident(b), 0
	for b.Loop() {
		var servers []*dnsServer
		opened := openFilesOf(b)
		for _, p := range all {
			servers = append(servers, serveBench(b, p, c))
			for range 3 {
				if _, err := p.Ask("udp", tsaddr.TailscaleServiceIP(), webName, dnsmessage.TypeA); err != nil {
					b.Fatal(err)
				}
			}
		}
		files = openFilesOf(b) - opened
		b.ReportMetric(float64(resident(b)-before)/pods, "KB/pod")
		b.ReportMetric(float64(files)/pods, "fds/pod")
		for _, s := range servers {
			s.close()
		}
	}
}

// resident is the process's memory in KB, after a collection.
func resident(b *testing.B) int {
	b.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return kb
}

func openFilesOf(b *testing.B) int {
	b.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		b.Fatal(err)
	}
	return len(entries)
}
