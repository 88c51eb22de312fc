// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// newTestPublished returns what is published of a node, and the news of it.
func newTestPublished() (p *published, news func() []News) {
	queue := newNewsQueue(func(Change) {})
	p = &published{queue: queue, way: way{tally: newTally()}}
	p.setLogger(slog.New(slog.DiscardHandler), &Pod{})
	p.setPod(&Pod{UID: "u", Hostname: "a"})
	return p, func() (all []News) {
		queue.mu.Lock()
		defer queue.mu.Unlock()
		for _, change := range queue.due {
			all = append(all, change.News)
		}
		queue.due = nil
		return all
	}
}

func upAs(addr string) *progress {
	return &progress{addrs: []netip.Addr{netip.MustParseAddr(addr)}, dnsName: "a.example.ts.net"}
}

// The status says since when a node is in its state, and has addresses of one that is
// up, or was a moment ago.
func TestPublishedStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := newTestPublished()
		p.setAttachTime(time.Now())
		p.setState(Pending, reasonStarting)
		since := time.Now()
		time.Sleep(time.Second)
		p.setState(Pending, "no answer")
		if s := p.current(); !s.Since.Equal(since) || s.Reason != "no answer" {
			t.Errorf("another reason: %+v", s)
		}
		changed := p.changes()
		p.setRunning(upAs("100.64.0.1"))
		select {
		case <-changed:
		default:
			t.Error("who waits for the node is not told that it is up")
		}
		s := p.current()
		if s.State != Running || s.Reason != "" || s.ReadyIn != time.Second || !s.Since.Equal(time.Now()) || len(s.Addresses) != 1 {
			t.Errorf("up: %+v", s)
		}
		p.remark("something is wrong")
		p.setPending(errors.New("no answer"))
		p.remark("nothing is wrong")
		if s := p.current(); s.State != Pending || s.Reason != "no answer" || len(s.Addresses) != 1 {
			t.Errorf("not up any more: %+v", s)
		}
		p.setState(Stopped, "")
		if s := p.current(); s.State != Stopped || len(s.Addresses) != 0 {
			t.Errorf("stopped: %+v", s)
		}
	})
}

// What the guard says of ts0 counts for a node that is up or coming up.
func TestPublishedGuard(t *testing.T) {
	p, news := newTestPublished()
	p.setRunning(upAs("100.64.0.1"))
	if !p.setBroken("no ts0") || p.setBroken("no ts0") {
		t.Error("it is news each time, or never")
	}
	if s := p.current(); s.State != Pending || s.Reason != "no ts0" {
		t.Errorf("broken: %+v", s)
	}
	if s := p.brief(); s.State != Running {
		t.Errorf("its session's state is %s", s.State)
	}
	p.setGuarded("", "changed too often")
	if s := p.current(); s.State != Running || s.Reason != "changed too often" {
		t.Errorf("uneasy: %+v", s)
	}
	p.setState(Stopped, "")
	p.setGuarded("no ts0", "")
	if s := p.current(); s.State != Stopped || s.Reason != "" {
		t.Errorf("stopped: %+v", s)
	}
	if got, want := news(), []News{NewsJoined, NewsLost, NewsJoined}; !slices.Equal(got, want) {
		t.Errorf("news %q, want %q", got, want)
	}
}

// Each piece of news is told once.
func TestPublishedNews(t *testing.T) {
	p, news := newTestPublished()
	for _, tt := range []struct {
		name string
		do   func()
		want []News
	}{
		{"waits", func() { p.setPending(errors.New("no answer")) }, []News{NewsWaiting}},
		{"waits still", func() { p.setPending(errors.New("no answer")) }, nil},
		{"up", func() { p.setLoggedIn("n1"); p.setRunning(upAs("100.64.0.1")) }, []News{NewsJoined}},
		{"up still", func() { p.setRunning(upAs("100.64.0.1")) }, nil},
		{"cut off", func() { p.setCondition(condition{kind: "cut-off", text: "cut off", down: true}) }, []News{NewsLost}},
		{"cut off still", func() { p.setCondition(condition{kind: "cut-off", text: "cut off", down: true}) }, nil},
		{"up again", func() { p.setRunning(upAs("100.64.0.1")) }, []News{NewsJoined}},
		{"thrown out, and up from the disk", func() { p.setLoginNeeded(); p.setRunning(upAs("100.64.0.1")) }, nil},
		{"another device", func() {
			if !p.setLoggedIn("n2") || p.setLoggedIn("n2") {
				t.Error("it logs in again once")
			}
			p.setRunning(upAs("100.64.0.2"))
		}, []News{NewsReregistered}},
		{"stopped", func() { p.tellEnd(NewsStopped); p.tellEnd(NewsStopped) }, []News{NewsStopped}},
		{"left", func() { p.tellEnd(NewsLeft); p.tellEnd(NewsStopped) }, []News{NewsLeft}},
	} {
		tt.do()
		if got := news(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: news %q, want %q", tt.name, got, tt.want)
		}
	}
}

// A reason loses its secrets in the status and in the news.
func TestPublishedRedacts(t *testing.T) {
	p, _ := newTestPublished()
	p.redact = func(s string) string { return strings.ReplaceAll(s, "tskey", "…") }
	p.setPending(errors.New("tskey is no good"))
	if s := p.current(); strings.Contains(s.Reason, "tskey") {
		t.Errorf("the status says %q", s.Reason)
	}
	for _, change := range p.queue.due {
		if strings.Contains(change.Reason, "tskey") {
			t.Errorf("the news says %q", change.Reason)
		}
	}
	if len(p.queue.due) != 1 {
		t.Errorf("%d pieces of news", len(p.queue.due))
	}
}

// A status is a copy: nobody changes the node's by it.
func TestPublishedIsCopied(t *testing.T) {
	p, _ := newTestPublished()
	p.setRunning(upAs("100.64.0.1"))
	p.current().Addresses[0] = netip.Addr{}
	if a := p.current().Addresses[0]; !a.IsValid() {
		t.Error("the address has gone")
	}
	p.clearAddresses()
	if a := p.current().Addresses; len(a) != 0 {
		t.Errorf("addresses %v", a)
	}
}
