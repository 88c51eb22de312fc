// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
)

// TestHeadscaleTags: the key alone gives a node its tags.
func TestHeadscaleTags(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{Headscale: true})
	key := s.NewReusableKey("tag:a")
	request := func(r *tailcfg.RegisterRequest) {
		r.Auth = &tailcfg.RegisterResponseAuth{AuthKey: key}
		r.Hostinfo.RequestTags = []string{"tag:a"}
	}
	n := newWireNode(t, s, "alpha")
	if res, err := n.register(ctx, request); err != nil || res.Error != "requested tags [tag:a] are invalid or not permitted" {
		t.Errorf("a new node that requests the key's own tag: %+v (%v)", res, err)
	}
	if err := n.login(ctx, key); err != nil {
		t.Fatal(err)
	}
	if res, err := n.register(ctx, request); err != nil || res.Error != "" {
		t.Errorf("a node that is known: %+v (%v)", res, err)
	}
	if d := s.Devices(); len(d) != 1 || !slices.Equal(d[0].Tags, []string{"tag:a"}) {
		t.Errorf("devices %+v", d)
	}
	if err := n.login(ctx, s.NewKey("tag:b")); err != nil {
		t.Fatal(err)
	}
	if d := s.Devices(); len(d) != 1 || !slices.Equal(d[0].Tags, []string{"tag:a"}) {
		t.Errorf("after a login with another key's tags: devices %+v", d)
	}
}

// TestHeadscaleLogout: a tagged node that has logged out is kept, expired, and no
// key renews it; an ephemeral one is gone.
func TestHeadscaleLogout(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{Headscale: true})
	logout := func(r *tailcfg.RegisterRequest) { r.Expiry = time.Unix(123, 0) }
	n := newWireNode(t, s, "alpha")
	if err := n.login(ctx, s.NewKey("tag:a")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.register(ctx, logout); err != nil {
		t.Fatal(err)
	}
	if d := s.Devices(); len(d) != 1 || !d[0].Expired {
		t.Errorf("devices %+v, want one that has expired", d)
	}
	key := s.NewKey("tag:a")
	res, err := n.register(ctx, func(r *tailcfg.RegisterRequest) { r.Auth = &tailcfg.RegisterResponseAuth{AuthKey: key} })
	if err != nil || !res.NodeKeyExpired {
		t.Errorf("a login after that: %+v (%v), want an expired key", res, err)
	}
	other := newWireNode(t, s, "alpha")
	if err := other.login(ctx, s.NewKey("tag:a")); err != nil {
		t.Fatal(err)
	}
	if d := s.Devices(); len(d) != 2 || d[1].Name != "alpha-1.lab.ts.net" {
		t.Errorf("devices %+v, want the next of that name numbered", d)
	}
}

// TestHeadscaleDeletion: a node does not hear of its own deletion until it asks.
func TestHeadscaleDeletion(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{Headscale: true})
	n := newWireNode(t, s, "alpha")
	if err := n.login(ctx, s.NewKey("tag:a")); err != nil {
		t.Fatal(err)
	}
	polls, deleted := make(chan struct{}, 10), make(chan error, 1)
	go func() {
		deleted <- n.poll(ctx, func(*tailcfg.MapResponse) bool { polls <- struct{}{}; return false })
	}()
	<-polls
	if err := s.Delete(s.Devices()[0].ID); err != nil {
		t.Fatal(err)
	}
	res, err := n.post(ctx, "/machine/map", &tailcfg.MapRequest{Version: tailcfg.CurrentCapabilityVersion, NodeKey: n.node.Public(), OmitPeers: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("its next request: %s, want 404", res.Status)
	}
	select {
	case err := <-deleted:
		t.Errorf("its poll ended (%v)", err)
	default:
	}
}

// TestHeadscaleAPI: what the API does not show, and the form of its errors.
func TestHeadscaleAPI(t *testing.T) {
	s := start(t, Config{Headscale: true})
	n := newWireNode(t, s, "alpha")
	if err := n.login(testContext(t), s.NewKey("tag:a")); err != nil {
		t.Fatal(err)
	}
	_, token := token(t, s, "lab-client", "lab-secret")
	_, list := call(t, s, "GET", "/tailnet/-/devices", token, "")
	d := list["devices"].([]any)[0].(map[string]any)
	if d["nodeId"] != d["id"] || strings.Trim(d["nodeId"].(string), "0123456789") != "" {
		t.Errorf("nodeId %v, id %v, want one decimal number", d["nodeId"], d["id"])
	}
	for _, field := range []string{"tailnetLockKey", "connectedToControl"} {
		if v, ok := d[field]; ok {
			t.Errorf("the device has %s: %v", field, v)
		}
	}
	status, answer := call(t, s, "GET", "/device/99999", token, "")
	if status != http.StatusNotFound || answer["detail"] != "no device with ID 99999" || answer["message"] != nil || answer["title"] != "Not Found" {
		t.Errorf("a device that is not there: %d %v", status, answer)
	}
}
