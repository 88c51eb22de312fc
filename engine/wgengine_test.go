// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"reflect"
	"slices"
	"testing"

	"tailscale.com/wgengine"
)

// wgEngine hears of every change of a node's peers only as long as it knows by which
// calls LocalBackend makes them. Check each method that a later tailscale.com adds:
// does it change which peer has an address, what a peer may send from, or the node's
// key? Then wgEngine must count it.
func TestEngineMethods(t *testing.T) {
	counted := []string{
		"Close", "Reconfig", "ResetAndStop", "SetPeerByIPPacketFunc", "SetPeerConfigFunc", "SetPeerRoutes", "SyncDevicePeer",
	}
	harmless := []string{
		"Done", "GetFilter", "GetJailedFilter", "InstallCaptureHook", "MarkDevicePeerForHandshake", "PeerByKey", "Ping",
		"ProbeLocks", "RequestStatus", "SetFilter", "SetJailedFilter", "SetNetLogSource", "SetPeerForIPFunc",
		"SetPeerPriorityMessageOnEstablishmentFunc", "SetPeerSessionStateFunc", "SetSelfNode", "SetStatusCallback",
		"SetWGPeerLookup", "UpdateStatus",
	}
	known := slices.Sorted(slices.Values(append(counted, harmless...)))
	var methods []string
	for m := range reflect.TypeFor[wgengine.Engine]().Methods() {
		methods = append(methods, m.Name)
	}
	slices.Sort(methods)
	if !slices.Equal(methods, known) {
		t.Errorf("wgengine.Engine has the methods\n%v, known are\n%v", methods, known)
	}
}
