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
	"tailscale-nri/nri-plugin/internal/kubeapi"
	"tailscale-nri/nri-plugin/internal/kubeapi/apitest"
)

var db0 = engine.WorkloadKey{Namespace: "default", Pod: "db-0"}

func sample() engine.Identity {
	return engine.Identity{
		Generation: 3, Holder: engine.Holder{Host: "n1", PodUID: "u-1"}, NodeID: "nABC123CNTRL", Registered: true,
		LastUsed: time.Now().UTC().Truncate(time.Second), State: []byte(`{"_machinekey":"secret-of-the-test"}`),
	}
}

func storeOf(t *testing.T, a *apitest.Server, token, cluster string) *Store {
	t.Helper()
	s, err := New(a.Config(token), cluster)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestStore is about one real API server: it takes long to start.
func TestStore(t *testing.T) {
	a := apitest.Start(t)
	a.Grant("deploy/components/workload-state/rbac.yaml")
	for _, tt := range []struct {
		name string
		test func(*testing.T, *apitest.Server)
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

func testRoundTrip(t *testing.T, a *apitest.Server) {
	ctx, s := t.Context(), storeOf(t, a, apitest.PluginToken, "k8s")
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

func testRace(t *testing.T, a *apitest.Server) {
	s := storeOf(t, a, apitest.PluginToken, "k8s")
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

func testList(t *testing.T, a *apitest.Server) {
	s := storeOf(t, a, apitest.PluginToken, "listed")
	const many = pageSize + 20 // two pages
	for i := range many {
		if _, err := s.Save(t.Context(), engine.WorkloadKey{Namespace: strings.Repeat("n", 63), Pod: strings.Repeat("p", 240) + fmt.Sprint(i)}, sample()); err != nil {
			t.Fatal(err)
		}
	}
	a.Create("/api/v1/namespaces/"+apitest.Namespace+"/secrets", "apiVersion: v1\nkind: Secret\nmetadata: {name: credentials}\n")
	all, err := s.List(t.Context())
	if err != nil || len(all) != many {
		t.Errorf("%d are listed (%v), want %d", len(all), err, many)
	}
	other, err := storeOf(t, a, apitest.PluginToken, "other").List(t.Context())
	if err != nil || len(other) != 0 {
		t.Errorf("another cluster lists %d (%v)", len(other), err)
	}
}

func testRights(t *testing.T, a *apitest.Server) {
	s := storeOf(t, a, apitest.OtherToken, "k8s")
	_, err := s.Load(t.Context(), db0)
	if !kubeapi.HasStatus(err, http.StatusForbidden) || !strings.Contains(err.Error(), "deploy/components/workload-state") || !strings.Contains(err.Error(), "secrets") {
		t.Errorf("without rights: %v", err)
	}
	_, err = s.Save(t.Context(), db0, sample())
	if !kubeapi.HasStatus(err, http.StatusForbidden) || strings.Contains(err.Error(), "secret-of-the-test") {
		t.Errorf("without rights: %v", err)
	}
	_, err = storeOf(t, a, "nobody's", "k8s").Load(t.Context(), db0)
	if !kubeapi.HasStatus(err, http.StatusUnauthorized) || strings.Contains(err.Error(), "nobody's") {
		t.Errorf("with a bad token: %v", err)
	}
	// The kubelet renews the token under way.
	cfg := a.Config("renewed")
	renewed, err := New(cfg, "k8s")
	if err != nil {
		t.Fatal(err)
	}
	a.SetToken("token-renewed", apitest.PluginToken)
	if _, err := renewed.Load(t.Context(), db0); !errors.Is(err, engine.ErrNoIdentity) {
		t.Errorf("with a new token: %v", err)
	}
	// The rights are of one namespace.
	elsewhere := a.Config(apitest.PluginToken)
	elsewhere.Namespace = "default"
	there, err := New(elsewhere, "k8s")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := there.Load(t.Context(), db0); !kubeapi.HasStatus(err, http.StatusForbidden) {
		t.Errorf("in a pod's namespace: %v", err)
	}
}

// testCost measures a renewal.
func testCost(t *testing.T, a *apitest.Server) {
	s := storeOf(t, a, apitest.PluginToken, "cost")
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

func testAway(t *testing.T, a *apitest.Server) {
	s := storeOf(t, a, apitest.PluginToken, "k8s")
	version, err := s.Save(t.Context(), db0, sample())
	if err != nil {
		t.Fatal(err)
	}
	a.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	id := sample()
	id.Version = version
	if _, err := s.Save(ctx, db0, id); err == nil || errors.Is(err, engine.ErrIdentityChanged) {
		t.Errorf("while the server is away Save = %v", err)
	}
	a.Restart()
	if _, err := s.Save(t.Context(), db0, id); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
