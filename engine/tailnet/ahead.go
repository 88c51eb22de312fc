// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds of what is minted ahead. A set of keys is kept supplied for aheadIdle
// after a node last had one of its kind.
const (
	aheadSets  = 4
	aheadIdle  = time.Hour
	aheadRetry = 30 * time.Second // after a failure
	// aheadRevoke bounds the revocation of what is left at the end.
	aheadRevoke = time.Second
	// aheadLeast is the life of a key below which none is minted ahead: it would be
	// replaced all the time.
	aheadLeast = time.Minute
)

// ahead holds auth keys that are not needed yet, in memory alone, so that the next
// node with the same tags does not wait for the API. They are as all minted keys are:
// single-use, for one set of tags, and good for OAuthConfig.AuthKeyTTL from when
// they were minted.
type ahead struct {
	each int           // keys of a set; 0 has none
	life time.Duration // for which a key is handed out: it has to last for a login
	log  *slog.Logger

	mint   func(ctx context.Context, k kind) (aheadKey, error)
	revoke func(ctx context.Context, id string) error

	wake chan struct{} // one pending wake-up is enough

	mu   sync.Mutex
	sets map[string]*aheadSet
	old  []string // IDs of keys that were too old, to be revoked: Headscale keeps expired ones forever
}

// kind is the properties that a key gives the node that logs in with it.
type kind struct {
	tags      []string
	ephemeral bool
}

// name is the same for the same kind.
func (k kind) name() string {
	name := strings.Join(slices.Sorted(slices.Values(k.tags)), ",")
	if k.ephemeral {
		name += " ephemeral"
	}
	return name
}

type aheadSet struct {
	kind kind
	used time.Time // when a node last had one
	keys []aheadKey
}

// aheadKey is a key and until when it is handed out.
type aheadKey struct {
	id, secret string
	until      time.Time
}

func newAhead(each int, ttl time.Duration, log *slog.Logger) *ahead {
	if ttl < aheadLeast {
		each = 0
	}
	return &ahead{each: each, life: ttl * 3 / 4, log: log, wake: make(chan struct{}, 1), sets: map[string]*aheadSet{}}
}

// take returns a key of the kind if there is one, and has the next one minted.
func (a *ahead) take(k kind) (secret string, ok bool) {
	if a.each <= 0 {
		return "", false
	}
	name := k.name()
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	set := a.sets[name]
	if set == nil {
		set = &aheadSet{kind: kind{slices.Sorted(slices.Values(k.tags)), k.ephemeral}}
		a.sets[name] = set
	}
	set.used = now
	a.dropOld(set, now)
	if len(set.keys) > 0 {
		secret, ok = set.keys[0].secret, true
		set.keys = slices.Delete(set.keys, 0, 1) // which zeroes what it leaves
	}
	select {
	case a.wake <- struct{}{}:
	default:
	}
	return secret, ok
}

// dropOld drops the keys that are too old to be handed out: they expire soon. a.mu is
// held.
func (a *ahead) dropOld(s *aheadSet, now time.Time) {
	s.keys = slices.DeleteFunc(s.keys, func(k aheadKey) bool {
		old := !now.Before(k.until)
		if old {
			a.old = append(a.old, k.id)
		}
		return old
	})
}

// run keeps the sets supplied until ctx is done, and then revokes what is left.
func (a *ahead) run(ctx context.Context) {
	for ctx.Err() == nil {
		next := a.supply(ctx)
		a.revokeOld(ctx)
		timer := time.NewTimer(time.Until(next))
		select {
		case <-a.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	a.revokeAll()
}

// supply mints what is missing and returns when to look again.
func (a *ahead) supply(ctx context.Context) (next time.Time) {
	for {
		set, next := a.lacking(time.Now())
		if set == nil {
			return next
		}
		k, err := a.mint(ctx, set.kind)
		if err != nil {
			if ctx.Err() == nil {
				a.log.Debug("minting a key ahead, trying again later", "tags", set.kind.tags, "err", err)
			}
			return time.Now().Add(aheadRetry)
		}
		a.mu.Lock()
		set.keys = append(set.keys, k)
		a.mu.Unlock()
	}
}

// lacking returns a set that lacks keys, if there is one, and when the first key is
// too old.
func (a *ahead) lacking(now time.Time) (lacking *aheadSet, next time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropIdle(now)
	next = now.Add(aheadIdle)
	for _, set := range a.sets {
		a.dropOld(set, now)
		if len(set.keys) < a.each {
			lacking = set
		}
		for _, k := range set.keys {
			if k.until.Before(next) {
				next = k.until
			}
		}
	}
	return lacking, next
}

// dropIdle drops sets that no node has had lately, or that are too many, the oldest
// first. a.mu is held.
func (a *ahead) dropIdle(now time.Time) {
	byAge := slices.SortedFunc(maps.Keys(a.sets), func(x, y string) int { return a.sets[y].used.Compare(a.sets[x].used) })
	for i, name := range byAge {
		if i >= aheadSets || now.Sub(a.sets[name].used) >= aheadIdle {
			a.discard(name)
		}
	}
}

// discard drops a set, whose keys are then to be revoked. a.mu is held.
func (a *ahead) discard(name string) {
	for _, k := range a.sets[name].keys {
		a.old = append(a.old, k.id)
	}
	delete(a.sets, name)
}

// revokeAll revokes the keys that no node has had, as far as that goes quickly.
func (a *ahead) revokeAll() {
	a.mu.Lock()
	for name := range a.sets {
		a.discard(name)
	}
	a.mu.Unlock()
	a.revokeOld(context.Background())
}

// revokeOld revokes what was dropped. What it has no time for expires by itself.
func (a *ahead) revokeOld(ctx context.Context) {
	a.mu.Lock()
	old := a.old
	a.old = nil
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, aheadRevoke)
	defer cancel()
	var wg sync.WaitGroup
	for _, id := range old {
		wg.Go(func() {
			if err := a.revoke(ctx, id); err != nil {
				a.log.Debug("revoking a key that was minted ahead: it expires by itself", "key", id, "err", err)
			}
		})
	}
	wg.Wait()
}

// Prepare does, until ctx is done, what can be done before a node needs a key. It renews
// the API's access token, and mints keys ahead, of the kinds that nodes have had
// (OAuthConfig.KeysAhead). Then it revokes the keys that are left, which takes a second
// at most, and returns.
func (o *OAuth) Prepare(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { o.bearer.keepFresh(ctx) })
	if o.ahead.each > 0 {
		wg.Go(func() { o.ahead.run(ctx) })
	}
	wg.Wait()
}

// keepFresh has a token at hand until ctx is done. A failure is the next call's to
// report.
func (b *bearer) keepFresh(ctx context.Context) {
	for ctx.Err() == nil {
		at := time.Now().Add(aheadRetry)
		if _, err := b.get(ctx, nil); err == nil {
			at = b.renewal()
		} else if !errors.Is(err, context.Canceled) {
			b.log.Debug("fetching the API's access token ahead, trying again later", "err", err)
		}
		_ = sleep(ctx, max(time.Until(at), time.Second)) // its error is ctx's
	}
}

// renewal is when the token is to be renewed.
func (b *bearer) renewal() time.Time {
	held := <-b.held
	defer func() { b.held <- held }()
	return held.renew
}
