// SPDX-License-Identifier: BSD-3-Clause

package engine

import "testing"

// A node whose device is not approved is not Running, and its reason says where
// it is approved. It is the same device, and Running, once it is.
func TestDeviceApproval(t *testing.T) {
	w := newWorld(t)
	w.boot(hurried)
	n := w.join("a")
	if err := w.control.SetApproved(n.NodeID, false); err != nil {
		t.Fatal(err)
	}
	w.awaitReason(n.UID, Pending, "approve it in the admin console")
	w.halt()
	w.boot(hurried) // a restart meanwhile is no way around it
	w.awaitReason(n.UID, Pending, "approve it in the admin console")
	if err := w.control.SetApproved(n.NodeID, true); err != nil {
		t.Fatal(err)
	}
	w.awaitReason(n.UID, Running, "")
	if after := w.statusOf(n.UID); after.NodeID != n.NodeID {
		t.Errorf("the node is %s, was %s", after.NodeID, n.NodeID)
	}
}
