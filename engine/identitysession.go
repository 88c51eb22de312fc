// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"

	"tailscale.com/types/netmap"
)

// ensureOwnKeys makes sure that the node may use the keys on disk, if it has any.
func (n *node) ensureOwnKeys(ctx context.Context) error {
	if err := n.holdIdentity(ctx); err != nil {
		return err
	}
	return n.checkIdentity(ctx)
}

// confirmHolder asks the store once more right before a workload's node registers: getting
// the auth key may have taken long. It returns a *takenError if the node does not hold its
// identity any more.
func (n *node) confirmHolder(ctx context.Context, r record) error {
	if !r.Rekeyed {
		return nil
	}
	return n.renewIdentity(ctx)
}

// errRekeyed is the error of a node whose device got another node key from another host.
// Headscale 0.29 still sends such a node its peers.
var errRekeyed = errors.New("another host registered the workload's device")

// isRekeyed reports whether the netmap belongs to a device that was given another key.
func (s *session) isRekeyed(nm *netmap.NetworkMap) bool {
	return s.taken != nil && !nm.Cached && nm.SelfNode.Key() != s.b.NodeKey()
}

// keepIdentity renews the identity of a workload's node while the session lasts. The
// caller calls end.
func (s *session) keepIdentity(ctx context.Context) (end func()) {
	if s.n.record().Generation == 0 {
		return func() {}
	}
	s.identityDue, s.taken = make(chan struct{}, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.n.keepIdentity(ctx, s.identityDue, s.taken)
	}()
	return func() { cancel(); <-ended }
}
