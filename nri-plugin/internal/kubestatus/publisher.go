// SPDX-License-Identifier: BSD-3-Clause

// Package kubestatus shows the state of pods' nodes in Kubernetes: Events on the pod,
// and a condition in its status, which can be a readiness gate.
//
//	engine ── Change ──▶ Tell ──▶ what is due of each pod ──▶ Run ── PATCH, POST ──▶ API
//
// What is to be sent is kept for each pod, not in a queue: the last condition, and one
// Event of each reason. So what is out of date by now is never sent. Requests go out one
// after the other: conditions first, then Events, then what is only to be looked at.
// Rates bound each pod and the host.
//
// Only Run waits for the API's answer. If the API is away, or the ServiceAccount lacks
// rights, the log has one line and Run tries again later, with what is due then.
//
// It may create and patch Events, and patch the status of pods. It needs no right to
// read: a patch that changes nothing is answered with the pod, is not stored, and no
// watch reports it (see look).
//
// What it does not do: it watches nothing, and so neither repairs a condition that
// another program changes nor hears of pods except from the engine.
package kubestatus

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/kubeapi"
)

// API is a [kubeapi.Client].
type API interface {
	Do(ctx context.Context, r kubeapi.Request) error
}

// Rates bound what the API is asked.
type Rates struct {
	HostPerSecond  rate.Limit    // requests
	HostBurst      int           // of them
	ConditionEvery time.Duration // of one pod
	EventEvery     time.Duration // of one pod
	PodBurst       int           // of each of both
}

// UsualRates have 110 pods that start together, as many as a kubelet takes, have their
// conditions within six seconds. A pod that comes and goes for hours makes 60 Events in
// the hour that an API server keeps them.
func UsualRates() Rates {
	return Rates{HostPerSecond: 10, HostBurst: 50, ConditionEvery: 5 * time.Second, EventEvery: time.Minute, PodBurst: 10}
}

// Config is what a Publisher needs.
type Config struct {
	API    API
	Host   string // that Events name
	Logger *slog.Logger
	Rates  Rates
}

// Publisher publishes what it is told.
type Publisher struct {
	cfg  Config
	log  *slog.Logger
	host *rate.Limiter
	wake chan struct{}

	mu     sync.Mutex
	pods   map[string]*pod // by UID
	denied map[right]denial
	said   map[string]time.Time // when the log has had a line
	paused time.Time            // until when nothing is tried
	outage outage
}

// New returns a Publisher, which does nothing before [Publisher.Run].
func New(cfg Config) *Publisher {
	return &Publisher{
		cfg: cfg, log: cfg.Logger, wake: make(chan struct{}, 1),
		host: rate.NewLimiter(cfg.Rates.HostPerSecond, cfg.Rates.HostBurst),
		pods: map[string]*pod{}, denied: map[right]denial{}, said: map[string]time.Time{},
	}
}

// Tell takes in news. It waits for nothing: it is for [engine.Config.OnChange].
func (p *Publisher) Tell(c engine.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.News == engine.NewsLeft {
		delete(p.pods, c.UID)
		return
	}
	is := p.pods[c.UID]
	if is == nil {
		is = newPod(c, p.cfg.Rates)
		p.pods[c.UID] = is
	}
	is.take(c, time.Now())
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// requestTakes bounds one request. A webhook that hangs has an API server answer after ten
// seconds, unless told otherwise.
const requestTakes = 15 * time.Second

// Run publishes until ctx is done, and returns nil.
func (p *Publisher) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		j, wait := p.next(time.Now(), ofCondition, ofEvents, ofLook)
		if j != nil {
			_ = p.do(ctx, j) // it is dealt with by then
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-timer.C:
		}
	}
	return nil
}

// Flush sends the Events that can be sent at once, until ctx is done or one fails. It is
// for after Run. Conditions are left to the next process, which looks at them all: this
// one's may be out of date by then.
func (p *Publisher) Flush(ctx context.Context) {
	for ctx.Err() == nil {
		j, _ := p.next(time.Now(), ofEvents)
		if j == nil || p.do(ctx, j) != nil {
			return
		}
	}
}

// do does a job.
func (p *Publisher) do(ctx context.Context, j *job) error {
	ctx, cancel := context.WithTimeout(ctx, requestTakes)
	defer cancel()
	err := p.cfg.API.Do(ctx, j.request)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		j.putBack()
		return err
	}
	p.done(j, err, time.Now())
	return err
}

// idle is how long Run sleeps where nothing is due.
const idle = time.Hour

// next returns what to do now, of the first of the classes that has something, or how long
// there is nothing to do.
func (p *Publisher) next(now time.Time, of ...int) (*job, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if wait := max(p.paused.Sub(now), pause(p.host, now)); wait > 0 {
		return nil, wait
	}
	soonest := idle
	for _, class := range of {
		first, wait := p.firstOf(class, now)
		if first != nil {
			p.host.AllowN(now, 1)
			return p.begin(first, class, now), 0
		}
		soonest = min(soonest, wait)
	}
	return nil, soonest
}

// firstOf returns the pod that has waited longest for its turn in a class, or how long
// there is none. p.mu is held.
func (p *Publisher) firstOf(class int, now time.Time) (first *pod, soonest time.Duration) {
	soonest = idle
	for _, is := range p.pods {
		if is.since[class].IsZero() {
			continue
		}
		if wait := max(is.wait(class, now), p.denied[rightOf(class, is.namespace)].until.Sub(now)); wait > 0 {
			soonest = min(soonest, wait)
			continue
		}
		if first == nil || cmp.Or(is.since[class].Compare(first.since[class]), cmp.Compare(is.uid, first.uid)) < 0 {
			first = is
		}
	}
	return first, soonest
}
