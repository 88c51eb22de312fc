// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"tailscale.com/util/dnsname"
)

// deviceAnswer is a device as the API shows it: the fields of which something
// is known here, in production's names and forms.
type deviceAnswer struct {
	ID         string     `json:"id"` // the legacy, numeric one
	NodeID     string     `json:"nodeId"`
	NodeKey    string     `json:"nodeKey"`                  // "nodekey:…"
	MachineKey string     `json:"machineKey"`               // "mkey:…"
	LockKey    string     `json:"tailnetLockKey,omitempty"` // "nlpub:…", whether or not the tailnet is locked
	Name       string     `json:"name"`                     // MagicDNS name with its domain
	Hostname   string     `json:"hostname"`
	Addresses  []string   `json:"addresses"`
	Tags       []string   `json:"tags,omitempty"`
	Created    time.Time  `json:"created"`
	LastSeen   *time.Time `json:"lastSeen,omitempty"` // left out while it is connected
	Online     *bool      `json:"connectedToControl,omitempty"`
	Ephemeral  bool       `json:"isEphemeral"`
}

func (s *Server) listDevices(w http.ResponseWriter, _ *http.Request) {
	devices := []deviceAnswer{}
	for _, d := range s.Devices() {
		devices = append(devices, s.deviceAnswer(d))
	}
	writeJSON(w, http.StatusOK, map[string]any{"devices": devices})
}

func (s *Server) getDevice(w http.ResponseWriter, r *http.Request) {
	var d Device
	if !s.nodes.withDevice(r.PathValue("id"), func(n *node) { d = n.device() }) {
		noDevice(w, r)
		return
	}
	writeJSON(w, http.StatusOK, s.deviceAnswer(d))
}

func (s *Server) deleteDevice(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if !s.nodes.remove(id) {
		noDevice(w, r)
		return
	}
	s.log.Info("device deleted", "id", id)
	s.faults.counted(func(c *Counters) { c.DevicesDeleted++ })
}

// nameDevice gives a device a name, written with or without its domain; "" has
// it follow its hostname again.
//
// What production answers if the name is taken is not documented, neither
// status nor text: the text here is that of its admin console, which is quoted
// in tailscale/tailscale issues 1200 and 1259, and 400 is a guess.
func (s *Server) nameDevice(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Name string `json:"name"`
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, bodyLimit)).Decode(&req); err != nil {
		apiError(w, http.StatusBadRequest, "invalid request body: "+err.Error())
		return
	}
	label := strings.TrimSuffix(req.Name, "."+s.cfg.Domain)
	if label != "" && dnsname.ValidLabel(label) != nil {
		apiError(w, http.StatusBadRequest, fmt.Sprintf("invalid name %q", req.Name))
		return
	}
	taken := false
	if !s.nodes.withDevice(r.PathValue("id"), func(n *node) { taken = !s.nodes.nameLocked(n, label) }) {
		noDevice(w, r)
		return
	}
	if taken {
		apiError(w, http.StatusBadRequest, fmt.Sprintf("Name %q is already taken", label))
		return
	}
	s.log.Info("device renamed", "id", r.PathValue("id"), "name", label)
	s.faults.counted(func(c *Counters) { c.DevicesRenamed++ })
}

func noDevice(w http.ResponseWriter, r *http.Request) {
	apiError(w, http.StatusNotFound, "no device with ID "+r.PathValue("id"))
}

// nameLocked names n and tells everyone, or reports that another device has the
// name.
func (t *table) nameLocked(n *node, label string) bool {
	if t.takenLocked(label, n) {
		return false
	}
	n.named = label != ""
	n.Name = t.fqdn(label)
	n.InitDisplayNames(t.domain)
	t.renameLocked(n)
	n.whole++
	t.changedLocked(n)
	return true
}

func (d Device) answer() deviceAnswer {
	out := deviceAnswer{
		ID: d.legacyID, NodeID: d.ID,
		NodeKey: d.NodeKey.String(), MachineKey: d.MachineKey.String(), LockKey: d.lockKeyText(),
		Name: d.Name, Hostname: d.Hostname, Tags: d.Tags,
		Created: apiTime(d.Created), Online: &d.Online, Ephemeral: d.Ephemeral,
	}
	if !d.Online && !d.LastSeen.IsZero() {
		out.LastSeen = new(apiTime(d.LastSeen))
	}
	for _, ip := range d.Addresses {
		out.Addresses = append(out.Addresses, ip.String())
	}
	return out
}

func (d Device) lockKeyText() string {
	if d.LockKey.IsZero() {
		return ""
	}
	text, _ := d.LockKey.MarshalText() // it has no error
	return string(text)
}

// apiTime is a time in the API's form: UTC, whole seconds.
func apiTime(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
