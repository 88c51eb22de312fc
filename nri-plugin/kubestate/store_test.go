// SPDX-License-Identifier: BSD-3-Clause

package kubestate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tailscale-nri/engine"
)

var db0 = engine.WorkloadKey{Namespace: "default", Pod: "db-0"}

func sample() engine.Identity {
	return engine.Identity{
		Generation: 3, Holder: engine.Holder{Host: "n1", PodUID: "u-1"}, NodeID: "nABC123CNTRL", Registered: true,
		LastUsed: time.Now().UTC().Truncate(time.Second), State: []byte(`{"_machinekey":"secret-of-the-test"}`),
	}
}

func (a *apiServer) store(token, cluster string) *Store {
	a.t.Helper()
	s, err := New(a.config(token), cluster)
	if err != nil {
		a.t.Fatal(err)
	}
	return s
}

// TestStore is about one real API server: it takes long to start.
func TestStore(t *testing.T) {
	a := startAPI(t)
	for _, tt := range []struct {
		name string
		test func(*testing.T, *apiServer)
	}{
		{"what is stored is what is loaded", testRoundTrip},
		{"of many writers one wins", testRace},
		{"a cluster lists its own", testList},
		{"rights", testRights},
		{"cost", testCost},
		{"the server is away", testAway},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, a) })
	}
}

func testRoundTrip(t *testing.T, a *apiServer) {
	ctx, s := t.Context(), a.store(pluginToken, "k8s")
	if _, err := s.Load(ctx, db0); !errors.Is(err, engine.ErrNoIdentity) {
		t.Fatalf("Load of nothing = %v", err)
	}
	want := sample()
	first, err := s.Save(ctx, db0, want)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Save(ctx, db0, want); !errors.Is(err, engine.ErrIdentityChanged) {
		t.Errorf("a second of the name: %v", err)
	}
	got, err := s.Load(ctx, db0)
	want.Version = first
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("loaded (-want +got), %v:\n%s", err, diff)
	}
	want.Holder, want.Generation = engine.Holder{}, 4
	second, err := s.Save(ctx, db0, want)
	if err != nil || second == first {
		t.Fatalf("Save = %q, %v, the first was %q", second, err, first)
	}
	if _, err := s.Save(ctx, db0, want); !errors.Is(err, engine.ErrIdentityChanged) {
		t.Errorf("a write of an old version: %v", err)
	}
	if err := s.Delete(ctx, db0, first); !errors.Is(err, engine.ErrIdentityChanged) {
		t.Errorf("the end of an old version: %v", err)
	}
	for range 2 {
		if err := s.Delete(ctx, db0, second); err != nil {
			t.Errorf("the end: %v", err)
		}
	}
	want.Version = second
	if _, err := s.Save(ctx, db0, want); !errors.Is(err, engine.ErrIdentityChanged) {
		t.Errorf("a write of what is gone: %v", err)
	}
}

func testRace(t *testing.T, a *apiServer) {
	s := a.store(pluginToken, "k8s")
	key := engine.WorkloadKey{Namespace: "default", Pod: "race-0"}
	id := engine.Identity{}
	for round := range 5 {
		var won atomic.Int64
		var next atomic.Value
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				mine := sample()
				mine.Version, mine.Generation, mine.Holder.Host = id.Version, id.Generation+1, fmt.Sprint(i)
				version, err := s.Save(context.Background(), key, mine)
				switch {
				case err == nil:
					won.Add(1)
					mine.Version = version
					next.Store(mine)
				case !errors.Is(err, engine.ErrIdentityChanged):
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("round %d: %d won", round, won.Load())
		}
		id = next.Load().(engine.Identity)
		if got, err := s.Load(t.Context(), key); err != nil || got.Holder != id.Holder {
			t.Errorf("round %d: stored is %+v (%v), the winner is %+v", round, got.Holder, err, id.Holder)
		}
	}
}

func testList(t *testing.T, a *apiServer) {
	s := a.store(pluginToken, "listed")
	const many = pageSize + 20 // two pages
	for i := range many {
		if _, err := s.Save(t.Context(), engine.WorkloadKey{Namespace: strings.Repeat("n", 63), Pod: strings.Repeat("p", 240) + fmt.Sprint(i)}, sample()); err != nil {
			t.Fatal(err)
		}
	}
	a.create("/api/v1/namespaces/"+testNamespace+"/secrets", "apiVersion: v1\nkind: Secret\nmetadata: {name: credentials}\n")
	all, err := s.List(t.Context())
	if err != nil || len(all) != many {
		t.Errorf("%d are listed (%v), want %d", len(all), err, many)
	}
	other, err := a.store(pluginToken, "other").List(t.Context())
	if err != nil || len(other) != 0 {
		t.Errorf("another cluster lists %d (%v)", len(other), err)
	}
}

func testRights(t *testing.T, a *apiServer) {
	s := a.store("other", "k8s")
	_, err := s.Load(t.Context(), db0)
	if !hasStatus(err, http.StatusForbidden) || !strings.Contains(err.Error(), "deploy/components/workload-state") || !strings.Contains(err.Error(), "secrets") {
		t.Errorf("without rights: %v", err)
	}
	_, err = s.Save(t.Context(), db0, sample())
	if !hasStatus(err, http.StatusForbidden) || strings.Contains(err.Error(), "secret-of-the-test") {
		t.Errorf("without rights: %v", err)
	}
	_, err = a.store("nobody's", "k8s").Load(t.Context(), db0)
	if !hasStatus(err, http.StatusUnauthorized) || strings.Contains(err.Error(), "nobody's") {
		t.Errorf("with a bad token: %v", err)
	}
	// The kubelet renews the token under way.
	cfg := a.config("renewed")
	renewed, err := New(cfg, "k8s")
	if err != nil {
		t.Fatal(err)
	}
	a.write("token-renewed", pluginToken)
	if _, err := renewed.Load(t.Context(), db0); !errors.Is(err, engine.ErrNoIdentity) {
		t.Errorf("with a new token: %v", err)
	}
	// The rights are of one namespace.
	elsewhere := a.config(pluginToken)
	elsewhere.Namespace = "default"
	there, err := New(elsewhere, "k8s")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := there.Load(t.Context(), db0); !hasStatus(err, http.StatusForbidden) {
		t.Errorf("in a pod's namespace: %v", err)
	}
}

// testCost measures a renewal.
func testCost(t *testing.T, a *apiServer) {
	s := a.store(pluginToken, "cost")
	id := sample()
	id.State = make([]byte, 3000)
	start, n := time.Now(), 200
	for range n {
		var err error
		if id.Version, err = s.Save(t.Context(), db0, id); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("a renewal of %d bytes takes %v", len(id.State), time.Since(start)/time.Duration(n))
}

func testAway(t *testing.T, a *apiServer) {
	s := a.store(pluginToken, "k8s")
	version, err := s.Save(t.Context(), db0, sample())
	if err != nil {
		t.Fatal(err)
	}
	a.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	id := sample()
	id.Version = version
	if _, err := s.Save(ctx, db0, id); err == nil || errors.Is(err, engine.ErrIdentityChanged) {
		t.Errorf("while the server is away Save = %v", err)
	}
	a.start()
	if _, err := s.Save(t.Context(), db0, id); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
