// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tailscale-nri/engine/internal/nstest"
)

// memoryIdentities is a store with compare-and-swap, as the Kubernetes API is.
type memoryIdentities struct {
	away     atomic.Bool
	noList   atomic.Bool
	requests atomic.Int64

	mu     sync.Mutex
	serial int
	stored map[WorkloadKey]Identity
}

func newIdentities() *memoryIdentities {
	return &memoryIdentities{stored: map[WorkloadKey]Identity{}}
}

var errStoreAway = errors.New("the store is away")

func (s *memoryIdentities) enter() (leave func(), err error) {
	s.requests.Add(1)
	if s.away.Load() {
		return nil, errStoreAway
	}
	s.mu.Lock()
	return s.mu.Unlock, nil
}

func (s *memoryIdentities) Load(_ context.Context, key WorkloadKey) (Identity, error) {
	leave, err := s.enter()
	if err != nil {
		return Identity{}, err
	}
	defer leave()
	id, ok := s.stored[key]
	if !ok {
		return Identity{}, ErrNoIdentity
	}
	id.State = bytes.Clone(id.State)
	return id, nil
}

func (s *memoryIdentities) Save(_ context.Context, key WorkloadKey, id Identity) (string, error) {
	leave, err := s.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	if s.stored[key].Version != id.Version {
		return "", ErrIdentityChanged
	}
	s.serial++
	id.Version, id.State = strconv.Itoa(s.serial), bytes.Clone(id.State)
	s.stored[key] = id
	return id.Version, nil
}

func (s *memoryIdentities) Delete(_ context.Context, key WorkloadKey, version string) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	id, ok := s.stored[key]
	if ok && id.Version != version {
		return ErrIdentityChanged
	}
	delete(s.stored, key)
	return nil
}

func (s *memoryIdentities) List(context.Context) (map[WorkloadKey]Identity, error) {
	leave, err := s.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if s.noList.Load() {
		return nil, errStoreAway
	}
	return maps.Clone(s.stored), nil
}

// change changes what is stored, as an administrator would.
func (s *memoryIdentities) change(key WorkloadKey, f func(*Identity)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.stored[key]
	f(&id)
	s.serial++
	id.Version = strconv.Itoa(s.serial)
	s.stored[key] = id
}

// remoteIdentities is a store in a test's parent process.
type remoteIdentities struct{ url string }

// remoteCall is a request to it, and its answer.
type remoteCall struct {
	Do  string
	Key WorkloadKey
	Identity
	Err string
}

// serveIdentities serves the store to child processes.
func serveIdentities(t *testing.T, s IdentityStore) (url string) {
	t.Helper()
	ln, err := net.Listen("tcp", netip.AddrPortFrom(nstest.HostAddr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var c remoteCall
		err := json.NewDecoder(r.Body).Decode(&c)
		switch c.Do {
		case "load":
			c.Identity, err = s.Load(r.Context(), c.Key)
		case "save":
			c.Version, err = s.Save(r.Context(), c.Key, c.Identity)
		case "delete":
			err = s.Delete(r.Context(), c.Key, c.Version)
		}
		if err != nil {
			c.Err = err.Error()
		}
		json.NewEncoder(w).Encode(c)
	}))
	srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.URL
}

func (s remoteIdentities) call(ctx context.Context, c remoteCall) (remoteCall, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return c, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return c, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return c, err
	}
	defer res.Body.Close()
	c = remoteCall{}
	if err := json.NewDecoder(res.Body).Decode(&c); err != nil {
		return c, err
	}
	for _, known := range []error{ErrNoIdentity, ErrIdentityChanged} {
		if c.Err == known.Error() {
			return c, known
		}
	}
	if c.Err != "" {
		return c, errors.New(c.Err)
	}
	return c, nil
}

func (s remoteIdentities) Load(ctx context.Context, key WorkloadKey) (Identity, error) {
	c, err := s.call(ctx, remoteCall{Do: "load", Key: key})
	return c.Identity, err
}

func (s remoteIdentities) Save(ctx context.Context, key WorkloadKey, id Identity) (string, error) {
	c, err := s.call(ctx, remoteCall{Do: "save", Key: key, Identity: id})
	return c.Version, err
}

func (s remoteIdentities) Delete(ctx context.Context, key WorkloadKey, version string) error {
	_, err := s.call(ctx, remoteCall{Do: "delete", Key: key, Identity: Identity{Version: version}})
	return err
}

func (s remoteIdentities) List(context.Context) (map[WorkloadKey]Identity, error) {
	return nil, errors.New("not served")
}

// Of many hosts that save an identity with the same version, one succeeds.
func TestIdentityRace(t *testing.T) {
	s := newIdentities()
	key := WorkloadKey{"default", "db-0"}
	for round := range 50 {
		var won atomic.Int64
		before, err := s.Load(t.Context(), key)
		if err != nil && !errors.Is(err, ErrNoIdentity) {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				id := before
				id.Generation++
				id.Holder = Holder{Host: fmt.Sprint(i)}
				if _, err := s.Save(context.Background(), key, id); err == nil {
					won.Add(1)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("round %d: %d hosts got it", round, won.Load())
		}
	}
}

// quickLease configures leases that are short enough for a test.
func quickLease(s IdentityStore, host string) func(*Config) {
	return func(cfg *Config) {
		cfg.Identities, cfg.Host = s, host
		cfg.leaseTime, cfg.renewEvery, cfg.waitEvery = 3*time.Second, 500*time.Millisecond, 200*time.Millisecond
	}
}
