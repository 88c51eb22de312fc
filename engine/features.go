// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"

	"tailscale.com/feature/buildfeatures"
)

// checkFeatures refuses a binary that holds code which would give a peer this
// process's namespaces instead of the pod's. Serve's backends dial 127.0.0.1
// where the daemon runs (ipn/ipnlocal/serve.go), SSH starts its shell there
// (ssh/tailssh), and the PeerAPI listens there. What is not in the binary
// cannot be switched on by a preference, a state file or the control plane.
func checkFeatures() error {
	if buildfeatures.HasServe || buildfeatures.HasSSH || buildfeatures.HasPeerAPIServer || buildfeatures.HasC2N {
		return errors.New("built with Tailscale's Serve, SSH, PeerAPI server or C2N, " +
			"which would act in the node's namespaces instead of the pod's: build with the tags that make tags prints")
	}
	if buildfeatures.HasPortMapper {
		return errors.New("built with Tailscale's port mapper, of which one process cannot have two: " +
			"build with the tags that make tags prints")
	}
	return nil
}
