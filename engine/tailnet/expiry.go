// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"fmt"
	"time"
)

// KeyEnds says that a device's key ends soon, and what can be done about it.
func KeyEnds(t Tailnet, nodeID string, tagged bool, at time.Time) *Error {
	e := &Error{
		Op:     "device " + nodeID,
		Reason: "its key expires at " + at.UTC().Format(time.RFC3339),
		Remedy: "disable its key expiry in the tailnet's admin console",
	}
	switch {
	case tagged && !IsTailscales(t.ControlURL()):
		e.Remedy = fmt.Sprintf("a tagged node gets no new one from Headscale: run headscale nodes expire --identifier %s --disable", nodeID)
	case t.KeyRenewal() != "":
		e.Remedy = t.KeyRenewal()
	}
	return e
}

// KeyRenewal implements Tailnet.
func (s *Static) KeyRenewal() string {
	return "the node then logs in again with the auth key in " + s.names.AuthKey + ", which has to be good until then"
}

// KeyRenewal implements Tailnet: a key is minted for the login.
func (*OAuth) KeyRenewal() string { return "" }

// KeyStaysExpired says that the login server keeps a device expired that has come
// with a good auth key.
func KeyStaysExpired(nodeID string) *Error {
	return &Error{
		Op:     opLogin,
		Reason: "device " + nodeID + " is expired on the control server, which renews it with no auth key, as Headscale does with a tagged node that was expired or logged out",
		Remedy: fmt.Sprintf("run headscale nodes expire --identifier %s --disable, or delete the device, and the node registers again", nodeID),
	}
}
