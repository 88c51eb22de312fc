// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go4.org/mem"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logid"

	"tailscale-nri/engine/internal/podnet"
)

// recordVersion is the version of pod.json. A file of another version is set
// aside, not read: see the package's documentation for when it goes up.
const recordVersion = 1

// RecordFile is the record's name in the pod's directory.
const RecordFile = "pod.json"

// Record is what a node needs to be found again: its pod, its link and what
// it is called in the tailnet. It is written before the step that it
// describes is taken.
type Record struct {
	Version int              `json:"version"`
	Pod     Pod              `json:"pod"`
	NetNS   podnet.Namespace `json:"netns"`
	Link    string           `json:"link"` // host end

	// LogID names the node to Tailscale's control plane. No log is ever
	// sent anywhere.
	LogID logid.PrivateID `json:"logID"`
	// Port is the node's UDP port, 0 until it has one. A peer with a
	// session finds the node there after a restart.
	Port uint16 `json:"port,omitempty"`
	// DiscoKey is the node's private disco key. A peer that sees a new one
	// drops its session, at the very moment at which the node repeats the handshake.
	DiscoKey []byte `json:"discoKey,omitempty"`
	// NodeID is the device in the tailnet, "" until it is one.
	NodeID tailcfg.StableNodeID `json:"nodeID,omitempty"`
	// Registering is set before the first attempt to log in, and cleared once
	// NodeID is known: in between it may be in the tailnet, and the answer be
	// lost.
	Registering bool `json:"registering,omitempty"`
	// TagsDue is set with Registering, if the pod asks for tags, and cleared
	// once the control plane has said that the node has them.
	TagsDue bool `json:"tagsDue,omitempty"`
	// Former are devices that the node was before it had to register again.
	// They are deleted with it.
	Former []tailcfg.StableNodeID `json:"former,omitempty"`
	// Elsewhere are devices that another host runs, of whose state this was a
	// copy. They are never deleted.
	Elsewhere []tailcfg.StableNodeID `json:"elsewhere,omitempty"`
	// LoginServer is the control server that NodeID and Former are of: what their IDs
	// say to another one is not known. It is "" for Tailscale's, and in a record of an
	// earlier version.
	LoginServer string `json:"loginServer,omitempty"`
	// HostBoot is the host, in one of its boots, that last served the node: see
	// podnet.HostBoot.
	HostBoot string `json:"machine,omitempty"`
	// Generation is the workload's identity that the keys on disk are of, 0 if they
	// are the pod's own. Where it is not 0, NodeID is that identity's device.
	Generation uint64 `json:"generation,omitempty"`
	// Rekeyed says that the control plane has not let in the node key on disk yet.
	Rekeyed bool `json:"rekeyed,omitempty"`
	// Recent are the peers with a WireGuard session, and some whose session has
	// ended since the last write: the handshake with them is repeated first after a
	// restart.
	Recent []tailcfg.StableNodeID `json:"recent,omitempty"`
	// ResolvConf is the pod's original resolv.conf, nil until it is known or if the pod
	// did not ask for DNS; TailnetSearch are the tailnet's search domains.
	ResolvConf    *ResolvConf `json:"resolvConf,omitempty"`
	TailnetSearch []string    `json:"tailnetSearch,omitempty"`
	// Retried is set if the pod had another sandbox before this one.
	Retried bool `json:"retried,omitempty"`
	// Forgotten is set once the pod is gone for good: all that is left to
	// do is to leave the tailnet.
	Forgotten bool `json:"forgotten,omitempty"`
}

// NewSecrets gives a new record what a node keeps for life, and returns an
// error only if the host has no randomness.
func (r *Record) NewSecrets() (err error) {
	if !r.LogID.IsZero() {
		return nil
	}
	if r.LogID, err = logid.NewPrivateID(); err != nil {
		return fmt.Errorf("making a log ID: %w", err)
	}
	r.DiscoKey = make([]byte, discoKeyLen)
	if _, err = rand.Read(r.DiscoKey); err != nil {
		return fmt.Errorf("making a disco key: %w", err)
	}
	return nil
}

// IsKnown reports whether the control plane knows the node's key: it needs no auth key.
func (r *Record) IsKnown() bool { return r.NodeID != "" && !r.Rekeyed }

const discoKeyLen = 32

// DiscoPrivate returns the zero key, which lets the engine make one, where the
// record has none.
func (r *Record) DiscoPrivate() key.DiscoPrivate {
	if len(r.DiscoKey) != discoKeyLen {
		return key.DiscoPrivate{}
	}
	return key.DiscoPrivateFromRaw32(mem.B(r.DiscoKey))
}

// ValidUID reports whether a pod's UID can name its directory. Kubernetes' UIDs are
// UUIDs; those of static pods are hashes. A regular expression that counts to 128 would
// take 2 ms of each start of the program.
func ValidUID(uid string) bool {
	for i := range len(uid) {
		switch c := uid[i]; {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return 0 < len(uid) && len(uid) <= 128
}

// Save writes the record to a pod's directory, which it creates if need be, whole or not at
// all, and returns its size in bytes. It does not wait for the disk: it is called in
// hooks, and a slow disk would hold up every pod of the host.
func Save(dir string, r *Record) (written int, err error) {
	r.Version = recordVersion
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return 0, fmt.Errorf("encoding %s: %w", RecordFile, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("creating the pod's state directory: %w", Remedy(err))
	}
	if err := ReplaceFile(filepath.Join(dir, RecordFile), data); err != nil {
		return 0, fmt.Errorf("writing the pod's record: %w", Remedy(err))
	}
	return len(data), nil
}

// errOtherPod is the error of a directory that was copied or renamed: its key is
// another node's.
var errOtherPod = errors.New("is of another pod")

// Load reads the record of a pod's directory.
func Load(dir string) (Record, error) {
	path := filepath.Join(dir, RecordFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return Record{}, fmt.Errorf("reading the pod's record: %w", err)
	}
	r, err := parseRecord(data, filepath.Base(dir))
	if err != nil {
		return Record{}, fmt.Errorf("%s %w", path, err)
	}
	return r, nil
}

// parseRecord reads the record of the pod with the UID.
func parseRecord(data []byte, uid string) (Record, error) {
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	switch {
	case r.Version != recordVersion:
		return Record{}, fmt.Errorf("has version %d, and this tailscale-nri reads version %d: install the tailscale-nri that wrote it, or delete the pod", r.Version, recordVersion)
	case r.Pod.UID != uid:
		return Record{}, fmt.Errorf("%w: %q", errOtherPod, r.Pod.UID)
	case r.Pod.SandboxID == "" || !podnet.IsHostLink(r.Link, r.Pod.SandboxID):
		// A link of another name may be anyone's, and would be deleted.
		return Record{}, fmt.Errorf("%w: sandbox %q has no link %q", ErrDamaged, r.Pod.SandboxID, r.Link)
	}
	return r, nil
}
