// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/k3d/lab/control"
)

// scenario is something that happens to pods. The process is killed before and
// after each step that it takes in play, and followed by another; at the end
// all is as if nothing had happened.
type scenario struct {
	name   string
	static bool         // a static key instead of OAuth
	kept   bool         // the pods' devices are their workloads'
	setup  func(m *rig) // comes before play, undisturbed
	cold   bool         // play begins with the start of a process
	play   func(m *rig)
	away   func(m *rig) // happens before the next process starts
	live   []string     // sandboxes that are on the tailnet in the end
	keys   int          // auth keys that are needed
}

var scenarios = []scenario{
	{
		name:  "attach",
		setup: prepared,
		play:  func(m *rig) { m.begin(m.get("a")) },
		live:  []string{"a"}, keys: 1,
	},
	{
		name: "attach a pod with an exit node, that is a subnet router",
		setup: func(m *rig) {
			prepared(m)
			f := &m.get("a").Features
			f.ExitNode, f.AdvertiseRoutes = "gate", []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}
		},
		play: func(m *rig) { m.attach(m.get("a")) },
		live: []string{"a"}, keys: 1,
	},
	{
		name:   "attach with a static key, and the pod ends while the process is away",
		static: true,
		setup:  prepared,
		play:   attachAndWait,
		away:   goes,
	},
	{
		name:  "attach, and the pod is replaced while the process is away",
		setup: prepared,
		play:  attachAndWait,
		away: func(m *rig) {
			goes(m)
			m.newSandbox("b", "b", "a").listed = true
		},
		live: []string{"b"}, keys: 2,
	},
	{
		name: "attach where it cannot be",
		setup: func(m *rig) {
			prepared(m)
			m.breakUp(m.get("a"))
		},
		play: func(m *rig) {
			m.attach(m.get("a"))
			m.stop(m.get("a"))
			m.remove(m.get("a"))
		},
	},
	{
		name:  "detach and forget",
		setup: running,
		play: func(m *rig) {
			a := m.get("a")
			m.stop(a)
			m.until("the link is gone", func() bool {
				found, err := podnet.Exists(podnet.HostLink(a.SandboxID))
				return err == nil && !found || m.died // and the link comes back, if the process died too early
			}, func() string { return "it is there" })
			m.end(a)
			m.remove(a)
		},
		keys: 1,
	},
	{
		name:  "forget at once",
		setup: running,
		play:  removed,
		keys:  1,
	},
	{
		name:   "forget with a static key",
		static: true,
		setup:  running,
		play:   removed,
	},
	{
		name:  "forget after registering again",
		setup: func(m *rig) { running(m); thrownOutOnce(m); m.expect(m.live("a")); m.settle() },
		play:  removed,
		keys:  2,
	},
	{
		name: "end of a node whose device nobody has heard of",
		setup: func(m *rig) {
			running(m)
			m.kill()
			dir := filepath.Join(m.dir, m.get("a").UID)
			r, err := podstate.Load(dir)
			if err != nil {
				m.t.Fatal(err)
			}
			r.NodeID, r.Registering = "", true
			if _, err := podstate.Save(dir, &r); err != nil {
				m.t.Fatal(err)
			}
			goes(m)
		},
		cold: true,
		play: func(*rig) {},
		keys: 1,
	},
	{
		name:  "a workload's pod ends, and the next has its device",
		kept:  true,
		setup: prepared,
		play: func(m *rig) {
			attachAndWait(m)
			device := m.deviceOf(m.get("a")).ID
			removed(m)
			m.attach(m.newSandbox("b", "b", "a"))
			m.expect(m.live("b"))
			if id := m.deviceOf(m.get("b")).ID; id != device {
				m.fatalf("the next pod is %s, the first was %s", id, device)
			}
		},
		live: []string{"b"}, keys: 2,
	},
	{
		name:  "restart",
		setup: running,
		cold:  true,
		play:  func(*rig) {},
		live:  []string{"a"}, keys: 1,
	},
	{
		name: "reboot",
		setup: func(m *rig) {
			running(m)
			m.kill()
			m.end(m.get("a"))
			m.newSandbox("b", "a", "a")
		},
		cold: true,
		play: func(m *rig) {
			m.attach(m.get("b"))
			m.remove(m.get("a"))
		},
		live: []string{"b"}, keys: 1,
	},
	{
		name:  "new sandbox",
		setup: func(m *rig) { running(m); m.newSandbox("b", "a", "a") },
		play: func(m *rig) {
			m.stop(m.get("a"))
			m.end(m.get("a"))
			m.attach(m.get("b"))
			m.remove(m.get("a"))
		},
		live: []string{"b"}, keys: 1,
	},
	{
		name: "new sandbox that fails, and another",
		setup: func(m *rig) {
			running(m)
			m.breakUp(m.newSandbox("b", "a", "a"))
			m.newSandbox("c", "a", "a")
		},
		play: func(m *rig) {
			a, b, c := m.get("a"), m.get("b"), m.get("c")
			m.stop(a)
			m.end(a)
			m.attach(b)
			m.stop(b)
			m.remove(b)
			m.end(b)
			m.attach(c)
			m.remove(a)
		},
		live: []string{"c"}, keys: 1,
	},
	{
		name: "another pod of the same name",
		setup: func(m *rig) {
			running(m)
			m.stop(m.get("a"))
			m.end(m.get("a"))
			m.get("a").listed = false // without a runtime event
			m.newSandbox("b", "b", "a")
		},
		play: func(m *rig) { m.attach(m.get("b")) },
		live: []string{"b"}, keys: 2,
	},
	{
		name:  "gone without a word",
		setup: running,
		play:  goes,
		keys:  1,
	},
	{
		name:  "device deleted from outside",
		setup: running,
		play:  thrownOutOnce,
		live:  []string{"a"}, keys: 2,
	},
	{
		name:  "device deleted from outside, and the pod ends while the process is away",
		setup: running,
		play:  func(m *rig) { thrownOutOnce(m); m.expect(m.live("a")) },
		away:  goes,
		keys:  2,
	},
	{
		name:  "key expired",
		setup: running,
		play: func(m *rig) {
			if err := m.control.Expire(m.deviceOf(m.get("a")).ID); err != nil {
				m.t.Fatal(err)
			}
		},
		live: []string{"a"}, keys: 2,
	},
	{
		name: "device of a pod whose host has died, and a new pod of its name",
		setup: func(m *rig) {
			abandoned(m, 10*time.Minute)
			m.newSandbox("b", "b", "a")
			m.start(false, nil)
		},
		play: func(m *rig) { m.attach(m.get("b")) },
		live: []string{"b"}, keys: 2,
	},
	{
		name:  "device of a pod whose host has died",
		setup: func(m *rig) { abandoned(m, 2*victimSweepAfter) },
		cold:  true,
		play:  func(*rig) {},
		keys:  1,
	},
	{
		name:  "link taken away",
		setup: running,
		play: func(m *rig) {
			link, err := netlink.LinkByName(podnet.HostLink(m.get("a").SandboxID))
			if err == nil {
				err = netlink.LinkDel(link)
			}
			if err != nil {
				m.t.Fatal(err)
			}
		},
		live: []string{"a"}, keys: 1,
	},
}

// prepared is a process and a sandbox that it has not heard of.
func prepared(m *rig) {
	m.newSandbox("a", "a", "a")
	m.start(false, nil)
}

// running is a sandbox with a node that is up.
func running(m *rig) {
	prepared(m)
	m.attach(m.get("a"))
	m.expect(m.live("a"))
	m.settle()
}

// abandoned is a device that was last seen so long ago, and of which nothing is
// known here.
func abandoned(m *rig, ago time.Duration) {
	running(m)
	m.kill()
	goes(m)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	offline := func(d []control.Device) bool { return len(d) == 1 && !d[0].Online }
	err := errors.Join(
		os.RemoveAll(m.dir),
		m.control.Await(ctx, offline),
		m.control.SetLastSeen(m.deviceOf(m.get("a")).ID, time.Now().Add(-ago)),
	)
	if err != nil {
		m.t.Fatal(err)
	}
}

func attachAndWait(m *rig) {
	m.attach(m.get("a"))
	m.expect(m.live("a"))
}

// goes ends the sandbox without a runtime event.
func goes(m *rig) {
	m.get("a").listed = false
	m.end(m.get("a"))
}

// removed ends the sandbox with no more than RemovePodSandbox.
func removed(m *rig) {
	m.remove(m.get("a"))
	m.end(m.get("a"))
}

func thrownOutOnce(m *rig) {
	if err := m.control.Delete(m.deviceOf(m.get("a")).ID); err != nil {
		m.t.Fatal(err)
	}
}

// table is all points at which processes are killed.
type table struct {
	slots chan struct{} // a rig each

	mu    sync.Mutex
	steps map[step]bool
	runs  int // scenarios
	kills int
	never []string // points that were reached when nobody was killed, and not again
}

func (tb *table) missed(point string) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	tb.never = append(tb.never, point)
	tb.kills--
}

// A process that is killed at any step is followed by one that ends where it
// would have.
func TestKilledAtEachStep(t *testing.T) {
	addDefaultRoute(t)
	start := time.Now()
	tb := &table{slots: make(chan struct{}, 4), steps: map[step]bool{}}
	var wg sync.WaitGroup
	for _, sc := range scenarios {
		wg.Go(func() { t.Run(sc.name, func(t *testing.T) { tb.run(t, sc) }) })
	}
	wg.Wait()
	t.Logf("%d processes were killed in %v; never came to it: %q", tb.kills, time.Since(start).Round(time.Second), tb.never)
	if tb.runs < len(scenarios) || t.Failed() {
		return // -run chose some, or a failure hides what it would have reached
	}
	for _, s := range declaredSteps(t) {
		if !tb.steps[s] {
			t.Errorf("no scenario takes the step %q: add one", s)
		}
	}
}

// run finds out which steps a scenario takes, and kills a process at each.
func (tb *table) run(t *testing.T, sc scenario) {
	var points, sometimes []point
	for i := range 2 {
		var taken []point
		tb.slots <- struct{}{}
		ok := t.Run(fmt.Sprint("undisturbed ", i+1), func(t *testing.T) { taken, _ = sc.run(t, nil) })
		<-tb.slots
		if !ok {
			return
		}
		if i == 0 {
			points = taken
			continue
		}
		points = slices.DeleteFunc(points, func(p point) bool {
			missing := !slices.Contains(taken, p)
			if missing {
				sometimes = append(sometimes, p)
			}
			return missing
		})
	}
	t.Logf("%d points; not always reached: %v", len(points), sometimes)
	tb.mu.Lock()
	tb.runs++
	tb.kills += len(points)
	for _, p := range points {
		tb.steps[p.Step] = true
	}
	tb.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range points {
		tb.slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-tb.slots }()
			t.Run(p.String(), func(t *testing.T) {
				for range 3 {
					if _, reached := sc.run(t, &p); reached {
						return
					}
					t.Log("not reached this time")
				}
				if p.N == 1 {
					t.Error("not reached in three runs")
				}
				tb.missed(sc.name + ": " + p.String()) // how often a step is repeated is a matter of time
			})
		})
	}
	wg.Wait()
}

// run plays the scenario on a rig of its own. It returns the steps that
// were taken if die is nil, and whether the process came to die.
func (sc scenario) run(t *testing.T, die *point) (taken []point, reached bool) {
	m := newRig(t, sc)
	defer m.close()
	sc.setup(m)
	m.away = sc.away
	if sc.cold {
		m.kill()
		m.start(true, die)
	} else {
		m.watch(die)
	}
	sc.play(m)
	if m.away == nil {
		m.expect(m.live(sc.live...))
	}
	m.settle()
	if die != nil && !m.died {
		return nil, false
	}
	taken = m.p.taken()
	if die == nil && m.away != nil {
		m.kill()
		m.startAgain()
	}
	m.away = nil
	live := m.live(sc.live...)
	m.expect(live)
	keys, most := m.control.Counters().KeysMinted, sc.keys
	if m.died {
		most++
	}
	if keys > most {
		m.fatalf("%d auth keys were minted, want %d at most", keys, most)
	}
	if len(live) > 0 && (die == nil || *die == point{stepRecord, 1, true}) {
		m.expectTraffic(live[0])
	}
	return taken, m.died
}

// live returns these sandboxes.
func (m *rig) live(ids ...string) (out []*sandbox) {
	for _, id := range ids {
		out = append(out, m.get(id))
	}
	return out
}

// breakUp gives the sandbox a ts0 that the engine has not made.
func (m *rig) breakUp(s *sandbox) {
	s.broken = true
	s.ns.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = podnet.PodLink
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"})
	})
}

// expectTraffic checks that another pod reaches this one.
func (m *rig) expectTraffic(s *sandbox) {
	m.t.Helper()
	peer := m.newSandbox("peer", "peer", "peer")
	serveEcho(m.t, s.ns)
	m.attach(peer)
	m.expect([]*sandbox{s, peer})
	from, to := m.deviceOf(peer).Addresses[0], m.deviceOf(s).Addresses[0]
	if seen, err := callerSeen(peer.ns, to); err != nil || seen != from.String() {
		m.fatalf("%v is called by %q (%v), want %v", to, seen, err, from)
	}
}

// addDefaultRoute keeps one rig's links from disturbing another's nodes: a
// client on a host without a default route takes each for a new network, and
// closes its connections (net/tsdial/tsdial.go, changeAffectsConn).
func addDefaultRoute(t *testing.T) {
	t.Helper()
	uplink, err := netlink.LinkByName("uplink")
	if err != nil {
		t.Fatal(err)
	}
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	route := &netlink.Route{LinkIndex: uplink.Attrs().Index, Dst: all, Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatalf("adding a default route: %v", err)
	}
	t.Cleanup(func() { netlink.RouteDel(route) })
}
