// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale-nri/k3d/lab/control"
)

// lying returns the secrets that lie ready for the tags.
func (a *ahead) lying(tags string) (secrets []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if set := a.sets[tags]; set != nil {
		for _, k := range set.keys {
			secrets = append(secrets, k.secret)
		}
	}
	return secrets
}

// prepare runs Prepare, and returns what ends it and waits for that.
func prepare(o *OAuth) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		o.Prepare(ctx)
		close(done)
	}()
	return func() {
		cancel()
		<-done
	}
}

// awaitLying waits until so many keys lie ready.
func awaitLying(t *testing.T, o *OAuth, tags string, want int) []string {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		keys := o.ahead.lying(tags)
		if len(keys) == want {
			return keys
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d keys lie ready for %s, want %d", len(keys), tags, want)
		}
	}
}

// Keys lie ready for the tags that a node has had, of the same kind and life as
// others, and are revoked at the end.
func TestKeysAhead(t *testing.T) {
	s := newAPI(t)
	o := newOAuth(t, s, func(c *OAuthConfig) { c.KeysAhead, c.Cluster, c.AuthKeyTTL = 2, "lab", time.Minute })
	stop := prepare(o)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.AwaitCalls(ctx, 1); err != nil {
		t.Fatalf("no token is fetched ahead: %v", err)
	}
	if c := s.Counters(); c.KeysMinted != 0 {
		t.Errorf("%d keys are minted before anybody wants one", c.KeysMinted)
	}
	if _, err := o.NewAuthKey(ctx, web); err != nil {
		t.Fatal(err)
	}
	lying := awaitLying(t, o, "tag:web", 2)
	for _, secret := range lying {
		k, ok := s.Key(secret)
		if !ok || k.Reusable || k.Ephemeral || !k.Preauthorized || !slices.Equal(k.Tags, []string{"tag:web"}) ||
			k.Description != "tailscale-nri lab for the next pod" || time.Until(k.Expires) > time.Minute {
			t.Errorf("key %+v (%v)", k, ok)
		}
	}
	if got, err := o.NewAuthKey(ctx, web); err != nil || got != lying[0] {
		t.Errorf("the next node does not get a key that lies ready (%v)", err)
	}
	if got, err := o.NewAuthKey(ctx, Node{Hostname: "a"}); err != nil || slices.Contains(lying, got) {
		t.Errorf("a node with other tags gets one of the keys (%v)", err)
	}
	ephemeral := web
	ephemeral.Ephemeral = true
	if got, err := o.NewAuthKey(ctx, ephemeral); err != nil || slices.Contains(awaitLying(t, o, "tag:web", 2), got) {
		t.Errorf("an ephemeral node gets a key that makes another kind (%v)", err)
	} else if k, ok := s.Key(got); !ok || !k.Ephemeral || k.Reusable {
		t.Errorf("its key is %+v (%v)", k, ok)
	}
	for _, secret := range awaitLying(t, o, "tag:web ephemeral", 2) {
		if k, _ := s.Key(secret); !k.Ephemeral {
			t.Errorf("what lies ready for ephemeral nodes is %+v", k)
		}
	}
	left := append(awaitLying(t, o, "tag:web", 2), awaitLying(t, o, "tag:pod", 2)...)
	stop()
	for _, secret := range left {
		if _, ok := s.Key(secret); ok {
			t.Error("a key that nobody had is not revoked at the end")
		}
	}
	if fmt.Sprint(o) != "tailnet with an OAuth client at "+s.APIURL() {
		t.Errorf("printed as %v", o)
	}
}

// A key that is about to expire is not handed out, but replaced and revoked.
func TestKeysAheadExpire(t *testing.T) {
	s := newAPI(t)
	o := newOAuth(t, s, func(c *OAuthConfig) { c.KeysAhead, c.AuthKeyTTL = 1, time.Second })
	if o.ahead.each != 0 {
		t.Error("keys that live for a second are minted ahead")
	}
	o.ahead.each = 1
	defer prepare(o)()
	if _, err := o.NewAuthKey(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	first := awaitLying(t, o, "tag:web", 1)[0]
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if now := o.ahead.lying("tag:web"); len(now) == 1 && now[0] != first {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("an old key is not replaced")
		}
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, ok := s.Key(first); !ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the old key is not revoked")
		}
	}
}

// Where none can be minted ahead, nodes get keys as without.
func TestKeysAheadFail(t *testing.T) {
	s := newAPI(t)
	o := newOAuth(t, s, func(c *OAuthConfig) { c.KeysAhead = 2; c.Calls.Attempts = 1 })
	defer prepare(o)()
	if _, err := o.NewAuthKey(testContext(t), web); err != nil {
		t.Fatal(err)
	}
	awaitLying(t, o, "tag:web", 2)
	s.AddFault(control.Fault{Path: "/api/v2/tailnet", Status: http.StatusInternalServerError})
	for range 2 {
		if _, err := o.NewAuthKey(testContext(t), web); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.NewAuthKey(testContext(t), web); err == nil || !strings.Contains(err.Error(), "does not work") {
		t.Errorf("with none ready and the API away: %v", err)
	}
	s.ClearFaults()
	if _, err := o.NewAuthKey(testContext(t), web); err != nil {
		t.Fatal(err)
	}
}

// Sets of tags are kept within bounds.
func TestKeysAheadAreBounded(t *testing.T) {
	a := newAhead(2, time.Hour, nil)
	for i := range 3 * aheadSets {
		a.take(kind{tags: []string{fmt.Sprint("tag:", i)}})
	}
	for now := time.Now(); ; {
		set, _ := a.lacking(now)
		if set == nil {
			break
		}
		set.keys = append(set.keys, aheadKey{until: now.Add(time.Hour)})
	}
	if len(a.sets) != aheadSets || a.sets[fmt.Sprint("tag:", 3*aheadSets-1)] == nil {
		t.Errorf("%d sets are kept, want the last %d", len(a.sets), aheadSets)
	}
	if set, _ := a.lacking(time.Now().Add(aheadIdle + time.Second)); set != nil || len(a.sets) != 0 {
		t.Errorf("idle sets are kept: %v", a.sets)
	}
}
