// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"errors"
	"regexp"
	"strings"
)

const opLogin = "logging in"

// refusal is the kind of a login server's refusal.
type refusal int

const (
	refusedUnknown refusal = iota
	refusedKey             // the auth key is spent, expired, revoked or none
	refusedTags            // the auth key does not allow the tags
)

// whyRefused reads the login server's text. Tailscale's own says "invalid key:
// API key does not exist", "invalid key: API key k… not valid" (spent or
// expired) or "invalid key: unable to validate API key"; Headscale says
// "authkey already used", "authkey expired", "invalid authkey" or "invalid pre
// auth key" (0.29.0). Both say that requested tags are invalid or not permitted.
// Headscale says it of all tags, from 0.28 on: the key alone gives them.
func whyRefused(message string) refusal {
	text := strings.ToLower(message)
	switch {
	case strings.Contains(text, "requested tags"):
		return refusedTags
	case strings.Contains(text, "invalid key"), strings.Contains(text, "authkey"), strings.Contains(text, "auth key"):
		return refusedKey
	}
	return refusedUnknown
}

// refused returns the error for an unrecognised refusal. text is the message without
// the key's ID: the next attempt may have another key.
func refused(message string) (e *Error, text string) {
	text = keyID.ReplaceAllString(message, "API key not valid")
	return &Error{Op: opLogin, Reason: "the control plane refused the node: " + text, Err: errors.New(message)}, text
}

var keyID = regexp.MustCompile(`API key \S+ not valid`)

// Refusal says what to do about a key that is spent or expired, or lacks a tag.
func (s *Static) Refusal(message string) error {
	e, text := refused(message)
	switch whyRefused(message) {
	case refusedKey:
		e.Reason = "the control plane refused the auth key in " + s.names.AuthKey + ": it is spent, expired, revoked or mistyped (" + text + ")"
		e.Remedy = "make a reusable auth key and put it into " + s.names.AuthKey + "; pods that are in the tailnet already do not need it"
	case refusedTags:
		e.Reason = "the auth key in " + s.names.AuthKey + " does not allow the pod's tags (" + text + ")"
		e.Remedy = "take the tag out of " + s.names.NodeTags + " or of " + s.names.Tags + ", or set " + s.names.AuthKey + " to a key that has it"
		if !IsTailscales(s.controlURL) {
			e.Err = errors.Join(e.Err, ErrTagsRefused)
		}
	}
	return e
}

// Refusal says that the next attempt may succeed where the key was at fault:
// each has a new one.
func (o *OAuth) Refusal(message string) error {
	e, text := refused(message)
	switch whyRefused(message) {
	case refusedKey:
		e.Temporary = true
		e.Reason = "the control plane refused the auth key that was minted for the node (" + text + ")"
		e.Remedy = "if that goes on, check that " + o.names.ControlURL + " and the API are of one tailnet, and that " + o.names.AuthKeyTTL + " is longer than a login takes"
	case refusedTags:
		e.Reason = "the control plane does not give the node its tags (" + text + ")"
		e.Remedy = "define each under tagOwners in the tailnet's policy file"
	}
	return e
}
