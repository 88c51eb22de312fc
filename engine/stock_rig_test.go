// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab/control"
)

// stock is a machine with a stock tailscaled of the program's own version, in a
// netns that has a way to the tests' one.
type stock struct {
	*nstest.Pod
	w      *world
	name   string
	dir    string
	daemon *exec.Cmd
}

var stocks atomic.Int32

// startStock starts a machine, which is not logged in.
func (w *world) startStock(name string) *stock {
	w.t.Helper()
	s := &stock{Pod: nstest.NewPod(w.t), w: w, name: name, dir: w.t.TempDir()}
	n := stocks.Add(1)
	wire(w.t, s.Pod, "eth0", nil, fmt.Sprintf("stock%d", n), fmt.Sprintf("172.30.%d.", 100+n), "")
	s.start()
	w.t.Cleanup(s.kill)
	return s
}

// wire connects a pod with another one, or with the tests' netns: it gets the
// second address of the /24, and of the /64 if there is one, with the first as its
// gateway.
func wire(t *testing.T, pod *nstest.Pod, name string, to *nstest.Pod, far, net4, net6 string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	here := &netlink.Handle{}
	if to != nil {
		here = to.Netlink()
	}
	ns, err := netns.GetFromPath(pod.Path())
	must(err)
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = far
	must(here.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(int(ns))}))
	there := pod.Netlink()
	for link, end := range map[string]struct {
		*netlink.Handle
		n byte
	}{far: {here, 1}, name: {there, 2}} {
		l, err := end.LinkByName(link)
		must(err)
		must(end.LinkSetUp(l))
		for prefix, bits := range map[string]int{net4: 24, net6: 64} {
			if prefix != "" {
				ip := net.ParseIP(fmt.Sprintf("%s%d", prefix, end.n))
				must(end.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(bits, map[int]int{24: 32, 64: 128}[bits])}, Flags: 0x02}))
			}
		}
	}
	must(there.RouteAdd(&netlink.Route{Gw: net.ParseIP(net4 + "1")}))
	if net6 != "" {
		must(there.RouteAdd(&netlink.Route{Gw: net.ParseIP(net6 + "1")}))
	}
}

// give puts addresses on a machine's lo.
func give(t *testing.T, p *nstest.Pod, addrs ...string) {
	t.Helper()
	h := p.Netlink()
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		ip := netip.MustParseAddr(a)
		err := h.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}, Flags: 0x02})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (s *stock) binary(name string) string {
	path, err := filepath.Abs("../.build/bin/" + name + "-new")
	if err != nil {
		s.w.t.Fatal(err)
	}
	return path
}

func (s *stock) start() {
	s.w.t.Helper()
	var log bytes.Buffer
	s.daemon = exec.Command(s.binary("tailscaled"), "--no-logs-no-support", "--statedir="+s.dir, "--socket="+s.socket())
	s.daemon.Env = append(os.Environ(), "TS_DEBUG_FIREWALL_MODE=nftables")
	s.daemon.Stdout, s.daemon.Stderr = &log, &log
	s.daemon.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	s.Do(s.daemon.Start)
	s.w.until(s.name+" has a socket", func() bool {
		c, err := net.Dial("unix", s.socket())
		if err == nil {
			c.Close()
		}
		return err == nil
	}, log.String)
}

func (s *stock) socket() string { return filepath.Join(s.dir, "sock") }

// kill ends the daemon as a crash does.
func (s *stock) kill() {
	if s.daemon.ProcessState == nil {
		_ = s.daemon.Process.Kill()
		_ = s.daemon.Wait()
		_ = os.Remove(s.socket())
	}
}

// run runs the stock command line.
func (s *stock) run(args ...string) {
	s.w.t.Helper()
	if out, ok := s.try(args...); !ok {
		s.w.t.Fatalf("%s: tailscale %q: %s", s.name, args, out)
	}
}

func (s *stock) try(args ...string) (out string, ok bool) {
	cmd := exec.Command(s.binary("tailscale"), append([]string{"--socket=" + s.socket()}, args...)...)
	text, err := cmd.CombinedOutput()
	return string(text), err == nil
}

// up logs the machine in, and returns its device.
func (s *stock) up(args ...string) control.Device {
	s.w.t.Helper()
	key, err := s.w.tailnet.NewAuthKey(s.w.t.Context(), tailnet.Node{Hostname: s.name, Tags: []string{"tag:k8s-pod"}})
	if err != nil {
		s.w.t.Fatal(err)
	}
	s.run(append([]string{"up", "--auth-key=" + key, "--hostname=" + s.name, "--accept-dns=false", "--login-server=" + s.w.control.ControlURL()}, args...)...)
	return s.w.device(s.name)
}

// device is the device of that name.
func (w *world) device(name string) (found control.Device) {
	w.t.Helper()
	w.until("the device "+name+" is connected", func() bool {
		for _, d := range w.control.Devices() {
			if d.Hostname == name && d.Online {
				found = d
				return true
			}
		}
		return false
	}, func() string { return fmt.Sprint(w.control.Devices()) })
	return found
}

// approve approves routes of a device, and withdraws all others.
func (w *world) approve(id string, routes ...string) {
	w.t.Helper()
	var prefixes []netip.Prefix
	for _, r := range routes {
		prefixes = append(prefixes, netip.MustParsePrefix(r))
	}
	if err := w.control.SetRoutes(id, prefixes...); err != nil {
		w.t.Fatal(err)
	}
}

// called dials once, soon given up, and returns the address under which the pod is
// seen there, "" if nobody answers.
func called(from *nstest.Pod, to string) (seen string) {
	done := make(chan string, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(from.Path())
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err != nil {
			done <- err.Error()
			return
		}
		c, err := net.DialTimeout("tcp", net.JoinHostPort(to, "7"), 700*time.Millisecond)
		if err != nil {
			done <- ""
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Second))
		buf := make([]byte, 100)
		n, _ := c.Read(buf)
		done <- string(buf[:n])
	}()
	return <-done
}

// untilCalled waits until the pod is seen there under an address, "" if not at all,
// and returns how long that took.
func (w *world) untilCalled(from *nstest.Pod, to, want string) time.Duration {
	w.t.Helper()
	start, last := time.Now(), ""
	w.until(fmt.Sprintf("%s is called by %q", to, want), func() bool {
		last = called(from, to)
		return last == want
	}, func() string { return last })
	return time.Since(start)
}

// assertCalled checks that at once.
func assertCalled(t *testing.T, when string, from *nstest.Pod, calls map[string]string) {
	t.Helper()
	for to, want := range calls {
		if got := called(from, to); got != want {
			t.Errorf("%s, %s is called by %q, want %q", when, to, got, want)
		}
	}
}

// site is what is beyond a pod's eth0, with all of these addresses.
func (w *world) site(p *nstest.Pod, addrs ...string) *nstest.Pod {
	w.t.Helper()
	s := nstest.NewPod(w.t)
	give(w.t, s, addrs...)
	wire(w.t, p, "eth0", s, "cni0", "10.9.0.", "fc00:9::")
	serveEcho(w.t, s)
	return s
}

// flushNftables takes away all of a machine's nftables.
func flushNftables(p *nstest.Pod) error {
	ns, err := netns.GetFromPath(p.Path())
	if err != nil {
		return err
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return err
	}
	conn.FlushRuleset()
	return conn.Flush()
}

// hostNet is what a router would change of the host's netns: tables of nftables, rules,
// routes of ours, and whether the host forwards.
func hostNet(t *testing.T) string {
	t.Helper()
	var out []string
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := conn.ListTables()
	for _, table := range tables {
		out = append(out, "table "+table.Name)
	}
	rules, errRules := netlink.RuleList(netlink.FAMILY_ALL)
	for _, r := range rules {
		out = append(out, r.String())
	}
	routes, errRoutes := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: 116}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	for _, r := range routes {
		out = append(out, r.String())
	}
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/all/accept_ra"} {
		value, errKey := os.ReadFile("/proc/sys/net/" + key)
		err = errors.Join(err, errKey)
		out = append(out, key+" "+strings.TrimSpace(string(value)))
	}
	if err := errors.Join(err, errRules, errRoutes); err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}
