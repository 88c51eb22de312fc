// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"tailscale.com/types/key"
)

// mark makes and recognises the lock keys of one cluster's nodes.
type mark struct {
	secret  []byte // with workload identity none but by name: see OAuth.LockKey
	cluster string // "" marks nothing
}

// newMark keeps apart what is derived from a client's secret and what from its
// ID: no text is good for both.
func newMark(cfg OAuthConfig) mark {
	m := mark{secret: []byte(cfg.ClientSecret), cluster: cfg.Cluster}
	if cfg.IDTokenFile != "" {
		mac := hmac.New(sha256.New, []byte("tailscale-nri mark of a federated identity v1"))
		mac.Write([]byte(cfg.ClientID))
		m.secret = mac.Sum(nil)
	}
	return m
}

// Hostnames are of one kind or the other: see DeviceAPI.LockKey.
const (
	kindDefault = "default"
	kindChosen  = "chosen"
)

// LockKey returns the key that marks a device as this cluster's. Its seed is the
// HMAC-SHA256, under the OAuth client's secret, of the cluster's name, the kind
// of the hostname and the machine key.
//
// A device proves its machine key in each of its connections to the control plane. So a
// process with the secret has marked the machine key of every device with the mark. A
// device cannot get the mark by accident, by choosing names or tags, or by copying
// another device's public keys. A device is no longer known to be the cluster's once the
// client's secret or the cluster's name changes.
//
// A federated identity has no secret. Instead the key is derived from the client's ID,
// which all hosts know, and which is not a secret. The mark still cannot arise by
// accident or by copying, but an attacker who learns the client's ID and the cluster's
// name can mark a device of their own. The only effect is that the plugin treats that
// device as the cluster's: it deletes the device when a sweep finds that it has not been
// seen for long enough, or when it is offline and has the name of a pod. The attacker
// cannot mark anyone else's device, since the mark is made from the machine key that the
// device proves. A cluster that changes from a client's secret to a federated identity,
// or from one client to another, no longer knows its earlier devices. They are not swept,
// and not deleted when a later device wants their name: those that stay have to be
// deleted by hand.
//
// What that costs: anyone who has the secret and knows a node's public machine key, as
// all its peers do, can make the node's lock key. Without tailnet lock the key is of no
// use. With it, the key is trusted for what an admin has it trusted for. Added as a
// signing key, it can sign any node: do not add it. An admin may name it as the rotation
// key when signing the node, as "tailscale lock status" proposes (tailscale lock sign
// nodekey:… tlpub:…). It can then pass that signature on to another node key, so that the
// secret gets a node into a locked tailnet. Without the mark the secret can make an auth
// key but no signature. With a federated identity that is open to every peer who knows
// the client's ID. Where that matters, sign the node key alone.
func (o *OAuth) LockKey(machine key.MachinePublic, chosenName bool) (key.NLPrivate, bool) {
	if o.mark.cluster == "" || machine.IsZero() {
		return key.NLPrivate{}, false
	}
	return o.mark.key(machine, kindOf(chosenName)), true
}

// Ours implements DeviceAPI.
func (o *OAuth) Ours(d Device) (ours, chosenName bool) {
	if o.mark.cluster == "" || d.MachineKey.IsZero() || d.LockKey.IsZero() {
		return false, false
	}
	// Equal takes the same time whatever the keys.
	chosenName = o.mark.key(d.MachineKey, kindChosen).Public().Equal(d.LockKey)
	return chosenName || o.mark.key(d.MachineKey, kindDefault).Public().Equal(d.LockKey), chosenName
}

func kindOf(chosenName bool) string {
	if chosenName {
		return kindChosen
	}
	return kindDefault
}

// key derives a lock key. The text under the HMAC is quoted, so that no two
// sets of values have the same.
func (m *mark) key(machine key.MachinePublic, kind string) (lock key.NLPrivate) {
	mac := hmac.New(sha256.New, m.secret)
	fmt.Fprintf(mac, "%q %q %q %q", "tailscale-nri lock key v1", m.cluster, kind, machine.String())
	// An Ed25519 private key is its seed and its public key; this text is the
	// one way to make a key.NLPrivate of one's own (types/key/nl.go).
	private := ed25519.NewKeyFromSeed(mac.Sum(nil))
	if err := lock.UnmarshalText([]byte("nlpriv:" + hex.EncodeToString(private))); err != nil {
		panic("the form of tailnet lock keys has changed: " + err.Error()) // the error holds nothing of the key
	}
	return lock
}
