// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"expvar"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"tailscale.com/net/tstun"
	"tailscale.com/util/usermetric"
	"tailscale.com/wgengine/filter"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/k3d/lab/control"
)

// Two pods of one host may send each other the same over WireGuard and by local
// delivery. The tests below do everything on two lanes, one for each way, and want the
// same of both.

// lane is a tailnet with two pods of one host.
type lane struct {
	*world
	t     *testing.T
	way   string
	local bool
	a, b  side

	marker int // number of the last policy

	mu       sync.Mutex
	backends map[string]*backend // the latest, by UID
	known    map[addrKey]netip.Addr
}

// addrKey is a pod's UID and a family, 4 or 6.
type addrKey struct {
	uid    string
	family int
}

// side is one of the two pods.
type side struct {
	*nstest.Pod
	spec Pod
}

// newLanes returns a lane for each way. The name must be the test's own.
func newLanes(t *testing.T, name string) []*lane {
	t.Helper()
	var lanes []*lane
	for _, local := range []bool{false, true} {
		l := &lane{t: t, local: local, way: "WireGuard", backends: map[string]*backend{}, known: map[addrKey]netip.Addr{}}
		suffix := "w"
		if local {
			l.way, suffix = "local", "l"
		}
		l.world = newWorld(t)
		l.boot(func(c *Config) {
			c.NoLocalDelivery = !local
			c.onBackend = func(uid string, b *backend) {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.backends[uid] = b
			}
		})
		l.a, l.b = l.side(name+"a"+suffix), l.side(name+"b"+suffix)
		lanes = append(lanes, l)
	}
	eachLane(lanes, func(l *lane) {
		for _, s := range []side{l.a, l.b} {
			l.await(s.spec.UID, Running)
		}
		l.warm()
		l.assertWay()
	})
	if t.Failed() {
		t.FailNow()
	}
	return lanes
}

// eachLane does the same to all at a time.
func eachLane(lanes []*lane, do func(*lane)) {
	var wg sync.WaitGroup
	for _, l := range lanes {
		wg.Go(func() { do(l) })
	}
	wg.Wait()
}

func (l *lane) side(name string) side {
	l.t.Helper()
	p, spec := l.pod(name)
	spec.Tags = []string{"tag:" + name[len(name)-2:len(name)-1]} // tag:a, tag:b
	p.Do(func() error {
		for _, limit := range []string{"/proc/sys/net/ipv4/icmp_ratelimit", "/proc/sys/net/ipv6/icmp/ratelimit"} {
			if err := os.WriteFile(limit, []byte("0"), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	serveProbes(l.t, p)
	l.mustAttach(spec)
	return side{p, spec}
}

// warm has a speak to b first: two handshakes at the same instant cost five
// seconds. ICMP takes WireGuard on both lanes.
func (l *lane) warm() {
	l.t.Helper()
	for _, p := range []probe{{"ping", 4, 0}, {"udp", 4, 53}, {"ping", 6, 0}, {"udp", 6, 53}} {
		l.untilAnswered(l.a, l.b, p)
		l.untilAnswered(l.b, l.a, p)
	}
}

func (l *lane) untilAnswered(from, to side, p probe) {
	l.t.Helper()
	var last string
	l.until(fmt.Sprintf("%s: %s gets an answer to %v", l.way, from.spec.Name, p), func() bool {
		last = l.ask(from, to, p)
		return last == answered
	}, func() string { return last })
}

// assertWay holds the lane to its way.
func (l *lane) assertWay() {
	l.t.Helper()
	for _, s := range []side{l.a, l.b} {
		if n := l.deliveredLocally(s); (n > 0) != l.local {
			l.t.Errorf("%s: %s has delivered %d packets locally", l.way, s.spec.Name, n)
		}
	}
}

func (l *lane) backend(s side) *backend {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.backends[s.spec.UID]
}

func (l *lane) tun(s side) *tstun.Wrapper { return l.backend(s).sys.Tun.Get() }

// addr is the node's address of a family, 4 or 6, or the last one it had.
func (l *lane) addr(s side, family int) netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := addrKey{s.spec.UID, family}
	for _, a := range l.statusOf(s.spec.UID).Addresses {
		if a.Is4() == (family == 4) {
			l.known[key] = a
		}
	}
	return l.known[key]
}

// has reports whether the node has the address now.
func (l *lane) has(s side, addr netip.Addr) bool {
	return slices.Contains(l.statusOf(s.spec.UID).Addresses, addr)
}

// id is the node's device.
func (l *lane) id(s side) string { return l.statusOf(s.spec.UID).NodeID }

// deliveredLocally is how many packets the node has handed to other nodes of the
// engine without WireGuard.
func (l *lane) deliveredLocally(s side) uint64 { return l.statusOf(s.spec.UID).LocalOut.Packets }

// aclDrops is how many packets the node has refused by its packet filter, by
// the metric that an admin sees.
func (l *lane) aclDrops(s side) int64 {
	drops := l.backend(s).sys.UserMetricsRegistry().DroppedPacketsInbound()
	n, ok := drops.Get(usermetric.DropLabels{Reason: usermetric.ReasonACL}).(*expvar.Int)
	if !ok {
		return 0 // nothing refused yet
	}
	return n.Value()
}

// policy makes the rules the tailnet's, and returns once both nodes apply them. By then
// they also know all that the control plane has told them before.
func (l *lane) policy(rules ...control.Rule) {
	l.t.Helper()
	for range 2 { // what is told together is not taken in together
		l.marker++
		marked := netip.AddrFrom4([4]byte{198, 18, byte(l.marker >> 8), byte(l.marker)})
		mark := rule(marked.String(), "*", by(protoNobodys)) // which AllowAll does not let in
		l.control.SetPolicy(append([]control.Rule{mark}, rules...)...)
		for _, s := range []side{l.a, l.b} {
			l.until(l.way+": the policy has arrived at "+s.spec.Name, func() bool {
				f := l.tun(s).GetFilter()
				return f != nil && f.Check(marked, l.addr(s, 4), 0, protoNobodys) == filter.Accept
			}, func() string { return "" })
		}
	}
}

// The ways in which a probe may end.
const (
	answered = "answered"
	refused  = "refused" // by the other pod's kernel: it got there
	silent   = "silent"
)

// silence is how long to wait for an answer on an idle machine.
const silence = 400 * time.Millisecond

// probe is a question that one pod asks another.
type probe struct {
	kind   string // tcp, udp, ping
	family int
	port   uint16
}

func (p probe) String() string {
	if p.kind == "ping" {
		return fmt.Sprintf("ping%d", p.family)
	}
	return fmt.Sprintf("%s%d:%d", p.kind, p.family, p.port)
}

// probes are all probes. Ports 80 and 53 are answered, on 81 and 54 nothing listens.
var probes = []probe{
	{"tcp", 4, 80}, {"tcp", 4, 81}, {"udp", 4, 53}, {"udp", 4, 54}, {"ping", 4, 0},
	{"tcp", 6, 80}, {"tcp", 6, 81}, {"udp", 6, 53}, {"udp", 6, 54}, {"ping", 6, 0},
}

// passes is the result of a probe that nothing stops.
func (p probe) passes() string {
	if p.port == 81 || p.port == 54 {
		return refused
	}
	return answered
}

// serveProbes answers in a pod what is asked on ports 80 and 53.
func serveProbes(t *testing.T, p *nstest.Pod) {
	t.Helper()
	var tcp net.Listener
	var udp net.PacketConn
	p.Do(func() (err error) {
		if tcp, err = net.Listen("tcp", ":80"); err == nil {
			udp, err = net.ListenPacket("udp", ":53")
		}
		return err
	})
	t.Cleanup(func() { tcp.Close(); udp.Close() })
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() { // what comes goes back
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			udp.WriteTo(buf[:n], from)
		}
	}()
}

// ask probes once.
func (l *lane) ask(from, to side, p probe) (outcome string) {
	return ask(from.Pod, l.addr(to, p.family), p)
}
