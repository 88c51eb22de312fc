// SPDX-License-Identifier: BSD-3-Clause

package statussocket

import (
	"context"
	"fmt"
	"sync"
	"time"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/status"
)

// Phase is how far the process has come.
type Phase int

const (
	starting      Phase = iota
	Misconfigured       // it cannot serve with what it was given, and waits
	standingBy          // another process serves
	connecting          // the runtime is asked to register the plugin
	unregistered        // it is not registered, or not any more
	registered          // and it has caught up with the runtime's pods
)

// Health is the one place that holds what this process says of itself. It is
// ready when it is registered, or stands by and could be: a DaemonSet's roll waits
// for that before it ends the process that serves. An outage of the runtime makes it
// unready, which starts nothing again.
type Health struct {
	mu    sync.Mutex
	phase Phase
	why   string // one line, "" where the phase says it all
	// session counts connections and their ends. News of a connection that is not
	// the present one is not heard.
	session int
	// remark is shown next to ready. It makes nothing unready: a
	// configuration that cannot be used while an earlier one serves would
	// otherwise take every host of the cluster down at once.
	remark  string
	runtime RuntimeInfo          // of the last registration
	without func() []status.Node // pods that should have a node and have none, nil until there is a plugin
	lacks   func() string        // why a standby process could not take over, "" if it could
	pods    podStatus            // nil until there is an engine
	// What the engine is asked at present, nil if it has answered.
	asked   *inquiry[engine.NodeStatus]
	details *inquiry[engine.Detail]

	PodAPI podServer
}

// podStatus has the methods of the engine for the status of its nodes.
type podStatus interface {
	Status() []engine.NodeStatus
	Details() []engine.Detail // which takes longer
}

// ReadyText is the answer of a process that is ready, without a remark.
const ReadyText = "ready"

// Ready reports whether the process does its work, and in one line why not, or the
// remark.
func (h *Health) Ready() (ok bool, text string) {
	ok, text, remark := h.readiness()
	if remark != "" {
		text += "; " + remark
	}
	return ok, text
}

// readiness is Ready with the remark apart.
func (h *Health) readiness() (ok bool, text, remark string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch h.phase {
	case starting:
		text = "not ready: starting"
	case Misconfigured, unregistered:
		text = "not ready: " + h.why
	case connecting:
		text = "not ready: waiting for the container runtime to register this plugin"
	case standingBy:
		ok, text = true, "standing by: another process serves this host's pods"
		if why := h.lacks(); why != "" {
			ok, text = false, "not ready to take over: "+why
		}
	case registered:
		ok, text = true, ReadyText
	}
	return ok, text, h.remark
}

// role returns one of package status's roles.
func (h *Health) role() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.phase == standingBy:
		return status.Standby
	case h.pods != nil:
		return status.Serving
	}
	return ""
}

// Measures returns the process's state for the metrics. Its configuration is valid
// unless it waits for another, or has refused a changed one.
func (h *Health) Measures() (isRegistered, standsBy, configured bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.phase == registered, h.phase == standingBy, h.phase != Misconfigured && h.remark == ""
}

// livePatience is far above what the engine needs to say how its nodes are.
const livePatience = 3 * time.Second

// live reports whether the engine answers. Whether a runtime or a tailnet does is not
// part of that.
func (h *Health) live(ctx context.Context) error {
	answered, cancel := context.WithTimeout(ctx, livePatience)
	defer cancel()
	_, err := askEngine(h, &h.asked, podStatus.Status).wait(answered)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("the engine has not answered for %v", livePatience)
}

// inquiry is a question to the engine, which needs its locks.
type inquiry[T any] struct {
	done   chan struct{}
	answer []T // once done is closed
}

// askEngine asks the engine, and notes in place that it is asked: one that hangs is
// asked by one goroutine, however many wait for it. It is nil while there is none.
func askEngine[T any](h *Health, place **inquiry[T], what func(podStatus) []T) *inquiry[T] {
	h.mu.Lock()
	defer h.mu.Unlock()
	if *place != nil || h.pods == nil {
		return *place
	}
	q, pods := &inquiry[T]{done: make(chan struct{})}, h.pods
	*place = q
	go func() {
		q.answer = what(pods)
		h.mu.Lock()
		defer h.mu.Unlock()
		*place = nil
		close(q.done)
	}()
	return q
}

// wait returns the answer, or an error if ctx ends before.
func (q *inquiry[T]) wait(ctx context.Context) ([]T, error) {
	if q == nil {
		return nil, nil
	}
	select {
	case <-q.done:
		return q.answer, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// nodes returns the engine's status of its nodes, none while there is no engine.
func (h *Health) nodes(ctx context.Context) ([]engine.NodeStatus, error) {
	return askEngine(h, &h.asked, podStatus.Status).wait(ctx)
}

// allDetails returns the engine's details of all nodes.
func (h *Health) allDetails(ctx context.Context) ([]engine.Detail, error) {
	return askEngine(h, &h.details, podStatus.Details).wait(ctx)
}

// StandBy notes that another process serves. A roll ends that one as soon as this one is
// ready, on one host after the other, and checks nothing else. So a process that lacks
// what it needs to serve must not be ready.
func (h *Health) StandBy(lacks func() string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.phase, h.lacks = standingBy, lacks
}

// Serves notes that there is an engine.
func (h *Health) Serves(pods podStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.phase, h.pods = connecting, pods
}

// Warns sets what lists the pods that should have a node and have none.
func (h *Health) Warns(without func() []status.Node) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.without = without
}

// WithoutNode are the pods that should have a node and have none.
func (h *Health) WithoutNode() []status.Node {
	h.mu.Lock()
	without := h.without
	h.mu.Unlock()
	if without == nil {
		return nil
	}
	return without()
}

// Become notes the phase of the process, and why in one line.
func (h *Health) Become(p Phase, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.phase, h.why = p, why
}

// Connect notes a connection to the runtime. What it returns notes how catching up
// with the runtime's pods went, as long as that connection lasts: a call of a lost
// one may end at any time.
func (h *Health) Connect() (synchronized func(error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.session++
	h.phase, h.why = connecting, ""
	session := h.session
	return func(err error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		switch {
		case session != h.session:
		case err != nil:
			h.phase, h.why = unregistered, "could not take over the runtime's list of pods: "+errtext.OneLine(err)
		default:
			h.phase, h.why = registered, ""
		}
	}
}

// Disconnected notes why the plugin is not registered. That the runtime closed
// the connection (closed) is news only if there is no better reason: it does so where
// the plugin could not catch up.
func (h *Health) Disconnected(why string, closed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.session++
	if h.phase == unregistered && closed {
		return
	}
	h.phase, h.why = unregistered, why
}

// Note sets the remark, "" for none.
func (h *Health) Note(remark string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remark = remark
}

// RegisteredAs notes with which runtime the plugin is registered.
func (h *Health) RegisteredAs(info RuntimeInfo) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runtime = info
}

// RegisteredWith is the zero value unless the plugin is registered.
func (h *Health) RegisteredWith() RuntimeInfo {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.phase != registered {
		return RuntimeInfo{}
	}
	return h.runtime
}
