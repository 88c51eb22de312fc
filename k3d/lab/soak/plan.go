// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab/control"
)

// kind is what becomes of a pod.
type kind int

const (
	ends    kind = iota // removed on its way into the tailnet
	runs                // removed once it runs
	talks               // removed once it has answered the peer
	again               // its pause process is killed, and the pod gets another sandbox
	deleted             // its device is deleted by an admin, and it runs again as another
	expired             // its login is ended by an admin, and it runs again as the same
)

func (k kind) String() string {
	return [...]string{"ends on its way", "runs", "talks", "gets another sandbox", "device deleted", "login expired"}[k]
}

// shares of a hundred cycles.
var shares = []struct {
	kind
	percent int
}{{ends, 28}, {runs, 20}, {talks, 20}, {again, 14}, {deleted, 12}, {expired, 6}}

// cycle is one pod's life.
type cycle struct {
	number int
	kind
	pause time.Duration // before what its kind says
}

// lane is what events are about. Events of one lane wait for each other, those of different lanes do not.
type lane int

const (
	plugin lane = iota
	runtime
	tailnet
	lanes
)

// event is something that goes wrong when the cycle at begins.
type event struct {
	at   int
	lane lane
	hold time.Duration // how long it lasts

	signal unix.Signal    // of plugin and runtime
	child  bool           // only the process that serves, if the plugin has one apart from its parent
	outage control.Outage // of the control plane; if that is Up, it is the API's fault
	fault  control.Fault
}

func (e event) String() string {
	what := fmt.Sprintf("the API answers %+v", e.fault)
	switch {
	case e.lane == plugin && e.child:
		what = fmt.Sprintf("%v to the plugin's serving process", unix.SignalName(e.signal))
	case e.lane == plugin:
		what = fmt.Sprintf("%v to the plugin", unix.SignalName(e.signal))
	case e.lane == runtime:
		what = fmt.Sprintf("%v to containerd", unix.SignalName(e.signal))
	case e.outage == control.Hanging:
		what = "the control plane hangs"
	case e.outage == control.Refusing:
		what = "the control plane refuses"
	}
	return fmt.Sprintf("at cycle %d, for %v: %s", e.at, e.hold, what)
}

// plan is all of a run, in order.
type plan struct {
	cycles []cycle
	events []event
}

// makePlan draws a plan for n cycles. It depends on nothing but its arguments.
func makePlan(seed uint64, n int) plan {
	draw := rand.New(rand.NewPCG(seed, 0))
	p := plan{cycles: makeCycles(draw, 1, n)}
	for at := gap(draw, plugin); at < n-n/4; at += gap(draw, plugin) {
		p.events = append(p.events, event{
			at: at, lane: plugin, signal: signal(draw), child: draw.IntN(2) == 0, hold: upTo(draw, 400*time.Millisecond),
		})
	}
	for at := gap(draw, runtime); at < n; at += gap(draw, runtime) {
		p.events = append(p.events, event{at: at, lane: runtime, signal: signal(draw), hold: upTo(draw, 500*time.Millisecond)})
	}
	for at := gap(draw, tailnet); at < n; at += gap(draw, tailnet) {
		p.events = append(p.events, away(draw, at))
	}
	return p
}

// makeCycles draws n cycles, numbered from first on.
func makeCycles(draw *rand.Rand, first, n int) []cycle {
	cycles := make([]cycle, n)
	for i := range cycles {
		cycles[i] = cycle{first + i, drawKind(draw), upTo(draw, 400*time.Millisecond)}
	}
	return cycles
}

func drawKind(draw *rand.Rand) kind {
	at := draw.IntN(100)
	for _, s := range shares {
		if at -= s.percent; at < 0 {
			return s.kind
		}
	}
	return ends
}

// gap is how many cycles begin between two events of a lane.
func gap(draw *rand.Rand, l lane) int {
	least := [lanes]int{plugin: 4, runtime: 12, tailnet: 6}[l]
	return least + draw.IntN(2*least)
}

func upTo(draw *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(draw.Int64N(int64(most))).Round(time.Millisecond)
}

func signal(draw *rand.Rand) unix.Signal {
	return []unix.Signal{unix.SIGKILL, unix.SIGTERM}[draw.IntN(2)]
}

// apiFaults are what the API can answer, or not answer. The paths are those for keys, for one device, and all.
var apiFaults = []control.Fault{
	{Hang: true},
	{Path: "/api/v2/device/", Hang: true},
	{Status: 503, Message: "backend unavailable"},
	{Path: "/api/v2/tailnet/", Status: 500, Message: "internal error"},
	{Path: "/api/v2/device/", Status: 502, Message: "bad gateway"},
	{Status: 429, Message: "too many requests", RetryAfter: "1"},
}

// away draws an outage: of the control plane in one half of all cases, of the API in the other.
func away(draw *rand.Rand, at int) event {
	e := event{at: at, lane: tailnet, hold: 200*time.Millisecond + upTo(draw, 2300*time.Millisecond)}
	if draw.IntN(2) == 0 {
		e.outage = []control.Outage{control.Hanging, control.Refusing}[draw.IntN(2)]
	} else {
		e.fault = apiFaults[draw.IntN(len(apiFaults))]
	}
	return e
}
