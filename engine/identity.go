// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"errors"
	"time"

	"tailscale.com/tailcfg"
)

// The device of a pod with [Features.Workload] belongs to the pod's namespace and name, not
// to its UID. A pod that Kubernetes creates again under the same name, on any host, gets
// the same device. For that its [Identity] is kept in a store that all hosts of the
// cluster share.
//
// # Who holds an identity
//
// An identity has one holder, and a generation that grows by one each time it is taken.
// Both change only by compare-and-swap, so that only one of several hosts that want an
// identity gets it. A holder renews it every renewEvery. Another host takes it only
// when it was given back or has not changed for leaseTime. The waiting host measures
// that with its own monotonic clock, from when it first saw that version. No clock is
// compared with another host's.
//
// # What keeps two holders apart
//
// A lease cannot keep them apart: a process that was stopped for an hour sends its next
// packet before it looks at any clock, and a host that is cut off from the store does not
// learn that its identity was taken. The node key keeps them apart. The host that takes an identity makes a node key
// for it in the same write, and registers that key, under the machine key that stays.
// The control plane keeps the device and its addresses (it knows a device by the
// machine key) and replaces its node key. From their next netmap on, peers accept no
// packet of the earlier key, and cannot send any to it. No node key is ever in use by
// two holders.
//
//	the earlier holder …              what ends it
//	ended because its pod ended       it gave the identity back: the next holder takes it
//	                                  at once
//	lost power, was killed            nothing is left of it; the next holder waits for
//	                                  leaseTime
//	is stopped, or its VM is          the node key: when it continues, peers drop what it
//	                                  sends. It stops at its next renewal, or when the
//	                                  control plane refuses its key or tells it that the
//	                                  device has another (isRekeyed)
//	is cut off from the store         the same. If no host reaches the store, no host can
//	                                  take the identity, and it goes on
//	is cut off from everything        it reaches no control plane; peers drop its key
//	has a wrong clock                 no clock is compared
//	is stopped while it registers,    when it continues, its auth key may still be good. It
//	after its last question to        registers then, and replaces the next holder's key.
//	the store                         The next holder registers with another key, since it
//	                                  holds the identity. The earlier one stops at that, or
//	                                  at its next renewal
//	is a copy of a host, or a         its record is of another boot, so it takes the
//	host that was rebooted            identity again, with another node key. For a pod whose
//	                                  network namespace is gone it takes none
//
// So a holder registers only when the store has just confirmed that it is the holder. A
// holder whose key the control plane refuses asks the store first. A holder whose key the
// control plane accepts does not need the store: neither a restart of this process nor an
// outage of the store interrupts it.
//
// # Its end
//
// When a pod ends, its identity is given back and nothing is deleted: the engine does not
// know whether a StatefulSet is scaled down for good. An administrator can delete it from
// the store. An identity that has not been used for [Config.SweepAfter] is deleted with
// its device by the sweep of any host. Until then no sweep touches its device.

const (
	// leaseTime is how long an identity must not have changed for another host to take
	// it: three renewals may fail.
	leaseTime = 60 * time.Second
	// renewEvery is the pause between two renewals, plus or minus a tenth.
	renewEvery = 17 * time.Second
	// waitEvery is how often a host looks at an identity that it waits for.
	waitEvery = 5 * time.Second
	// storeTime bounds one request to the store.
	storeTime = 10 * time.Second
)

// WorkloadKey names a workload's pod within its cluster.
type WorkloadKey struct{ Namespace, Pod string }

// Identity is a device that stays with a workload's pod, whichever host that runs on.
type Identity struct {
	// Version changes with each Save, in any way the store likes; "" means that the
	// identity is not in the store.
	Version    string
	Generation uint64 // how often it has been taken
	Holder     Holder // zero if no pod has it
	// LastUsed is the holder's time at its last renewal.
	LastUsed time.Time
	// NodeID is the device, "" until it exists.
	NodeID tailcfg.StableNodeID
	// Registered is whether the control plane knows the node key in State.
	Registered bool
	// State are the node's private keys and its preferences, in the form of
	// tailscale.com's FileStore. It is a secret.
	State []byte
}

// Holder is a pod on a host.
type Holder struct {
	Host   string // name of the Kubernetes node
	PodUID string
}

// IdentityStore keeps identities. All hosts of a cluster have the same store. It is
// used by many goroutines.
type IdentityStore interface {
	// Load returns ErrNoIdentity if no identity is stored.
	Load(ctx context.Context, key WorkloadKey) (Identity, error)
	// Save stores the identity if the stored one has its Version, or if that is "" and
	// nothing is stored, and returns the new version. Otherwise it returns
	// ErrIdentityChanged. After any other error it may have been stored.
	Save(ctx context.Context, key WorkloadKey, id Identity) (version string, err error)
	// Delete deletes the identity if the stored one has the version, and otherwise
	// returns ErrIdentityChanged. It returns nil if nothing is stored.
	Delete(ctx context.Context, key WorkloadKey, version string) error
	// List returns all of them.
	List(ctx context.Context) (map[WorkloadKey]Identity, error)
}

var (
	// ErrNoIdentity is returned by Load if nothing is stored under the key.
	ErrNoIdentity = errors.New("no identity is stored")
	// ErrIdentityChanged is returned by Save and Delete if another host was faster.
	ErrIdentityChanged = errors.New("the stored identity has another version")
)

// steppedIdentities makes each change of the store a step, and bounds each request.
type steppedIdentities struct {
	store IdentityStore
	e     *Engine
}

func (s steppedIdentities) Load(ctx context.Context, key WorkloadKey) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	return s.store.Load(ctx, key)
}

func (s steppedIdentities) Save(ctx context.Context, key WorkloadKey, id Identity) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	err = s.e.take(stepIdentity, func() error {
		version, err = s.store.Save(ctx, key, id)
		return err
	})
	return version, err
}

func (s steppedIdentities) Delete(ctx context.Context, key WorkloadKey, version string) error {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	return s.e.take(stepIdentity, func() error { return s.store.Delete(ctx, key, version) })
}

func (s steppedIdentities) List(ctx context.Context) (map[WorkloadKey]Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*storeTime) // several pages
	defer cancel()
	return s.store.List(ctx)
}

// useIdentities prepares the store, if there is one.
func (e *Engine) useIdentities() {
	if e.cfg.Identities == nil {
		return
	}
	e.cfg.Identities = steppedIdentities{e.cfg.Identities, e}
	e.cfg.leaseTime = cmp.Or(e.cfg.leaseTime, leaseTime)
	e.cfg.renewEvery = cmp.Or(e.cfg.renewEvery, renewEvery)
	e.cfg.waitEvery = cmp.Or(e.cfg.waitEvery, waitEvery)
}

func keyOf(pod Pod) WorkloadKey { return WorkloadKey{pod.Namespace, pod.Name} }
