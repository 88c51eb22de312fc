// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tailscale.com/ipn/store/mem"
	"tailscale.com/net/tsaddr"
	"tailscale.com/types/key"

	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/k3d/lab/control"
)

// look writes down all that outlives a process, one line for each thing: the
// kernel's objects, what is on disk, and the tailnet's devices.
func (m *rig) look() string {
	m.t.Helper()
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	links, err := netlink.LinkList()
	if err != nil {
		say("host: %v", err) // another rig's links change
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, podnet.HostLink(m.prefix)) {
			say("host: link %s", l.Attrs().Name)
		}
	}
	for _, s := range m.sandboxes {
		if !s.ended && !s.broken {
			m.lookInto(s, say)
		}
	}
	m.lookAtDisk(say)
	for _, d := range m.control.Devices() {
		say("tailnet: %s", describe(d))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// describe is a device with what its node knows of it.
func describe(d control.Device) string {
	what := fmt.Sprintf("device %s, ID %s, %s", d.Name, d.ID, d.NodeKey.ShortString())
	if d.Expired {
		what = "device " + d.Name + ", logged out"
	}
	return what
}

// lookInto describes ts0. Links and addresses that change meanwhile are an
// error of the kernel's, which the next look does not have.
func (m *rig) lookInto(s *sandbox, say func(string, ...any)) {
	m.t.Helper()
	s.ns.Do(func() error {
		ts0, err := netlink.LinkByName(podnet.PodLink)
		if err != nil {
			return nil // there is none
		}
		a := ts0.Attrs()
		say("%s: ts0 MTU %d, up %v, NOARP %v", s.SandboxID, a.MTU, a.RawFlags&unix.IFF_UP != 0, a.RawFlags&unix.IFF_NOARP != 0)
		addrs, err := netlink.AddrList(ts0, netlink.FAMILY_ALL)
		for _, a := range addrs {
			say("%s: address %v", s.SandboxID, a.IPNet)
		}
		// What is for ts0's addresses: other pods, who come and go, are in another table.
		const bound, ours = 11600, 116
		routes, routesErr := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: bound}, netlink.RT_FILTER_TABLE)
		rules, rulesErr := netlink.RuleList(netlink.FAMILY_ALL)
		for _, r := range routes {
			say("%s: route %v from %v", s.SandboxID, r.Dst, r.Src)
		}
		rules = slices.DeleteFunc(rules, func(r netlink.Rule) bool { return r.Protocol != ours })
		say("%s: %d rules", s.SandboxID, len(rules))
		nftErr := lookAtFilters(s.SandboxID, say)
		if err := errors.Join(err, routesErr, rulesErr, nftErr); err != nil {
			say("%s: %v", s.SandboxID, err)
		}
		return nil
	})
}

const filterLine = "%s: nftables %s, family %d, chain %s, with rules %v"

// lookAtFilters describes the nftables of the thread's netns.
func lookAtFilters(of string, say func(string, ...any)) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	chains, err := conn.ListChains()
	for _, c := range chains {
		rules, listErr := conn.GetRules(c.Table, c)
		err = errors.Join(err, listErr)
		say(filterLine, of, c.Table.Name, c.Table.Family, c.Name, len(rules) > 0)
	}
	return err
}

// lookAtDisk describes each pod's directory. What tailscale.com keeps next to
// its state may be there or not, as long as nobody else can read it.
func (m *rig) lookAtDisk(say func(string, ...any)) {
	m.t.Helper()
	err := filepath.WalkDir(m.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == m.dir {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(m.dir, path)
		want := os.FileMode(0o600)
		if entry.IsDir() {
			want = fs.ModeDir | 0o700
		}
		if info.Mode() != want {
			say("disk: %s has mode %v", name, info.Mode())
		}
		switch parts := strings.Split(name, "/"); {
		case name == podstate.ServedFile, name == podstate.ServedFile+".new":
		case len(parts) == 1:
			m.lookAtRecord(path, say)
		case parts[1] == podstate.NetmapDir && len(parts) > 2, parts[1] == "profile-data":
		default:
			say("disk: %s", name)
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) { // it may be going just now
		m.t.Fatal(err)
	}
}

func (m *rig) lookAtRecord(dir string, say func(string, ...any)) {
	r, err := podstate.Load(dir)
	if err != nil {
		say("disk: %v", err)
		return
	}
	key, err := nodeKeyIn(filepath.Join(dir, podstate.StateFile))
	if err != nil {
		say("disk: %v", err)
		return
	}
	say("record of %s: link %s, ID %s, %s, registering %v, forgotten %v",
		r.Pod.UID, r.Link, r.NodeID, key.ShortString(), r.Registering, r.Forgotten)
	if owner, err := podstate.NetmapOwner(filepath.Join(dir, podstate.NetmapDir)); err == nil && owner != key {
		say("record of %s: its netmap is that of %s", r.Pod.UID, owner.ShortString())
	}
}

// nodeKeyIn is podstate.StoredKeys for a file that may vanish meanwhile: a FileStore
// would create it again.
func nodeKeyIn(path string) (key.NodePublic, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return key.NodePublic{}, err
	}
	var state mem.Store
	if err := state.LoadFromJSON(data); err != nil {
		return key.NodePublic{}, err
	}
	p, err := podstate.CurrentPrefs(&state)
	if err != nil || p.Persist == nil {
		return key.NodePublic{}, err
	}
	return p.Persist.PublicNodeKey(), nil
}

// expected is what look is to find: these sandboxes on the tailnet and nothing
// else. With a static key, devices that are logged out stay.
func (m *rig) expected(live []*sandbox) string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, s := range live {
		d := m.deviceOf(s)
		d.Expired = false
		link := podnet.HostLink(s.SandboxID)
		say("host: link %s", link)
		say("%s: ts0 MTU 1280, up true, NOARP true", s.SandboxID)
		say("%s: 10 rules", s.SandboxID)
		for _, addr := range d.Addresses {
			route := tsaddr.CGNATRange()
			if addr.Is6() {
				route = tsaddr.TailscaleULARange()
			}
			say("%s: address %v/%d", s.SandboxID, addr, addr.BitLen())
			say("%s: route %v from %v", s.SandboxID, route, addr)
		}
		for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
			if s.Features.ExitNode != "" {
				say("%s: route %v from <nil>", s.SandboxID, map[nftables.TableFamily]netip.Prefix{
					nftables.TableFamilyIPv4: tsaddr.AllIPv4(), nftables.TableFamilyIPv6: tsaddr.AllIPv6(),
				}[family])
				say(filterLine, s.SandboxID, "tailscale-nri-exit", family, "closed", true)
			}
			if advertises(&s.Features) {
				say(filterLine, s.SandboxID, "tailscale-nri", family, "forward", true)
				say(filterLine, s.SandboxID, "tailscale-nri", family, "source", true)
			}
		}
		say("disk: %s/%s", s.UID, podstate.RecordFile)
		say("disk: %s/%s", s.UID, podstate.StateFile)
		say("disk: %s/%s", s.UID, podstate.NetmapDir)
		say("record of %s: link %s, ID %s, %s, registering false, forgotten false", s.UID, link, d.ID, d.NodeKey.ShortString())
		say("tailnet: %s", describe(d))
	}
	for _, d := range m.control.Devices() {
		its := func(s *sandbox) bool { return d.ID == m.deviceOf(s).ID }
		if m.authKey != "" && !slices.ContainsFunc(live, its) {
			say("tailnet: device %s, logged out", d.Name)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// deviceOf returns the device of the sandbox's name.
func (m *rig) deviceOf(s *sandbox) control.Device {
	for _, d := range m.control.Devices() {
		if d.Name == s.Hostname+".lab.ts.net" {
			return d
		}
	}
	return control.Device{Name: s.Hostname + ".lab.ts.net"}
}

// expect waits until all is as expected, and stays so.
func (m *rig) expect(live []*sandbox) {
	m.t.Helper()
	for range 2 {
		for _, s := range live {
			m.awaitState(s, Running)
		}
		var nodes []NodeStatus
		m.until("the engine has these nodes alone", func() (ok bool) {
			nodes, ok = m.statuses()
			// A refused pod has no node, and stays in the status.
			nodes = slices.DeleteFunc(nodes, func(s NodeStatus) bool { return s.State == Pending && s.AttachedAt.IsZero() })
			return ok && len(nodes) == len(live) || m.overtaken()
		}, func() string { return fmt.Sprintf("%+v", nodes) })
		var got, want string
		m.until("all is as expected", func() bool {
			want, got = m.expected(live), m.look()
			return got == want || m.overtaken()
		}, func() string { return difference(got, want) })
	}
}

// difference is what is too much and what is missing.
func difference(got, want string) string {
	var out []string
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for _, line := range g {
		if !slices.Contains(w, line) {
			out = append(out, "too much: "+line)
		}
	}
	for _, line := range w {
		if !slices.Contains(g, line) {
			out = append(out, "missing:  "+line)
		}
	}
	return strings.Join(out, "\n")
}
