// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab/control"
)

// enter moves the world to a host of a cluster, with nothing on its disk.
func (w *world) enter(cluster string) {
	w.t.Helper()
	w.halt()
	tn, err := tailnet.NewOAuth(tailnet.OAuthConfig{
		ClientID: "lab-client", ClientSecret: "lab-secret", Cluster: cluster,
		BaseURL: w.control.APIURL(), ControlURL: w.control.ControlURL(), Logger: testLogger(w.t, "tailnet"),
		Calls: tailnet.CallLimits{PerSecond: 1000, Burst: 1000, Backoff: time.Millisecond},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.tailnet, w.dir = tn, w.t.TempDir()
}

// join attaches a pod of that name, waits until its node runs and returns it.
func (w *world) join(name string, change ...func(*Pod)) NodeStatus {
	w.t.Helper()
	_, pod := w.pod(name)
	for _, f := range change {
		f(&pod)
	}
	w.mustAttach(pod)
	return w.await(pod.UID, Running)
}

// age has the tailnet see the device last that long ago, and not connected.
func (w *world) age(id string, age time.Duration) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	offline := func(devices []control.Device) bool {
		return slices.ContainsFunc(devices, func(d control.Device) bool { return d.ID == id && !d.Online })
	}
	if err := w.control.Await(ctx, offline); err != nil {
		w.t.Fatalf("device %s does not go offline: %v", id, err)
	}
	if err := w.control.SetLastSeen(id, time.Now().Add(-age)); err != nil {
		w.t.Fatal(err)
	}
}

// names are those of the tailnet's devices, without the domain.
func (w *world) names() string {
	var out []string
	for _, d := range w.control.Devices() {
		label, _, _ := strings.Cut(d.Name, ".")
		out = append(out, label)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// logged is a log that can be read while it is written.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
	t   *testing.T
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(b)
	return (&testWriter{t: l.t}).Write(b)
}

func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// log has the next engine write there as well.
func (l *logged) log(cfg *Config) {
	cfg.Logger = slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// A host deletes the devices that a dead host left behind, and nothing else.
func TestSweep(t *testing.T) {
	const old = 8 * 24 * time.Hour
	w := newWorld(t)
	ids := map[string]string{}
	join := func(name string) { ids[name] = w.join(name).NodeID }

	w.enter("k8s")
	w.boot()
	join("dead")
	join("lately")
	join("future")
	w.enter("other")
	w.boot()
	join("stranger")
	w.enter("k8s")
	w.boot()
	join("here")
	join("stopped")
	if err := w.Detach(context.Background(), "sbstopped"); err != nil {
		t.Fatal(err)
	}
	if err := w.control.SetLastSeen(ids["here"], time.Now().Add(-old)); err != nil {
		t.Fatal(err)
	}
	w.age(ids["dead"], old)
	w.age(ids["lately"], old-36*time.Hour)
	w.age(ids["future"], -time.Hour)
	w.age(ids["stranger"], old)
	w.age(ids["stopped"], old)
	for range 2 { // the second time there is nothing left to do
		if err := w.sweepOnce(context.Background(), ""); err != nil {
			t.Fatal(err)
		}
		want := "k8s-default-future k8s-default-here k8s-default-lately k8s-default-stopped k8s-default-stranger"
		if got := w.names(); got != want {
			t.Errorf("left: %s\nwant: %s", got, want)
		}
	}
	if c := w.control.Counters(); c.DevicesDeleted != 1 {
		t.Errorf("%d devices deleted, want 1", c.DevicesDeleted)
	}
}

// The sweep runs by itself, logs once what prevents it, and goes on when that is over.
func TestSweepLoop(t *testing.T) {
	w := newWorld(t)
	w.enter("k8s")
	w.boot()
	id := w.join("dead").NodeID
	w.enter("k8s")
	w.age(id, 2*time.Hour)
	w.control.AddFault(control.Fault{Path: "/api/v2/tailnet", Status: http.StatusInternalServerError})
	calls := w.control.Counters().Calls

	log := &logged{t: t}
	w.boot(log.log, func(cfg *Config) {
		cfg.SweepAfter, cfg.sweepFirst, cfg.sweepEvery = time.Hour, time.Millisecond, time.Millisecond
	})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := w.control.AwaitCalls(ctx, calls+20); err != nil {
		t.Fatalf("the list is not asked for again: %v", err)
	}
	if got := w.names(); got != "k8s-default-dead" {
		t.Errorf("devices %q though the list could not be had", got)
	}
	w.control.ClearFaults()
	if err := w.control.Await(ctx, func(devices []control.Device) bool { return len(devices) == 0 }); err != nil {
		t.Fatalf("the device is not swept: %v", err)
	}
	w.until("the log says so", func() bool { return log.count("its pod is gone") == 1 && log.count(id) > 0 }, func() string { return "" })
	if n := log.count("level=WARN"); n != 1 {
		t.Errorf("%d warnings, want one", n)
	}
}

// crowd is a tailnet of many old devices of ours.
type crowd struct {
	tailnet.Tailnet
	tailnet.DeviceAPI
	listed  []tailnet.Device
	now     map[string]tailnet.Device // as Device shows them
	deleted []string
}

func (c *crowd) ControlURL() string { return "" }
func (c *crowd) Devices(context.Context) ([]tailnet.Device, error) {
	return slices.Clone(c.listed), nil
}
func (c *crowd) Ours(tailnet.Device) (ours, chosenName bool) { return true, false }
func (c *crowd) Delete(_ context.Context, id string) error {
	c.deleted = append(c.deleted, id)
	return nil
}
func (c *crowd) Device(_ context.Context, id string) (tailnet.Device, error) {
	d, ok := c.now[id]
	if !ok {
		return d, fmt.Errorf("%s: %w", id, tailnet.ErrNoDevice)
	}
	return d, nil
}

// A device that the API does not delete does not hold up the others.
func TestSweepGoesOn(t *testing.T) {
	w := newWorld(t)
	w.enter("k8s")
	w.boot()
	oldest, other := w.join("oldest"), w.join("other")
	w.enter("k8s")
	w.age(oldest.NodeID, 9*24*time.Hour)
	w.age(other.NodeID, 8*24*time.Hour)
	w.control.AddFault(control.Fault{Path: "/api/v2/device/" + oldest.NodeID, Status: 403, Message: "no"})
	w.boot()
	if err := w.sweepOnce(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "may not do this") {
		t.Errorf("error %v", err)
	}
	if got := w.names(); got != "k8s-default-oldest" {
		t.Errorf("devices %q", got)
	}
}

// One sweep deletes a limited number, the oldest first, and none that has gone or come
// back since it was listed.
func TestSweepIsBounded(t *testing.T) {
	c := &crowd{now: map[string]tailnet.Device{}}
	for i := range 30 {
		d := tailnet.Device{ID: fmt.Sprint("n", i), LastSeen: time.Now().Add(-30*24*time.Hour + time.Duration(i)*time.Hour)}
		c.listed = append([]tailnet.Device{d}, c.listed...)
		switch i {
		case 3: // gone
		case 5:
			d.Connected = true
			c.now[d.ID] = d
		default:
			c.now[d.ID] = d
		}
	}
	e, err := New(Config{StateDir: t.TempDir(), Tailnet: c})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	defer e.Run(ctx)
	if err := e.sweepOnce(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range sweepMost {
		if i != 3 && i != 5 {
			want = append(want, fmt.Sprint("n", i))
		}
	}
	if !slices.Equal(c.deleted, want) {
		t.Errorf("deleted %v, want %v", c.deleted, want)
	}
	c.deleted = nil
	e.cfg.SweepAfter = -1
	e.sweep(t.Context(), "") // returns at once
	if len(c.deleted) != 0 {
		t.Errorf("deleted %v though nothing is to be swept", c.deleted)
	}
}
