// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"context"
	"errors"
	"fmt"
)

// StaticConfig is a key that an administrator made beforehand.
type StaticConfig struct {
	AuthKey    string `json:"-"` // required
	ControlURL string // the login server, as the caller has checked it; "" means Tailscale's own
	Names      Names  // of these settings, for errors
}

// String keeps the key out of logs.
func (c StaticConfig) String() string {
	return fmt.Sprintf("{AuthKey:(secret) ControlURL:%s}", c.ControlURL)
}

// Static lets every node in with one and the same key. What that costs, next to
// OAuth:
//
//   - The key is a standing secret that can let anyone in, where a minted key
//     works once and for minutes. It has to be reusable, or the second node is
//     refused; and it expires (on Tailscale after 90 days at most), from when on
//     no new node comes up.
//   - Tags are those of the key. A pod that asks for another one is refused at login
//     ("requested tags … are invalid or not permitted"). Headscale refuses every
//     request for tags, so there the pod is let in with the key's tags, which the
//     engine then compares with the requested ones.
//   - No device can be deleted: there is no DeviceAPI. A node that ends is logged
//     out: on Headscale and Tailscale an ephemeral node vanishes by that, any other
//     stays in the list, expired, until it is deleted by hand. A node that ends while
//     the control plane is away stays too. So use an ephemeral key where pods come and
//     go.
type Static struct {
	authKey    string
	controlURL string
	names      Names
}

var _ Tailnet = (*Static)(nil)

// NewStatic does not ask the tailnet. Its error says what cfg lacks.
func NewStatic(cfg StaticConfig) (*Static, error) {
	if cfg.AuthKey == "" {
		return nil, errors.New("tailnet.StaticConfig.AuthKey is not set")
	}
	return &Static{authKey: cfg.AuthKey, controlURL: cfg.ControlURL, names: cfg.Names.orFields()}, nil
}

// String keeps the key out of logs.
func (*Static) String() string { return "tailnet with a static auth key" }

// ControlURL implements Tailnet.
func (s *Static) ControlURL() string { return s.controlURL }

// NewAuthKey returns the key, whatever the node, but for one that is to be
// ephemeral: the key alone decides that. A node could ask for it at its login too
// (controlclient.LoginEphemeral), and would then be logged out whenever its backend
// ends (ipn/ipnlocal/local.go, Shutdown). Its error is ctx's, or an *Error.
func (s *Static) NewAuthKey(ctx context.Context, n Node) (string, error) {
	if n.Ephemeral {
		return "", &Error{
			Op:     "finding an auth key for " + n.Hostname,
			Reason: "a static auth key makes all nodes ephemeral, or none",
			Remedy: "put an ephemeral key into " + s.names.AuthKey + " and take " + s.names.NodeEphemeral + " out, or use an OAuth client",
		}
	}
	return s.authKey, ctx.Err()
}
