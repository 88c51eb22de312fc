// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"tailscale-nri/engine/tailnet"
)

// Tailscale's own login server, named or not, is not asked again and again.
func TestTailscaleIsNotRechecked(t *testing.T) {
	for _, url := range []string{"", "https://controlplane.tailscale.com", "https://login.tailscale.com/"} {
		access, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: "key", ControlURL: url})
		if err != nil {
			t.Fatal(err)
		}
		e := &Engine{cfg: Config{recheckEvery: time.Hour}, tailnets: map[string]tailnetAccess{"": {Tailnet: access}}}
		done := make(chan struct{})
		go func() {
			e.recheck(t.Context(), "")
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Errorf("login server %q is asked again and again", url)
		}
	}
}

// countingAPI counts what it is asked, and has the devices.
type countingAPI struct {
	tailnet.DeviceAPI // nothing else is asked

	devices     []tailnet.Device
	gone        bool // all others; otherwise the list is incomplete
	lists, gets int
}

func (a *countingAPI) Devices(context.Context) ([]tailnet.Device, error) {
	a.lists++
	return a.devices, nil
}

func (a *countingAPI) Device(context.Context, string) (tailnet.Device, error) {
	a.gets++
	if a.gone {
		return tailnet.Device{}, tailnet.ErrNoDevice
	}
	return tailnet.Device{}, nil
}

// A look costs one call for all nodes, and one more for each device that is not listed.
// Only one that is not there at all is thrown out.
func TestRecheckAsksOnceForAll(t *testing.T) {
	w := newWorld(t)
	w.boot()
	a, b := w.join("a"), w.join("b")
	for _, tt := range []struct {
		name string
		api  countingAPI
		gets int
	}{
		{"all are listed", countingAPI{devices: []tailnet.Device{{ID: a.NodeID}, {ID: b.NodeID}}}, 0},
		{"the list is incomplete", countingAPI{devices: []tailnet.Device{{ID: a.NodeID}}}, 1},
		{"one is gone", countingAPI{devices: []tailnet.Device{{ID: a.NodeID}}, gone: true}, 1},
	} {
		if err := w.recheckDevices(t.Context(), &tt.api, ""); err != nil {
			t.Fatal(err)
		}
		if tt.api.lists != 1 || tt.api.gets != tt.gets {
			t.Errorf("%s: %d lists and %d single requests, want 1 and %d", tt.name, tt.api.lists, tt.api.gets, tt.gets)
		}
		if !tt.api.gone && w.statusOf(b.UID).State != Running {
			t.Errorf("%s: %+v", tt.name, w.statusOf(b.UID))
		}
	}
	w.until("b has registered again", func() bool { return w.tally.again.Load() == 1 }, func() string { return fmt.Sprint(w.statusOf(b.UID)) })
	w.await(b.UID, Running)
}

// However many devices are missing, few are asked for at a time.
func TestRecheckOfManyMissing(t *testing.T) {
	var sessions []*session
	for i := range 200 {
		n := &node{}
		n.published.status.NodeID = fmt.Sprint("n", i)
		sessions = append(sessions, &session{n: n})
	}
	if got := len(missing(sessions, nil)); got != recheckGets {
		t.Errorf("%d devices are asked for, want %d", got, recheckGets)
	}
	got := missing(sessions[:3], []tailnet.Device{{ID: "n0"}, {ID: "n2"}, {ID: "n9"}})
	if len(got) != 1 || got[0] != sessions[1] {
		t.Errorf("got %d sessions, want that of n1", len(got))
	}
}

// A list is asked for every minute, unless that is much for the API.
func TestPauseAfterList(t *testing.T) {
	for _, tt := range []struct {
		took time.Duration
		err  error
		want time.Duration
	}{
		{100 * time.Millisecond, nil, time.Minute},
		{2 * time.Second, nil, 100 * time.Second},
		{time.Minute, nil, 5 * time.Minute},
		{time.Millisecond, errors.New("throttled"), 5 * time.Minute},
	} {
		if got := pauseAfterList(tt.took, tt.err); got != tt.want {
			t.Errorf("%v, %v: %v, want %v", tt.took, tt.err, got, tt.want)
		}
	}
}
