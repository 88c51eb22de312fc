// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// join logs a new wire node in and returns its device.
func join(t *testing.T, s *Server, name string) (*wireNode, Device) {
	t.Helper()
	n := newWireNode(t, s, name)
	if err := n.login(testContext(t), s.NewKey("tag:x")); err != nil {
		t.Fatal(err)
	}
	devices := s.Devices()
	return n, devices[len(devices)-1]
}

// TestExpire follows the node whose key an admin expires: it is told, is refused
// with that key, and is the same device after a login with a new one.
func TestExpire(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	n, d := join(t, s, "n")
	var self *tailcfg.Node
	messages := 0
	if err := n.poll(ctx, func(msg *tailcfg.MapResponse) bool {
		if messages++; messages == 1 {
			if err := s.Expire(d.ID); err != nil {
				t.Error(err)
			}
		}
		self = msg.Node
		return messages == 2
	}); err != nil {
		t.Fatal(err)
	}
	if self == nil || !self.Expired || !self.KeyExpiry.Before(time.Now()) {
		t.Errorf("the node is told of itself: %+v", self)
	}
	if got := s.Devices(); !got[0].Expired {
		t.Errorf("the device is %+v", got[0])
	}
	if res, err := n.register(ctx, nil); err != nil || !res.NodeKeyExpired {
		t.Errorf("login with the old key: %+v, %v", res, err)
	}
	n.node = key.NewNode()
	if err := n.login(ctx, s.NewKey("tag:x")); err != nil {
		t.Fatal(err)
	}
	if got := s.Devices(); len(got) != 1 || got[0].ID != d.ID || got[0].Expired || got[0].Name != d.Name {
		t.Errorf("after the login: %+v, was %+v", got, d)
	}
	if err := s.Expire("nNone"); err == nil {
		t.Error("a device that is not there was expired")
	}
}

// TestExpiredNode has a real node find out.
func TestExpiredNode(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	n := newNode(t, s, "n", s.NewKey("tag:x"))
	if err := s.Expire(string(n.up(t, ctx).Self.ID)); err != nil {
		t.Fatal(err)
	}
	n.awaitStatus(t, ctx, "its key's expiry", func(st *ipnstate.Status) bool {
		return st.BackendState == ipn.NeedsLogin.String()
	})
}

// TestExit tells one node of two, and then both, to end their process; a real
// one would.
func TestExit(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	a, deviceA := join(t, s, "a")
	b, _ := join(t, s, "b")
	told := make(chan string, 10)
	for _, n := range []*wireNode{a, b} {
		go n.poll(ctx, func(msg *tailcfg.MapResponse) bool {
			if msg.Debug != nil && msg.Debug.Exit != nil {
				told <- fmt.Sprint(n.name, *msg.Debug.Exit)
				return n == b
			}
			return false
		})
	}
	online := func(devices []Device) bool { return devices[0].Online && devices[1].Online }
	if err := s.Await(ctx, online); err != nil {
		t.Fatal(err)
	}
	expect := func(id string, code, polls int, want ...string) {
		t.Helper()
		if n, err := s.Exit(id, code); err != nil || n != polls {
			t.Errorf("Exit(%q) = %d, %v; want %d", id, n, err, polls)
		}
		got := map[string]bool{}
		for range want {
			select {
			case who := <-told:
				got[who] = true
			case <-ctx.Done():
				t.Fatalf("told so far: %v, want %v", got, want)
			}
		}
		for _, who := range want {
			if !got[who] {
				t.Errorf("told %v, want %v", got, want)
			}
		}
	}
	expect(deviceA.ID, 3, 1, "a3")
	expect("", 4, 2, "a4", "b4")
	if _, err := s.Exit("nNone", 1); err == nil {
		t.Error("a device that is not there was told")
	}
}

// TestNames is about who is called what, and for how long.
func TestNames(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	_, tok := token(t, s, "lab-client", "lab-secret")
	_, first := join(t, s, "twin")
	n, second := join(t, s, "twin")
	check := func(when, want string) {
		t.Helper()
		devices := s.Devices()
		if got := devices[len(devices)-1]; got.ID != second.ID || got.Name != want+".lab.ts.net" {
			t.Errorf("%s the device is called %q, want %q", when, got.Name, want)
		}
	}
	rename := func(name string, status int, message string) {
		t.Helper()
		got, answer := call(t, s, "POST", "/device/"+second.ID+"/name", tok, fmt.Sprintf(`{"name":%q}`, name))
		if text, _ := answer["message"].(string); got != status || !strings.Contains(text, message) {
			t.Errorf("renaming to %q: HTTP %d, %q; want %d, %q", name, got, text, status, message)
		}
	}
	check("with another of its hostname", "twin-1")
	rename("twin", http.StatusBadRequest, "already taken")
	rename("no/name", http.StatusBadRequest, "invalid")
	if err := s.Delete(first.ID); err != nil {
		t.Fatal(err)
	}
	if err := n.publish(ctx, endpoint); err != nil {
		t.Fatal(err)
	}
	check("alone", "twin-1")
	n.node = key.NewNode()
	if err := n.login(ctx, s.NewKey("tag:x")); err != nil {
		t.Fatal(err)
	}
	check("logged in again", "twin-1")

	messages := 0
	if err := n.poll(ctx, func(msg *tailcfg.MapResponse) bool {
		if messages++; messages == 1 {
			rename("twin", http.StatusOK, "")
			return false
		}
		return msg.Node != nil && msg.Node.Name == "twin.lab.ts.net."
	}); err != nil {
		t.Errorf("waiting for the new name: %v", err)
	}
	rename("given.lab.ts.net", http.StatusOK, "")
	n.name = "other"
	if err := n.publish(ctx, endpoint); err != nil {
		t.Fatal(err)
	}
	check("with a name that somebody gave it and another hostname", "given")
	rename("", http.StatusOK, "")
	check("without one", "other")
	if c := s.Counters(); c.DevicesRenamed != 3 {
		t.Errorf("%d devices were renamed, want 3", c.DevicesRenamed)
	}
	second.ID = "nNone"
	rename("x", http.StatusNotFound, "no device")
}

// TestDeviceFields reads from the API what a device has told of itself.
func TestDeviceFields(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	_, tok := token(t, s, "lab-client", "lab-secret")
	n, lock := newWireNode(t, s, "n"), key.NewNLPrivate().Public()
	if _, err := n.register(ctx, func(r *tailcfg.RegisterRequest) {
		r.Auth = &tailcfg.RegisterResponseAuth{AuthKey: s.NewKey("tag:x")}
		r.NLKey = lock
	}); err != nil {
		t.Fatal(err)
	}
	d := s.Devices()[0]
	lockText, err := lock.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	_, answer := call(t, s, "GET", "/device/"+d.ID, tok, "")
	for field, want := range map[string]any{
		"nodeId": d.ID, "name": "n.lab.ts.net", "hostname": "n", "connectedToControl": false,
		"nodeKey": n.node.Public().String(), "machineKey": n.machine.Public().String(), "tailnetLockKey": string(lockText),
	} {
		if answer[field] != want {
			t.Errorf("%s: %v, want %v", field, answer[field], want)
		}
	}
	if legacy, _ := answer["id"].(string); legacy == "" {
		t.Error("no numeric ID")
	} else if _, again := call(t, s, "GET", "/device/"+legacy, tok, ""); again["nodeId"] != d.ID {
		t.Errorf("the device by its numeric ID: %v", again)
	}

	if err := n.poll(ctx, func(*tailcfg.MapResponse) bool {
		if _, answer := call(t, s, "GET", "/device/"+d.ID, tok, ""); answer["connectedToControl"] != true || answer["lastSeen"] != nil {
			t.Errorf("a connected device: %v", answer)
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Await(ctx, func(devices []Device) bool { return !devices[0].Online }); err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(-8 * 24 * time.Hour)
	if err := s.SetLastSeen(d.ID, then); err != nil {
		t.Fatal(err)
	}
	_, answer = call(t, s, "GET", "/device/"+d.ID, tok, "")
	if want := then.UTC().Format("2006-01-02T15:04:05Z"); answer["connectedToControl"] != false || answer["lastSeen"] != want {
		t.Errorf("a device that is aged: %v, want it last seen at %s", answer, want)
	}
}
