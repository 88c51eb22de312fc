// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// News is a kind of change of a pod's node; the constants below are all of them. The
// log says the same, with the same reasons, but does not repeat each change of a node
// that comes and goes.
type News string

const (
	// NewsJoined: the node is up, for the first time, or again after NewsWaiting,
	// NewsLost or NewsStopped.
	NewsJoined News = "joined"
	// NewsContinued: an earlier process had let the node in, this one has it up, and it
	// is the same device. It need not be reported.
	NewsContinued News = "continued"
	// NewsReregistered: the node is up, as another device or with other addresses.
	NewsReregistered News = "reregistered"
	// NewsRenamed: the node is up as before, and has another name.
	NewsRenamed News = "renamed"
	// NewsNameTaken: the node was given another name than it asked for. It comes after
	// one of those above.
	NewsNameTaken News = "name taken"
	// NewsWaiting: the node is not in the tailnet yet, for another reason than before.
	NewsWaiting News = "waiting"
	// NewsLost: the node was up, and is not any more.
	NewsLost News = "lost"
	// NewsStopped: the pod's sandbox has ended. The pod may get another one.
	NewsStopped News = "stopped"
	// NewsLeft: the pod is gone. Nothing follows.
	NewsLeft News = "left"
)

// Change is one change of one pod's node. The values are those of that moment.
type Change struct {
	News      News
	At        time.Time
	UID       string // of the pod, as the runtime has it
	Namespace string
	Pod       string
	Hostname  string       // as asked for
	DNSName   string       // as assigned, without the final dot; "" if not known
	Addresses []netip.Addr // on ts0, IPv4 first, if the node is up
	Reason    string       // set for NewsWaiting and NewsLost
}

// IsUp reports whether the node is up.
func (c Change) IsUp() bool {
	switch c.News {
	case NewsJoined, NewsContinued, NewsReregistered, NewsRenamed, NewsNameTaken:
		return true
	}
	return false
}

// newsQueue calls tell with the news, in order.
type newsQueue struct {
	tell func(Change) // nil drops all
	mu   sync.Mutex
	due  []Change
	wake chan struct{}
}

func newNewsQueue(tell func(Change)) *newsQueue {
	return &newsQueue{tell: tell, wake: make(chan struct{}, 1)}
}

// add queues news. It waits for nothing.
func (c *newsQueue) add(news Change) {
	if c.tell == nil {
		return
	}
	c.mu.Lock()
	c.due = append(c.due, news)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run tells the queued news until ctx is done, and then the rest of what was queued
// before that.
func (c *newsQueue) run(ctx context.Context) {
	for {
		done := ctx.Err() != nil
		c.mu.Lock()
		due := c.due
		c.due = nil
		c.mu.Unlock()
		for _, news := range due {
			c.tell(news)
		}
		if done {
			return
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
		}
	}
}

// told is the last news of a node.
type told struct {
	news    News // "" before the first
	up      bool
	reason  string
	nodeID  string // the device as which it was last up; in a new process, the recorded one
	addrs   []netip.Addr
	dnsName string
	wrong   string // the assigned name, if it is not the requested one
}

// tellLocked queues news of the node. p.mu is held.
func (p *published) tellLocked(news News, reason string) {
	p.told.news, p.told.reason = news, reason
	s := &p.status
	change := Change{
		News: news, At: time.Now(), UID: s.UID, Namespace: s.Namespace, Pod: s.Pod,
		Hostname: s.Hostname, DNSName: s.DNSName, Reason: p.redacted(reason),
	}
	if change.IsUp() {
		change.Addresses = slices.Clone(s.Addresses)
	}
	p.queue.add(change)
}

// tellUpLocked says that the node is up, if that is news. A node that the tailnet has
// thrown out starts from its last netmap, in which it is still the old device; that is
// not told. p.mu is held.
func (p *published) tellUpLocked() {
	s, t := &p.status, &p.told
	if s.State != Running || p.broken != "" || p.relogin {
		return
	}
	var news News
	switch {
	case t.nodeID != "" && t.nodeID != s.NodeID, len(t.addrs) > 0 && !slices.Equal(t.addrs, s.Addresses):
		news = NewsReregistered
	case t.news == "" && t.nodeID != "":
		news = NewsContinued
	case !t.up:
		news = NewsJoined
	case t.dnsName != s.DNSName:
		news = NewsRenamed
	default:
		return
	}
	t.up, t.nodeID, t.addrs, t.dnsName = true, s.NodeID, slices.Clone(s.Addresses), s.DNSName
	p.tellLocked(news, "")
	p.tellNameLocked(news == NewsContinued)
}

// tellNameLocked says that the node has another name than it asked for, if that is
// news; with known it is not. p.mu is held.
func (p *published) tellNameLocked(known bool) {
	given, _, _ := strings.Cut(p.status.DNSName, ".")
	if given == p.status.Hostname {
		given = ""
	}
	if given != "" && given != p.told.wrong && !known {
		p.tellLocked(NewsNameTaken, "")
	}
	p.told.wrong = given
}

// addressesTake is how long the addresses of a new device may take to be on ts0.
const addressesTake = time.Second

// tellAdmitted says that a node which was thrown out is in again, if no other news
// will: it may have the same addresses and name as before.
func (p *published) tellAdmitted() {
	time.AfterFunc(addressesTake, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.tellUpLocked()
	})
}

// tellDownLocked says that the node is not up, and why, if that is news. p.mu is held.
func (p *published) tellDownLocked(why string) {
	t := &p.told
	switch {
	case t.up:
		t.up = false
		p.tellLocked(NewsLost, why)
	case t.reason != why:
		p.tellLocked(t.stillDown(), why)
	}
}

func (p *published) tellDown(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tellDownLocked(why)
}

// stillDown returns the news to tell when a node that is not up has another reason.
func (t *told) stillDown() News {
	if t.news == NewsLost {
		return NewsLost
	}
	return NewsWaiting
}

// tellEnd says that the node has ended, for its sandbox or for good.
func (p *published) tellEnd(news News) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told.news == news || p.told.news == NewsLeft {
		return
	}
	p.told.up = false
	p.tellLocked(news, "")
}
