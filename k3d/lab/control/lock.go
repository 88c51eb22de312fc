// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"bytes"
	"fmt"
	"net/http"

	"tailscale.com/tailcfg"
	"tailscale.com/tailcfg/nodecap"
	"tailscale.com/tka"
	"tailscale.com/types/key"
	"tailscale.com/types/tkatype"
)

// lock is tailnet lock with one trusted key, which is the admin's. Fields do not
// change.
type lock struct {
	key     key.NLPrivate
	genesis tkatype.MarshaledAUM
	head    string
}

// Lock enables tailnet lock, and signs the node keys of the devices with these
// IDs, all at once: none of them is locked out in between. The other nodes of a locked tailnet drop a device whose node key is not
// signed; a login with a new node key needs a new signature. There is no
// unlocking, and no device may sign.
func (s *Server) Lock(ids ...string) error {
	l, err := newLock()
	if err != nil {
		return fmt.Errorf("enabling tailnet lock: %w", err)
	}
	t := s.nodes
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lock != nil {
		return fmt.Errorf("tailnet lock is enabled already")
	}
	for _, id := range ids {
		n := t.deviceLocked(id)
		if n == nil {
			return fmt.Errorf("no device %q to sign", id)
		}
		if n.KeySignature, err = l.sign(n.Key); err != nil {
			return fmt.Errorf("signing device %q: %w", id, err)
		}
	}
	t.lock = l
	for _, n := range t.byID {
		n.allowLock()
		t.changedLocked(n)
	}
	return nil
}

// allowLock gives n the capability without which a client ignores tailnet lock
// (ipn/ipnlocal, tkaSyncIfNeeded).
func (n *node) allowLock() {
	caps := tailcfg.NodeCapMap{nodecap.TailnetLock: nil}
	for c, v := range n.CapMap {
		caps[c] = v
	}
	n.CapMap = caps
	n.whole++
}

// Sign signs a device's node key, in a tailnet that is locked.
func (s *Server) Sign(id string) error {
	var failed error
	err := s.change(id, "sign", func(n *node) {
		if s.nodes.lock == nil {
			failed = fmt.Errorf("signing device %q: the tailnet is not locked", id)
			return
		}
		if n.KeySignature, failed = s.nodes.lock.sign(n.Key); failed == nil {
			n.whole++
			s.nodes.changedLocked(n)
		}
	})
	if err != nil {
		return err
	}
	return failed
}

func newLock() (*lock, error) {
	l := &lock{key: key.NewNLPrivate()}
	trusted := tka.Key{Kind: tka.Key25519, Public: l.key.Public().Verifier(), Votes: 1}
	secret := bytes.Repeat([]byte{1}, 32) // unlocking is not for this tailnet
	_, genesis, err := tka.Create(tka.ChonkMem(), tka.State{
		Keys:              []tka.Key{trusted},
		DisablementValues: [][]byte{tka.DisablementKDF(secret)},
	}, l.key)
	if err != nil {
		return nil, err
	}
	l.genesis, l.head = genesis.Serialize(), genesis.Hash().String()
	return l, nil
}

// sign returns the signature of a node key that the trusted key makes itself.
func (l *lock) sign(nodeKey key.NodePublic) (tkatype.MarshaledSignature, error) {
	pub, err := nodeKey.MarshalBinary()
	if err != nil {
		return nil, err
	}
	sig := tka.NodeKeySignature{SigKind: tka.SigDirect, KeyID: l.key.KeyID(), Pubkey: pub}
	if sig.Signature, err = l.key.SignNKS(sig.SigHash()); err != nil {
		return nil, err
	}
	return sig.Serialize(), nil
}

// serveLockGenesis tells a node how the lock began, which is all there is to
// it.
func (s *Server) serveLockGenesis(w http.ResponseWriter, r *http.Request) {
	if l := s.lockOr404(w, r); l != nil {
		writeJSON(w, http.StatusOK, &tailcfg.TKABootstrapResponse{GenesisAUM: l.genesis})
	}
}

// serveLockOffer tells a node that has the genesis that nothing came after it.
func (s *Server) serveLockOffer(w http.ResponseWriter, r *http.Request) {
	if l := s.lockOr404(w, r); l != nil {
		writeJSON(w, http.StatusOK, &tailcfg.TKASyncOfferResponse{Head: l.head, Ancestors: []string{}})
	}
}

func (s *Server) lockOr404(w http.ResponseWriter, r *http.Request) *lock {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	if s.nodes.lock == nil {
		http.NotFound(w, r)
	}
	return s.nodes.lock
}
