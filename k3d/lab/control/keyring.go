// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"tailscale.com/types/key"
	"tailscale.com/util/rands"
)

// AuthKey is a key that lets nodes into the tailnet, without its secret.
type AuthKey struct {
	ID            string // the middle part of the key
	Reusable      bool
	Ephemeral     bool
	Preauthorized bool // recorded only: this tailnet approves all devices
	Tags          []string
	Description   string
	Created       time.Time
	Expires       time.Time
	UsedBy        key.NodePublic // the last node that came in with it; zero until used
}

// authKey is an AuthKey with its secret.
type authKey struct {
	AuthKey
	secret string // the whole key, which ends in it
}

// keyPrefix begins every auth key.
const keyPrefix = "tskey-auth-"

// keyring holds the keys that were minted.
type keyring struct {
	mu       sync.Mutex
	byID     map[string]*authKey
	bySecret map[string]*authKey
	all      []string // every secret that there ever was
}

func newKeyring() *keyring {
	return &keyring{byID: map[string]*authKey{}, bySecret: map[string]*authKey{}}
}

// mint adds k under a new ID and secret.
func (r *keyring) mint(key AuthKey) authKey {
	k := authKey{AuthKey: key}
	k.ID = "k" + rands.HexString(10) + "CNTRL"
	k.secret = keyPrefix + k.ID + "-" + rands.HexString(32)
	k.Created = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byID[k.ID], r.bySecret[k.secret] = &k, &k
	r.all = append(r.all, k.secret)
	return k
}

// get returns a key by ID.
func (r *keyring) get(id string) (authKey, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.byID[id]; k != nil {
		return *k, true
	}
	return authKey{}, false
}

// revoke forgets a key and reports whether there was one.
func (r *keyring) revoke(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.byID[id]
	if k == nil {
		return false
	}
	delete(r.byID, id)
	delete(r.bySecret, k.secret)
	return true
}

// use spends a key on a node that asks for tags, and returns the key with the
// node's tags. The errors are production's: the texts that the public threads on
// failed logins quote (tailscale/tailscale issues 17047 for a key that is gone,
// 9715 for one that is spent, 6215 for what is not a key at all). A tagged key fixes
// the tags; the owner of an untagged one is taken to own all tags.
func (r *keyring) use(secret string, by key.NodePublic, tags []string) (AuthKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.bySecret[secret]
	switch {
	case !strings.HasPrefix(secret, keyPrefix):
		return AuthKey{}, fmt.Errorf("invalid key: unable to validate API key")
	case k == nil:
		return AuthKey{}, fmt.Errorf("invalid key: API key does not exist")
	case time.Now().After(k.Expires):
		return AuthKey{}, fmt.Errorf("invalid key: API key %s not valid", k.ID)
	case !k.Reusable && !k.UsedBy.IsZero() && k.UsedBy != by:
		return AuthKey{}, fmt.Errorf("invalid key: API key %s not valid", k.ID)
	}
	out := k.AuthKey
	if len(k.Tags) == 0 {
		out.Tags = tags
	}
	for _, tag := range tags {
		if !slices.Contains(out.Tags, tag) {
			return AuthKey{}, fmt.Errorf("requested tags [%s] are invalid or not permitted", tag)
		}
	}
	k.UsedBy = by
	return out, nil
}

// Secrets returns all auth keys and access tokens that were ever handed out, for a
// test to look for them where none may be.
func (s *Server) Secrets() []string {
	s.keys.mu.Lock()
	all := slices.Clone(s.keys.all)
	s.keys.mu.Unlock()
	s.tokens.mu.Lock()
	defer s.tokens.mu.Unlock()
	return append(all, s.tokens.all...)
}

// Key returns what is known of a key by its secret.
func (s *Server) Key(secret string) (AuthKey, bool) {
	s.keys.mu.Lock()
	defer s.keys.mu.Unlock()
	k := s.keys.bySecret[secret]
	if k == nil {
		return AuthKey{}, false
	}
	return k.AuthKey, true
}
