// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	tailscale "tailscale.com/client/tailscale/v2"
)

// Devices lists the tailnet's devices. Errors are *Error, or wrap ctx's.
func (o *OAuth) Devices(ctx context.Context) ([]Device, error) {
	devices, err := o.api.Devices().List(ctx)
	if err != nil {
		return nil, o.explain(ctx, "listing devices", nil, err)
	}
	out := make([]Device, len(devices))
	for i := range devices {
		out[i] = o.deviceOf(&devices[i])
	}
	return out, nil
}

// Device asks for one device. Errors are ErrNoDevice, *Error, or wrap ctx's.
func (o *OAuth) Device(ctx context.Context, nodeID string) (Device, error) {
	op := "asking for device " + nodeID
	if nodeID == "" {
		return Device{}, &Error{Op: op, Reason: "it has no ID"}
	}
	d, err := o.api.Devices().Get(ctx, nodeID)
	switch {
	case tailscale.IsNotFound(err):
		return Device{}, fmt.Errorf("%s: %w", op, ErrNoDevice)
	case err != nil:
		return Device{}, o.explain(ctx, op, nil, err)
	}
	return o.deviceOf(d), nil
}

// deviceOf takes over what the API says. A key that cannot be read is as good
// as none: the device is not marked as this cluster's.
func (o *OAuth) deviceOf(d *tailscale.Device) Device {
	out := Device{
		ID:        d.NodeID,
		Hostname:  d.Hostname,
		Tags:      d.Tags,
		NodeKey:   d.NodeKey,
		Created:   o.calls.ourTime(d.Created.Time),
		Connected: d.ConnectedToControl,
	}
	out.Name, _, _ = strings.Cut(d.Name, ".")
	_ = out.MachineKey.UnmarshalText([]byte(d.MachineKey))
	_ = out.LockKey.UnmarshalText([]byte(d.TailnetLockKey)) // "nlpub:…" or "tlpub:…"
	if d.LastSeen != nil {
		out.LastSeen = o.calls.ourTime(d.LastSeen.Time)
	}
	return out
}

// Delete removes a device; one that is gone already is not an error. Errors are
// *Error, or wrap ctx's.
func (o *OAuth) Delete(ctx context.Context, nodeID string) error {
	op := "deleting device " + nodeID
	if nodeID == "" {
		return &Error{Op: op, Reason: "it has no ID"} // DELETE /device/ must never be sent
	}
	err := o.api.Devices().Delete(ctx, nodeID)
	if err == nil || tailscale.IsNotFound(err) {
		return nil
	}
	return o.explain(ctx, op, nil, err)
}

// Rename gives a device a name, which then no longer follows its hostname.
// Errors are ErrNameTaken, ErrNoDevice, *Error, or wrap ctx's.
func (o *OAuth) Rename(ctx context.Context, nodeID, name string) error {
	op := fmt.Sprintf("renaming device %s to %s", nodeID, name)
	if nodeID == "" || name == "" {
		return &Error{Op: op, Reason: "its ID or its new name is empty"}
	}
	err := o.api.Devices().SetName(ctx, nodeID, name)
	switch {
	case err == nil:
		return nil
	case tailscale.IsNotFound(err):
		return fmt.Errorf("%s: %w", op, ErrNoDevice)
	case nameTaken(err):
		return fmt.Errorf("%s: %w", op, ErrNameTaken)
	}
	return o.explain(ctx, op, nil, err)
}

// nameTaken reports whether the API's answer says so. How it says so is not
// documented; its admin console's words are "Name … is already taken"
// (tailscale/tailscale issues 1200 and 1259). An answer that is not recognised
// costs no more than an error with another text.
func nameTaken(err error) bool {
	var answer tailscale.APIError
	return errors.As(err, &answer) &&
		(answer.Status == http.StatusConflict || answer.Status == http.StatusBadRequest && taken.MatchString(answer.Message))
}

var taken = regexp.MustCompile(`(?i)taken|already|in use|exists|conflict`)
