// SPDX-License-Identifier: BSD-3-Clause

// Package tailnet lets nodes into a tailnet, with auth keys, and out again, by
// deleting their devices.
//
// There are two ways. OAuth asks Tailscale's API, as an OAuth client, for a key
// just before a node needs it, and deletes the device at the end. It proves who
// it is by the client's secret or, with workload identity, by a token that the
// cluster makes for the plugin and that no one has to store. Static hands out
// one key that was made beforehand, for Headscale and for tailnets where
// an OAuth client is too much; it cannot delete.
//
// Every call honours its context, and returns within the time that its
// configuration bounds even if the context has no end. What goes wrong is an
// *Error where there is more to say than that the context ended: why, what to
// do about it, and whether waiting helps.
//
// A device that was let in with an OAuth client can always be told from all others. Its
// tailnet lock key is made from its machine key and the client's secret or, if there is
// none, the client's ID (OAuth.LockKey). Tailscale's API shows the public halves of both
// keys.
//
// Errors call settings what the program's users call them: see Names.
//
// The package starts no goroutine but in OAuth.Prepare, which joins its own, and writes
// no auth key to disk: each is returned and forgotten. It does not log a node in (the
// engine's control client does), does not know which device is which pod's, and does not
// retry beyond its bounds: the caller tries again later.
package tailnet

import (
	"context"
	"errors"
	"strings"
	"time"

	"tailscale.com/types/key"
)

// Tailnet lets nodes into a tailnet. Its methods may be called concurrently. Where the
// tailnet has an API, the value is a DeviceAPI as well.
type Tailnet interface {
	// ControlURL is the login server; "" means Tailscale's own.
	ControlURL() string

	// NewAuthKey returns a key with which n can log in now. It is a secret,
	// may work once only, and is not to be kept.
	NewAuthKey(ctx context.Context, n Node) (string, error)

	// RequestsTags reports whether a node asks the login server for its tags by
	// itself. Where it does not, its auth key carries them.
	RequestsTags() bool

	// WrongTags is the error of a node that came in without some of the tags
	// that its pod asks for: an *Error.
	WrongTags(asked, granted []string) error

	// Refusal is what the login server's refusal means of a node that came in
	// this way: an *Error if it is a known one. It wraps ErrTagsRefused where
	// the node may have the tags by its key, if it requests none.
	Refusal(message string) error

	// KeyRenewal says what a node needs to log in again when its node key has
	// expired; "" means that no action is needed.
	KeyRenewal() string
}

// DeviceAPI has the calls of a tailnet with an API: list its devices, rename and
// delete them, and tell its own from all others. From a tailnet without one a node goes
// by logging out. Its methods may be called concurrently.
type DeviceAPI interface {
	// Devices lists all devices of the tailnet, also those that others made.
	Devices(ctx context.Context) ([]Device, error)

	// Device returns one device as it is now, ErrNoDevice if it is gone.
	Device(ctx context.Context, nodeID string) (Device, error)

	// Delete removes the device with a tailcfg.StableNodeID. A device that is
	// already gone is not an error.
	Delete(ctx context.Context, nodeID string) error

	// Rename gives a device a name, one DNS label. ErrNameTaken means that
	// another device has it, ErrNoDevice that this one is gone.
	Rename(ctx context.Context, nodeID, name string) error

	// LockKey returns the tailnet lock key that a node with this machine key is to have,
	// so that its device is known to be the cluster's. If devices are not marked, ok is
	// false, and the node makes a key of its own. chosenName says whether a user chose
	// the node's hostname.
	LockKey(machine key.MachinePublic, chosenName bool) (lock key.NLPrivate, ok bool)

	// Ours reports whether a device is of a node that got its lock key from
	// LockKey, and with which chosenName.
	Ours(d Device) (ours, chosenName bool)
}

// Device is a device as the tailnet shows it. Times are by this host's clock,
// however wrong that is.
type Device struct {
	ID         string // tailcfg.StableNodeID
	Name       string // first label of its MagicDNS name
	Hostname   string // as the node asked for it
	Tags       []string
	NodeKey    string            // as key.NodePublic.String writes it
	MachineKey key.MachinePublic // zero if the tailnet does not say
	LockKey    key.NLPublic      // of tailnet lock; zero if the tailnet does not say
	Created    time.Time         // zero if the tailnet does not say
	LastSeen   time.Time         // zero if it is connected, or has never been seen
	Connected  bool              // to the control plane
}

// Node describes a node to the tailnet before it is let in.
type Node struct {
	Hostname    string
	Tags        []string // "tag:…"; none means the defaults of the way taken
	Ephemeral   bool     // the tailnet deletes the device when it has been offline for a while
	Description string   // for the list of keys in the admin console; "" makes it the hostname
}

// ErrTagsRefused says that the login server lets no node request tags with an
// auth key, not even the key's own.
var ErrTagsRefused = errors.New("the login server refuses requested tags")

// ErrNoDevice says that the tailnet has no such device.
var ErrNoDevice = errors.New("the tailnet has no such device")

// ErrNameTaken says that another device has the name.
var ErrNameTaken = errors.New("another device has that name")

// Error is a refusal by a tailnet, or the lack of an answer.
type Error struct {
	Op     string // "minting auth key for web-1", "deleting device n123"
	Reason string // why; the same text for the same cause, so that it can be logged on change
	Remedy string // what can be done about it; "" if only waiting helps

	// Temporary is true if it passes by itself, as an outage or a rate limit
	// does; false if an administrator has to change something first, in the tailnet or
	// in the configuration.
	Temporary bool

	// RetryAfter is how long the tailnet asked not to be called; 0 if it did
	// not say.
	RetryAfter time.Duration

	Err error // the cause, with details that differ from time to time; may be nil
}

// Error is one line: operation, reason, remedy.
func (e *Error) Error() string {
	parts := []string{e.Op, e.Reason}
	if e.Remedy != "" {
		parts = append(parts, e.Remedy)
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
