// SPDX-License-Identifier: BSD-3-Clause

package kubestatus

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"tailscale-nri/engine"
)

// ConditionType is the type of a pod's condition, and what a pod names in its
// spec.readinessGates that is not to be Ready before.
const ConditionType = "tailscale.com/ready"

// Reasons of Events, and of the condition. One that is up has ReasonJoined there.
const (
	ReasonJoined       = "TailnetJoined"
	ReasonReregistered = "TailnetReregistered"
	ReasonRenamed      = "TailnetRenamed"
	ReasonNameTaken    = "TailnetNameTaken"
	ReasonWaiting      = "TailnetWaiting"
	ReasonLost         = "TailnetLost"
	ReasonStopped      = "TailnetStopped" // of the condition alone
)

// Types of Events.
const normal, warning = "Normal", "Warning"

const endedSandbox = "the pod's sandbox has ended"

// maxText is how much of a text is kept, in bytes: an Event's may have 1024.
const maxText = 1000

// event is news that is to be an Event.
type event struct {
	kind, reason, message string
	first, last           time.Time
	count                 int
}

// condition is the pod's, with the fields that count.
type condition struct {
	Status  string `json:"status"` // True, False
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// eventOf returns the Event of a piece of news. There is none for a state that only
// goes on, and none for an end, for which the kubelet's own are enough.
func eventOf(c engine.Change) (event, bool) {
	e := event{kind: normal, first: c.At, last: c.At, count: 1}
	switch c.News {
	case engine.NewsJoined:
		e.reason, e.message = ReasonJoined, "the pod is in the tailnet: "+identity(c)
	case engine.NewsReregistered:
		e.reason, e.message = ReasonReregistered, "the pod is in the tailnet as another device, or with other addresses: "+identity(c)
	case engine.NewsRenamed:
		e.reason, e.message = ReasonRenamed, "the pod's name in the tailnet is another one now: "+identity(c)
	case engine.NewsNameTaken:
		given, _, _ := strings.Cut(c.DNSName, ".")
		e.kind, e.reason = warning, ReasonNameTaken
		e.message = fmt.Sprintf("the tailnet gave the node another name than it asked for: a device with that name exists: asked for %s, given %s", c.Hostname, given)
	case engine.NewsWaiting:
		e.kind, e.reason, e.message = warning, ReasonWaiting, "not in the tailnet yet, trying again: "+c.Reason
	case engine.NewsLost:
		e.kind, e.reason, e.message = warning, ReasonLost, "not in the tailnet any more: "+c.Reason
	default:
		return event{}, false
	}
	e.message = clip(e.message)
	return e, true
}

// conditionOf returns the condition of a pod of which this is the last news.
func conditionOf(c engine.Change) condition {
	switch {
	case c.IsUp():
		return condition{"True", ReasonJoined, clip(identity(c))}
	case c.News == engine.NewsWaiting:
		return condition{"False", ReasonWaiting, clip(c.Reason)}
	case c.News == engine.NewsLost:
		return condition{"False", ReasonLost, clip(c.Reason)}
	}
	return condition{"False", ReasonStopped, endedSandbox}
}

// identity returns the node's name in the tailnet and its addresses.
func identity(c engine.Change) string {
	var words []string
	if c.DNSName != "" {
		words = append(words, c.DNSName)
	}
	for _, addr := range c.Addresses {
		words = append(words, addr.String())
	}
	return strings.Join(words, " ")
}

// clip shortens a text, and leaves no half of a character.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	s = s[:maxText]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}
