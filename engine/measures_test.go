// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"tailscale.com/util/usermetric"

	"tailscale-nri/engine/exporter"
	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/measure"
	"tailscale-nri/engine/tailnet"
)

// measured returns the measures of the pod, nil if it has none.
func (w *world) measured(name string) *measure.Pod {
	m := w.Measures()
	for i := range m.Pods {
		if m.Pods[i].Name == name {
			return &m.Pods[i]
		}
	}
	return nil
}

// untilMeasured waits until the measures of the pod are as they should be.
func (w *world) untilMeasured(name, what string, ok func(*measure.Pod) bool) (p *measure.Pod) {
	w.t.Helper()
	w.until(name+": "+what, func() bool {
		p = w.measured(name)
		return p != nil && ok(p)
	}, func() string { return fmt.Sprintf("%+v", p) })
	return p
}

// scrape returns this project's series of a scrape of the engine, by metric.
func (w *world) scrape() map[string][]string {
	w.t.Helper()
	handler := promhttp.HandlerFor(exporter.NewRegistry(func() exporter.Process {
		e := w.Measures()
		return exporter.Process{Engine: &e, API: w.tailnet.(*tailnet.OAuth).Calls()}
	}), promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
	rec := httptest.NewRecorder()
	handler.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if rec.Code != http.StatusOK {
		w.t.Fatalf("%d: %s", rec.Code, rec.Body)
	}
	lines := map[string][]string{}
	for line := range strings.Lines(rec.Body.String()) {
		if name, _, _ := strings.Cut(strings.Replace(line, " ", "{", 1), "{"); strings.HasPrefix(name, exporter.Prefix) {
			lines[name] = append(lines[name], strings.TrimSpace(line))
		}
	}
	return lines
}

// total sums the series of a metric that have all of these labels.
func total(lines map[string][]string, name string, labels ...string) (sum float64) {
	for _, line := range lines[exporter.Prefix+name] {
		head, value, _ := strings.Cut(line, "} ")
		if len(labels) == 0 {
			_, value, _ = strings.Cut(line, " ")
		}
		if !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(head+"}", l) }) {
			v, _ := strconv.ParseFloat(value, 64)
			sum += v
		}
	}
	return sum
}

// A pod's packets count by their path: to another pod of the host without WireGuard, to
// others by it. Packets that the filter drops count too. A scrape lacks nothing of what
// the engine can measure.
func TestMeasures(t *testing.T) {
	for _, local := range []bool{true, false} {
		t.Run(fmt.Sprintf("local delivery %v", local), func(t *testing.T) {
			w := newWorld(t)
			w.boot(func(c *Config) { c.NoLocalDelivery = !local })
			a, podA := w.pod("a")
			b, podB := w.pod("b")
			podB.Features.ShieldsUp = true
			serveEcho(t, a)
			serveEcho(t, b)
			w.mustAttach(podA)
			w.mustAttach(podB)
			nodeA, nodeB := w.await(podA.UID, Running), w.await(podB.UID, Running)
			// Either may have joined before the other, and hear of it with a later netmap.
			w.untilCalled(b, nodeA.Addresses[0].String(), nodeB.Addresses[0].String())
			expectNoCall(t, a, nodeB.Addresses[0])

			p := w.untilMeasured("a", "connected, one peer", func(p *measure.Pod) bool {
				return p.Up && p.Served && p.Control && p.Peers == 1 && p.HomeDERP != ""
			})
			if !p.KeyExpiry.IsZero() {
				t.Errorf("the key of a tagged node ends %v", p.KeyExpiry)
			}
			tunnel := func(p *measure.Pod) (sum measure.Traffic) {
				for _, path := range []measure.Path{measure.Direct, measure.DERP} {
					for _, t := range p.Traffic[path] {
						sum.Packets, sum.Bytes = sum.Packets+t.Packets, sum.Bytes+t.Bytes
					}
				}
				return sum
			}
			if local {
				for d, t2 := range p.Traffic[measure.Local] {
					if t2.Packets < 3 || t2.Bytes < 3*40 {
						t.Errorf("%v by local delivery: %+v", measure.Direction(d), t2)
					}
				}
			} else {
				if p.Traffic[measure.Local] != ([2]measure.Traffic{}) {
					t.Errorf("local delivery: %+v", p.Traffic[measure.Local])
				}
				if sum := tunnel(p); sum.Packets < 6 || sum.Bytes < 6*60 {
					t.Errorf("through WireGuard: %+v", sum)
				}
			}
			// Packets that the filter refuses go by WireGuard on both ways.
			p = w.untilMeasured("b", "a drop and a session", func(p *measure.Pod) bool {
				return p.Sessions == 1 && slices.ContainsFunc(p.Drops, func(d measure.Drop) bool {
					return d.Direction == measure.In && d.Reason == "acl" && d.Packets > 0
				})
			})
			if age := time.Since(p.Newest); age < 0 || age > time.Minute || p.Oldest != p.Newest {
				t.Errorf("handshakes: oldest %v, newest %v", p.Oldest, p.Newest)
			}
			ends := time.Now().Add(30 * 24 * time.Hour).Round(time.Second)
			if err := w.control.ExpireAt(nodeB.NodeID, ends); err != nil {
				t.Fatal(err)
			}
			w.untilMeasured("b", "an end of its key", func(p *measure.Pod) bool { return p.KeyExpiry.Equal(ends) })
			expectExported(t, w.scrape())
		})
	}
}

// expectNoCall tries for a moment to call an address that takes no calls.
func expectNoCall(t *testing.T, from *nstest.Pod, to netip.Addr) {
	t.Helper()
	from.Do(func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, 7).String(), time.Second)
		if err == nil {
			c.Close()
			t.Errorf("%v takes calls", to)
		}
		return nil
	})
}

// expectExported: a scrape has every metric that is the engine's.
func expectExported(t *testing.T, lines map[string][]string) {
	t.Helper()
	for _, f := range exporter.Families {
		for _, label := range f.Labels {
			checkValues(t, lines, f, label)
		}
		name := f.Name
		if f.Kind == exporter.Histogram {
			name += "_bucket"
		}
		if lines[name] == nil && f.Name != exporter.Prefix+"hook_duration_seconds" {
			t.Errorf("%s is not exported", f.Name)
		}
	}
}

// checkValues: a label has no value but those that are listed.
func checkValues(t *testing.T, lines map[string][]string, f exporter.Family, label string) {
	t.Helper()
	may := exporter.Values(f, label)
	for _, line := range lines[f.Name] {
		_, rest, ok := strings.Cut(line, label+`="`)
		if value, _, _ := strings.Cut(rest, `"`); may != nil && (!ok || !slices.Contains(may, value)) {
			t.Errorf("%s is not in %q: %s", label, may, line)
		}
	}
}

// Each event of a pod's life counts once, and its series end with it.
func TestMeasuresOfALife(t *testing.T) {
	w := newWorld(t)
	w.boot()
	n := w.join("a")
	lines := w.scrape()
	for _, stage := range measure.Stages {
		if got := total(lines, "attach_stage_duration_seconds_count", `stage="`+stage+`"`); got != 1 {
			t.Errorf("stage %s: %v nodes, want 1", stage, got)
		}
	}
	sum := total(lines, "ready_duration_seconds_sum")
	if ready := n.ReadyIn.Seconds(); sum < ready*0.9 || sum > ready*1.1 {
		t.Errorf("ready in %vs, the status says %v", sum, n.ReadyIn)
	}
	expect := func(when, name string, want float64, labels ...string) {
		t.Helper()
		if got := total(w.scrape(), name, labels...); got != want {
			t.Errorf("%s: %s %v is %v, want %v", when, name, labels, got, want)
		}
	}
	expect("attached", "registrations_total", 1, `kind="first"`)
	expect("attached", "nodes", 1, `state="Running"`)
	for _, file := range []measure.File{measure.RecordFile, measure.StateFile} {
		if total(lines, "pod_disk_written_bytes_total", `file="`+file.String()+`"`) == 0 {
			t.Errorf("no byte of the %s was counted", file)
		}
	}
	if total(lines, "api_requests_total", `operation="mint_key"`, `result="ok"`) < 1 || total(lines, "auth_keys_minted_total") < 1 {
		t.Errorf("no key was minted: %q", lines[exporter.Prefix+"api_requests_total"])
	}

	if err := w.control.Delete(n.NodeID); err != nil {
		t.Fatal(err)
	}
	w.until("another device", func() bool {
		s := w.statusOf(n.UID)
		return s.State == Running && s.NodeID != n.NodeID
	}, func() string { return fmt.Sprintf("%+v", w.statusOf(n.UID)) })
	expect("deleted by hand", "registrations_total", 1, `kind="again"`)
	if got := total(w.scrape(), "session_restarts_total"); got < 1 {
		t.Errorf("%v restarts of a session, want one", got)
	}
	expect("deleted by hand", "ready_duration_seconds_count", 1)

	if err := errors.Join(w.Detach(context.Background(), n.SandboxID), w.Forget(context.Background(), n.SandboxID)); err != nil {
		t.Fatal(err)
	}
	w.awaitForgotten(n.UID)
	if got := w.scrape()[exporter.Prefix+"pod_up"]; got != nil {
		t.Errorf("after the end: %q", got)
	}
	if got := total(w.scrape(), "devices_deleted_total", `reason="pod_ended"`); got < 1 {
		t.Errorf("%v devices deleted", got)
	}
}

// A node of an earlier pod of the same name does not spoil the scrape: the later attach
// counts. A pod that could not be attached late is not up.
func TestMeasuresAreOfOnePod(t *testing.T) {
	w := newWorld(t)
	w.boot()
	w.join("a")
	_, again := w.pod("a")
	again.UID, again.SandboxID = "uid-a2", "sba2"
	w.mustAttach(again)
	w.await(again.UID, Running)
	w.late.refused["uid-r"] = NodeStatus{UID: "uid-r", Namespace: "default", Pod: "r", State: Pending}
	m := w.Measures()
	if m.Nodes[string(Running)] != 2 || m.Nodes[string(Pending)] != 1 || len(m.Pods) != 2 {
		t.Errorf("%d pods, nodes %v", len(m.Pods), m.Nodes)
	}
	if p := w.measured("r"); p == nil || p.Up || p.HasNode || p.Served {
		t.Errorf("the refused pod: %+v", p)
	}
	w.scrape()
}

// A backend that hangs delays no scrape, and hides neither the others nor what its own
// pod sends. It is counted when it has hung for long.
func TestMeasuresWhileOneHangs(t *testing.T) {
	w := newWorld(t)
	w.boot()
	held := w.join("a")
	w.join("b")
	for _, name := range []string{"a", "b"} {
		w.untilMeasured(name, "a peer", func(p *measure.Pod) bool { return p.Answered && p.Peers == 1 })
	}
	locked := &w.nodeOfUID(held.UID).runningSession().b.engine.sessions.mu
	locked.Lock()
	quickest := time.Hour
	peers := func(name string, want int) {
		t.Helper()
		start := time.Now()
		p := w.measured(name)
		quickest = min(quickest, time.Since(start))
		if p == nil || !p.Up || !p.Served || !p.Control || !p.Answered || p.Peers != want {
			t.Errorf("%+v, want %d peers", p, want)
		}
	}
	for end := time.Now().Add(hangs + time.Second); time.Now().Before(end); time.Sleep(hangs / 4) {
		peers("a", 1)
	}
	if m := w.Measures(); m.Unanswered != 1 {
		t.Errorf("%d nodes do not answer, want 1", m.Unanswered)
	}
	w.join("c")
	w.untilMeasured("b", "two peers", func(p *measure.Pod) bool { return p.Peers == 2 })
	peers("a", 1)
	// Of all, since any one may meet a machine that is busy; a delayed one waits each time.
	if quickest > time.Second {
		t.Errorf("the quickest took %v", quickest)
	}
	locked.Unlock()
	w.untilMeasured("a", "two peers", func(p *measure.Pod) bool { return p.Peers == 2 })
	if m := w.Measures(); m.Unanswered != 0 {
		t.Errorf("%d nodes do not answer, want none", m.Unanswered)
	}
}

// A scrape may come while the engine ends, and after that.
func TestMeasuresWhileTheEngineEnds(t *testing.T) {
	w := newWorld(t)
	w.boot()
	for _, name := range []string{"a", "b"} {
		w.join(name)
	}
	e, ended, scraped := w.Engine, make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for over := false; !over; n++ {
			select {
			case <-ended:
				over = true
			default:
			}
			if m := e.Measures(); m.Nodes[string(Running)]+m.Nodes[string(Pending)]+m.Nodes[string(Stopped)] != 2 {
				t.Errorf("nodes are %v, want two", m.Nodes)
			}
			if all := e.Details(); len(all) != 2 {
				t.Errorf("%d nodes in detail, want two", len(all))
			}
		}
		scraped <- n
	}()
	w.halt()
	close(ended)
	if n := <-scraped; n < 1 {
		t.Errorf("%d scrapes", n)
	}
}

// TestUserMetrics compares the metrics that are read with those that tailscale.com has:
// all paths, all directions.
func TestUserMetrics(t *testing.T) {
	w := newWorld(t)
	w.boot()
	n := w.join("a")
	reg := w.nodeOfUID(n.UID).runningSession().b.sys.UserMetricsRegistry()
	var u usermetrics
	var p measure.Pod
	if home := u.into(&p, reg); home == 0 {
		t.Error("no home DERP region")
	}
	paths := map[string][]string{}
	for line := range strings.Lines(u.text.String()) {
		name, label, _ := strings.Cut(line, "{path=\"")
		if _, ok := userTraffic[strings.TrimPrefix(name, userPrefix)]; ok {
			path, _, _ := strings.Cut(label, `"`)
			paths[name] = append(paths[name], path)
		}
	}
	if len(paths) != len(userTraffic) {
		t.Errorf("tailscale.com has %v, read are %v", paths, slices.Collect(maps.Keys(userTraffic)))
	}
	for name, got := range paths {
		if want := slices.Sorted(maps.Keys(userPaths)); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
			t.Errorf("%s has the paths %v, read are %v", name, got, want)
		}
	}
	for name, direction := range userDrops {
		if !strings.Contains(u.text.String(), "# TYPE "+userPrefix+name+" counter\n") {
			t.Errorf("tailscale.com has no %s (%v)", name, direction)
		}
	}
}

// TestUserMetricsText: numbers arrive in the right place, those of IPv4 and IPv6 as
// one.
func TestUserMetricsText(t *testing.T) {
	type label struct{ Path string }
	reg := new(usermetric.Registry)
	for i, name := range []string{"inbound_packets_total", "inbound_bytes_total", "outbound_packets_total", "outbound_bytes_total"} {
		m := usermetric.NewMultiLabelMapWithRegistry[label](reg, userPrefix+name, "counter", "help {path=\"derp\"} 9")
		for j, path := range slices.Sorted(maps.Keys(userPaths)) {
			m.Add(label{path}, int64(100*(i+1)+j))
		}
		m.Add(label{"carrier_pigeon"}, 5)
	}
	reg.DroppedPacketsOutbound().Add(usermetric.DropLabels{Reason: usermetric.ReasonMulticast}, 3)
	reg.NewGauge(userHomeDERP, "").Set(7)
	var u usermetrics
	var p measure.Pod
	if home := u.into(&p, reg); home != 7 {
		t.Errorf("home is %d, want 7", home)
	}
	// derp is first, then the two of direct, then those of peer_relay.
	want := [measure.Paths][measure.Directions]measure.Traffic{
		measure.DERP:      {{Packets: 100, Bytes: 200}, {Packets: 300, Bytes: 400}},
		measure.Direct:    {{Packets: 203, Bytes: 403}, {Packets: 603, Bytes: 803}},
		measure.PeerRelay: {{Packets: 207, Bytes: 407}, {Packets: 607, Bytes: 807}},
	}
	if p.Traffic != want {
		t.Errorf("got %v, want %v", p.Traffic, want)
	}
	if want := []measure.Drop{{Direction: measure.Out, Reason: "multicast", Packets: 3}}; !slices.Equal(p.Drops, want) {
		t.Errorf("got %v, want %v", p.Drops, want)
	}
}

// A scrape of a pod's node costs no more than a two-hundredth of 5 MB, and it may
// come at any time: while nodes come, run and go. TSNRI_TEST_PODS=40 measures with
// so many.
func TestScrapeCost(t *testing.T) {
	pods, _ := strconv.Atoi(cmp.Or(os.Getenv("TSNRI_TEST_PODS"), "6"))
	w := newWorld(t)
	w.boot()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			w.scrape()
		}
	})
	for i := range pods {
		_, pod := w.pod(fmt.Sprintf("p%d", i))
		w.mustAttach(pod)
	}
	for i := range pods {
		w.await(fmt.Sprintf("uid-p%d", i), Running)
	}
	stop()
	wg.Wait()
	var before, after runtime.MemStats
	const scrapes = 20
	w.scrape()
	runtime.ReadMemStats(&before)
	start := time.Now()
	for range scrapes {
		w.Measures()
	}
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	each := (after.TotalAlloc - before.TotalAlloc) / uint64(scrapes*pods)
	t.Logf("%d pods: %v and %d bytes for each of %d", pods, took/time.Duration(scrapes*pods), each, scrapes)
	if most := uint64(5<<20) / 200; each > most {
		t.Errorf("%d bytes for a pod, want %d at most", each, most)
	}
}
