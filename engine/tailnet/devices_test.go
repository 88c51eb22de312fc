// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/types/key"

	"tailscale-nri/k3d/lab/control"
)

// apiOf serves an API with these devices, as production writes them, and gives
// every other request the answer.
func apiOf(t *testing.T, devices []map[string]any, status int, message string) *OAuth {
	t.Helper()
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, status int, v any) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("POST /api/v2/oauth/token", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		reply(w, http.StatusOK, map[string]any{"access_token": "t", "token_type": "Bearer", "expires_in": 3600})
	})
	mux.HandleFunc("GET /api/v2/tailnet/-/devices", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]any{"devices": devices})
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, status, map[string]string{"message": message})
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	o, err := NewOAuth(OAuthConfig{
		ClientID: clientID, ClientSecret: clientSecret, BaseURL: srv.URL, Cluster: "k8s",
		Calls: CallLimits{Backoff: time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestDevices reads devices as the API's documentation and users show them.
func TestDevices(t *testing.T) {
	const (
		machine = "mkey:21acd934c9d62c1f8a01fb18a162d32cd390e60887fd3f1dac35bdb73b2b7140"
		lock    = "e92c4675578887ae381973e190c1e7fd1906d97a776b893182833853cb349441"
	)
	o := apiOf(t, []map[string]any{
		{
			"id": "393735751060", "nodeId": "n5SUKe8CNTRL", "name": "web-1.tail44b3.ts.net", "hostname": "web",
			"tags": []string{"tag:a", "tag:b"}, "machineKey": machine, "tailnetLockKey": "nlpub:" + lock,
			"nodeKey": "nodekey:8c", "created": "2026-01-01T04:30:23Z", "lastSeen": "2026-01-02T14:16:20Z", "connectedToControl": false,
		},
		{"nodeId": "nTwo", "name": "b.tail44b3.ts.net", "machineKey": machine, "tailnetLockKey": "tlpub:" + lock, "connectedToControl": true, "lastSeen": nil},
		{"nodeId": "nThree", "name": "hello.ts.net", "machineKey": "", "tailnetLockKey": "", "created": "", "isExternal": true},
		{"nodeId": "nFour", "name": "odd", "machineKey": "mkey:x", "tailnetLockKey": "nlpub:zz"},
	}, http.StatusTeapot, "")
	got, err := o.Devices(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, d := range got {
		lines = append(lines, fmt.Sprint(d.ID, " ", d.Name, " ", d.Hostname, " ", d.Tags, " ", d.NodeKey, " ", d.MachineKey == key.MachinePublic{}, d.LockKey.CLIString(),
			" ", d.Created.Format(time.DateTime), " ", d.LastSeen.Format(time.DateTime), " ", d.Connected))
	}
	const never, none = "0001-01-01 00:00:00", "tlpub:0000000000000000000000000000000000000000000000000000000000000000"
	want := []string{
		"n5SUKe8CNTRL web-1 web [tag:a tag:b] nodekey:8c falsetlpub:" + lock + " 2026-01-01 04:30:23 2026-01-02 14:16:20 false",
		"nTwo b  []  falsetlpub:" + lock + " " + never + " " + never + " true",
		"nThree hello  []  true" + none + " " + never + " " + never + " false",
		"nFour odd  []  true" + none + " " + never + " " + never + " false",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("devices:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// A host whose clock is wrong takes no device for older than it is.
func TestClocks(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	seen := now.Add(-time.Hour)
	for _, test := range []struct {
		date string
		want time.Time
	}{
		{"", seen},
		{"nonsense", seen},
		{now.Add(-time.Second).Format(http.TimeFormat), seen},
		{now.Add(-8 * 24 * time.Hour).Format(http.TimeFormat), seen.Add(8 * 24 * time.Hour)},
		{now.Add(time.Minute).Format(http.TimeFormat), seen.Add(-time.Minute)},
	} {
		c := newCalls(OAuthConfig{})
		c.compareClocks(test.date, now)
		if got := c.ourTime(seen); !got.Equal(test.want) {
			t.Errorf("with the API's clock at %q: %v, want %v", test.date, got, test.want)
		}
		if got := c.ourTime(time.Time{}); !got.IsZero() {
			t.Errorf("with the API's clock at %q a time that is unknown is %v", test.date, got)
		}
	}
}

// TestNoSuchDevice asks for a device that is not there, in every way.
func TestNoSuchDevice(t *testing.T) {
	ctx := testContext(t)
	s := newAPI(t)
	o := newOAuth(t, s, nil)
	if devices, err := o.Devices(ctx); len(devices) != 0 || err != nil {
		t.Errorf("devices %v, %v", devices, err)
	}
	if _, err := o.Device(ctx, "nGone"); !errors.Is(err, ErrNoDevice) {
		t.Errorf("Device: %v, want ErrNoDevice", err)
	}
	if err := o.Rename(ctx, "nGone", "x"); !errors.Is(err, ErrNoDevice) {
		t.Errorf("Rename: %v, want ErrNoDevice", err)
	}
	before := s.Counters().Calls
	if _, err := o.Device(ctx, ""); err == nil {
		t.Error("a device without an ID is not an error")
	}
	if err := o.Rename(ctx, "n1", ""); err == nil {
		t.Error("a device without a name is not an error")
	}
	if calls := s.Counters().Calls - before; calls != 0 {
		t.Errorf("%d calls for what is not to be asked", calls)
	}
	s.AddFault(control.Fault{Status: http.StatusForbidden, Message: "calling actor does not have enough permissions"})
	for op, call := range map[string]func() error{
		"listing devices":         func() error { _, err := o.Devices(ctx); return err },
		"asking for device n1":    func() error { _, err := o.Device(ctx, "n1"); return err },
		"renaming device n1 to x": func() error { return o.Rename(ctx, "n1", "x") },
	} {
		var e *Error
		if err := call(); !errors.As(err, &e) || e.Temporary {
			t.Errorf("%s: %v, want an *Error that does not heal by itself", op, err)
		} else {
			checkText(t, err, []string{op, "devices:core"})
		}
	}
}

func TestNameTaken(t *testing.T) {
	for _, test := range []struct {
		status  int
		message string
		taken   bool
	}{
		{http.StatusBadRequest, `Name "x" is already taken`, true},
		{http.StatusConflict, "", true},
		{http.StatusBadRequest, "invalid name", false},
		{http.StatusForbidden, "already", false},
		{http.StatusInternalServerError, "taken", false},
		{http.StatusOK, "", false},
	} {
		err := apiOf(t, nil, test.status, test.message).Rename(testContext(t), "n1", "x")
		if errors.Is(err, ErrNameTaken) != test.taken || (err == nil) != (test.status == http.StatusOK) {
			t.Errorf("HTTP %d, %q: %v; want taken %v", test.status, test.message, err, test.taken)
		}
	}
}

// TestStaticKnowsNoDevices is about what a static key cannot do.
func TestStaticKnowsNoDevices(t *testing.T) {
	s, err := NewStatic(StaticConfig{AuthKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	if _, can := any(s).(DeviceAPI); can {
		t.Error("an engine would delete devices with a static key, instead of logging nodes out")
	}
}
