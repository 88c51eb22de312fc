// SPDX-License-Identifier: BSD-3-Clause

package kubestatus

import (
	"slices"
	"time"

	"golang.org/x/time/rate"

	"tailscale-nri/engine"
)

// settle is how long a sandbox that has ended may take to get a successor, or its pod
// to be deleted, before the condition says that it has ended.
const settle = 5 * time.Second

// pod is a pod that the API is to be told about, or was.
type pod struct {
	uid, namespace, name string
	// apiUID is what the API calls the pod: of a static pod's, that of its mirror pod.
	apiUID string

	want   condition // zero is none: nothing has been heard of it
	has    condition // as the API has it, if known
	known  bool
	look   bool      // before anything is written of it: see look
	after  time.Time // want is not due before
	events []event   // that are due, the oldest first, of each reason one
	sent   map[string]sent
	tries  int // failed ones, of this pod alone

	conditions, messages *rate.Limiter
	since                [classes]time.Time // when it came to be due, zero if it is not
}

// sent is an Event that the API has.
type sent struct {
	name string // of the object
	event
}

// The classes of what is due, the most urgent first.
const (
	ofCondition = iota
	ofEvents
	ofLook
	classes
)

func newPod(c engine.Change, r Rates) *pod {
	return &pod{
		uid: c.UID, namespace: c.Namespace, name: c.Pod, apiUID: c.UID, sent: map[string]sent{},
		conditions: rate.NewLimiter(rate.Every(r.ConditionEvery), r.PodBurst), messages: rate.NewLimiter(rate.Every(r.EventEvery), r.PodBurst),
	}
}

// take takes in news. It takes the place of what it makes old.
func (p *pod) take(c engine.Change, now time.Time) {
	first := p.want == condition{}
	p.want, p.after, p.tries = conditionOf(c), time.Time{}, 0
	if c.News == engine.NewsStopped {
		p.after = now.Add(settle)
	}
	if first && !p.known && c.News != engine.NewsJoined {
		p.look = true // of a pod that is new the API has nothing, of any other it may
	}
	e, ok := eventOf(c)
	if !ok {
		p.note(now)
		return
	}
	if i := slices.IndexFunc(p.events, func(due event) bool { return due.reason == e.reason }); i >= 0 {
		e.first, e.count = p.events[i].first, p.events[i].count+1
		p.events = slices.Delete(p.events, i, i+1)
	}
	p.events = append(p.events, e)
	p.note(now)
}

// note sets since when the pod is due.
func (p *pod) note(now time.Time) {
	looks := p.look && p.want != condition{}
	for class, due := range [classes]bool{
		ofCondition: p.want != condition{} && !looks && (!p.known || p.has != p.want),
		ofEvents:    len(p.events) > 0,
		ofLook:      looks,
	} {
		switch {
		case !due:
			p.since[class] = time.Time{}
		case p.since[class].IsZero():
			p.since[class] = now
		}
	}
}

// wait is how long the pod is to wait for its turn in a class.
func (p *pod) wait(class int, now time.Time) time.Duration {
	var limit *rate.Limiter
	switch class {
	case ofEvents:
		return pause(p.messages, now)
	case ofCondition:
		limit = p.conditions
	}
	return max(p.after.Sub(now), pause(limit, now))
}

// pause is how long it takes a limiter, if there is one, to have a token.
func pause(l *rate.Limiter, now time.Time) time.Duration {
	if l == nil {
		return 0
	}
	missing := 1 - l.TokensAt(now)
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing / float64(l.Limit()) * float64(time.Second))
}
