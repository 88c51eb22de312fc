// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"go4.org/mem"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logid"

	"tailscale-nri/engine/internal/podnet"
)

// recordVersion is the version of pod.json. A file of another version is set
// aside, not read.
const recordVersion = 1

const (
	recordFile = "pod.json"
	stateFile  = "tailscaled.state"
)

// record is what a node needs to be found again: its pod, its link and what
// it is called in the tailnet. It is written before the step that it
// describes is taken.
type record struct {
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
	// drops its session, at the very moment at which we greet it.
	DiscoKey []byte `json:"discoKey,omitempty"`
	// NodeID is the device in the tailnet, "" until it is one.
	NodeID tailcfg.StableNodeID `json:"nodeID,omitempty"`
	// Registering is set before the node first knocks, and cleared once
	// NodeID is known: in between it may be in the tailnet without our having
	// heard of it.
	Registering bool `json:"registering,omitempty"`
	// TagsDue is set with Registering, if the pod asks for tags, and cleared
	// once the control plane has said that the node has them.
	TagsDue bool `json:"tagsDue,omitempty"`
	// Former are devices that the node was before it had to register again.
	// They are deleted with it.
	Former []tailcfg.StableNodeID `json:"former,omitempty"`
	// Elsewhere are devices that another machine runs, of whose state this was a
	// copy. They are never deleted.
	Elsewhere []tailcfg.StableNodeID `json:"elsewhere,omitempty"`
	// LoginServer is the control server that NodeID and Former are of: what their IDs
	// say to another one is not known. It is "" for Tailscale's, and in a record of an
	// earlier version.
	LoginServer string `json:"loginServer,omitempty"`
	// Machine is the machine, in one of its boots, that last served the node: see
	// podnet.Machine.
	Machine string `json:"machine,omitempty"`
	// Generation is the workload's identity that the keys on disk are of, 0 if they
	// are the pod's own. Where it is not 0, NodeID is that identity's device.
	Generation uint64 `json:"generation,omitempty"`
	// Rekeyed says that the control plane has not let in the node key on disk yet.
	Rekeyed bool `json:"rekeyed,omitempty"`
	// Recent are the peers with a WireGuard session: they are greeted
	// first after a restart.
	Recent []tailcfg.StableNodeID `json:"recent,omitempty"`
	// ResolvConf is what the pod's resolv.conf says without us, nil until it is known
	// or where nobody asked for DNS; TailnetSearch are the tailnet's search domains.
	ResolvConf    *resolvConf `json:"resolvConf,omitempty"`
	TailnetSearch []string    `json:"tailnetSearch,omitempty"`
	// Retried is set if the pod had another sandbox before this one.
	Retried bool `json:"retried,omitempty"`
	// Forgotten is set once the pod is gone for good: all that is left to
	// do is to leave the tailnet.
	Forgotten bool `json:"forgotten,omitempty"`
}

// newSecrets gives a new record what a node keeps for life, and returns an
// error only if the machine has no randomness.
func (r *record) newSecrets() (err error) {
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

// isKnown reports whether the control plane knows the node's key: it needs no auth key.
func (r *record) isKnown() bool { return r.NodeID != "" && !r.Rekeyed }

const discoKeyLen = 32

// discoKey returns the zero key, which lets the engine make one, where the
// record has none.
func (r *record) discoKey() key.DiscoPrivate {
	if len(r.DiscoKey) != discoKeyLen {
		return key.DiscoPrivate{}
	}
	return key.DiscoPrivateFromRaw32(mem.B(r.DiscoKey))
}

// validUID is what may name a directory. Kubernetes' UIDs are UUIDs; those of
// static pods are hashes.
var validUID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// save writes the record to dir, which it creates if need be, whole or not at
// all. It does not wait for the disk: it is called in hooks, and a slow disk
// would hold up every pod of the machine.
func (r *record) save(dir string) error {
	r.Version = recordVersion
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("encoding %s: %w", recordFile, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("creating the pod's state directory: %w", remedy(err))
	}
	if err := replaceFile(filepath.Join(dir, recordFile), data); err != nil {
		return fmt.Errorf("writing the pod's record: %w", remedy(err))
	}
	return nil
}

// keep writes the record, now or as soon as it can be written. n.op is held.
func (n *node) keep() {
	was := n.disk.unsaved
	if n.trySave(); was == "" && n.disk.unsaved != "" {
		n.e.spawn(n.keepTrying)
	}
}

// trySave writes the record, and logs a failure once. n.op is held.
func (n *node) trySave() {
	err := n.save()
	switch {
	case err == nil:
		if n.disk.unsaved != "" {
			n.log().Info("the node's record is up to date on disk again")
		}
		n.disk.unsaved = ""
	case err.Error() != n.disk.unsaved:
		n.disk.unsaved = err.Error()
		n.log().Error("the node's record on disk is not up to date, trying again; the node goes on", "err", err)
	}
}

// keepTrying writes the record once it can be written.
func (n *node) keepTrying() {
	again := func() bool {
		n.op.Lock()
		defer n.op.Unlock()
		if !n.disk.retired && n.disk.unsaved != "" {
			n.trySave()
		}
		return !n.disk.retired && n.disk.unsaved != ""
	}
	for pause := newBackoff(); sleep(n.e.ctx, pause.next()) && again(); {
	}
}

// replaceFile writes a file, 0600, under another name first. What a kill leaves
// under that name is overwritten by the next.
func replaceFile(path string, data []byte) error {
	next := path + ".new"
	err := os.WriteFile(next, data, 0o600)
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		os.Remove(next) // a full disk needs the room
	}
	return err
}

// errOtherPod is of a directory that was copied or renamed: its key is
// another node's.
var errOtherPod = errors.New("is of another pod")

// loadRecord reads the record of a pod's directory.
func loadRecord(dir string) (record, error) {
	path := filepath.Join(dir, recordFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return record{}, fmt.Errorf("reading the pod's record: %w", err)
	}
	r, err := parseRecord(data, filepath.Base(dir))
	if err != nil {
		return record{}, fmt.Errorf("%s %w", path, err)
	}
	return r, nil
}

// parseRecord reads the record of the pod with the UID.
func parseRecord(data []byte, uid string) (record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, fmt.Errorf("%w: %w", errDamaged, err)
	}
	switch {
	case r.Version != recordVersion:
		return record{}, fmt.Errorf("has version %d, and this tailscale-nri reads version %d: install the tailscale-nri that wrote it, or delete the pod", r.Version, recordVersion)
	case r.Pod.UID != uid:
		return record{}, fmt.Errorf("%w: %q", errOtherPod, r.Pod.UID)
	case r.Pod.SandboxID == "" || !podnet.IsHostLink(r.Link, r.Pod.SandboxID):
		// A link of another name may be anyone's, and we would delete it.
		return record{}, fmt.Errorf("%w: sandbox %q has no link %q", errDamaged, r.Pod.SandboxID, r.Link)
	}
	return r, nil
}

// loadRecords returns the records below stateDir by directory. One that cannot
// be read, or saved what can be of it, is reported by bad and keeps no other
// pod from its node. A directory without a record and without keys is one that
// was being made or removed: there was no device yet, or none any more.
func loadRecords(stateDir string, bad func(dir string, err error)) (map[string]record, error) {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the state directory: %w", err)
	}
	records := map[string]record{}
	for _, entry := range entries {
		dir := filepath.Join(stateDir, entry.Name())
		if !entry.IsDir() || !validUID.MatchString(entry.Name()) || isSetAside(dir) {
			continue
		}
		if err := removeHalfWritten(dir); err != nil {
			bad(dir, fmt.Errorf("removing what is half written: %w", remedy(err)))
		}
		r, err := loadRecord(dir)
		if k, keysErr := storedKeys(filepath.Join(dir, stateFile)); errors.Is(err, fs.ErrNotExist) && keysErr == nil && k.node.IsZero() {
			if err := os.RemoveAll(dir); err != nil {
				bad(dir, fmt.Errorf("removing the rest of a pod's state: %w", remedy(err)))
			}
			continue
		}
		if err != nil {
			var rescued bool
			r, rescued, err = rescue(dir, err)
			bad(dir, err)
			if !rescued {
				continue
			}
		}
		records[dir] = r
	}
	return records, nil
}

// halfWritten is what the next version of a file is called until it is whole:
// by us, by tailscale.com's atomicfile, and by checkWritable.
var halfWritten = regexp.MustCompile(`\.new$|\.tmp[0-9]+$|^\.writable$`)

// removeHalfWritten removes what a kill has left in a pod's directory: there may
// be keys in it, and it would stay for as long as the pod.
func removeHalfWritten(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if halfWritten.MatchString(entry.Name()) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, entry.Name())))
		}
	}
	return err
}

// unknownSandbox is the sandbox of a pod of which nobody knows it.
const unknownSandbox = "unknown"

// rescue saves what can be saved of a pod whose record cannot be used, for the
// reason given, and returns an error that says what became of it.
//
// If the node's key is whole, the record alone is set aside. The one in its
// place knows no more than that there may be a device with this key: when the
// pod is attached, it is that device again; when it is gone, the device is
// found by the key. Otherwise all is set aside.
func rescue(dir string, cause error) (r record, ok bool, err error) {
	k, err := storedKeys(filepath.Join(dir, stateFile))
	if err != nil || k.node.IsZero() || errors.Is(cause, errOtherPod) {
		if err != nil {
			cause = fmt.Errorf("%w; %w", cause, err)
		}
		return record{}, false, fmt.Errorf("%w; %w", cause, abandon(dir))
	}
	// Retried: the pod may have a sandbox, or be about to get one.
	r = record{
		Pod:  Pod{UID: filepath.Base(dir), SandboxID: unknownSandbox},
		Link: podnet.HostLink(unknownSandbox), Registering: true, Retried: true,
	}
	data, _ := os.ReadFile(filepath.Join(dir, recordFile))
	if profile := profileIn.FindSubmatch(data); profile != nil {
		r.Pod.Features.Profile = string(profile[1]) // or its device would be looked for in another tailnet
	}
	if err := r.newSecrets(); err != nil {
		return record{}, false, fmt.Errorf("%w; %w", cause, err)
	}
	aside, err := setAside(filepath.Join(dir, recordFile))
	switch {
	case err == nil:
		cause = fmt.Errorf("%w; it was set aside as %s", cause, aside)
	case !errors.Is(err, fs.ErrNotExist):
		cause = fmt.Errorf("%w; setting it aside: %w", cause, remedy(err))
	}
	// If it cannot be written, keys without a record are what the next process
	// finds, and it does the same.
	if err := r.save(dir); err != nil {
		cause = fmt.Errorf("%w; %w", cause, err)
	}
	return r, true, fmt.Errorf("%w; the node's key is whole: the pod gets its device back when it is attached", cause)
}

// These find the device and the profile in a record of which nothing else may be
// whole.
var (
	deviceIn  = regexp.MustCompile(`"nodeID":\s*"([A-Za-z0-9]+)"`)
	profileIn = regexp.MustCompile(`"profile":\s*"([a-z0-9-]+)"`)
)

// abandon sets a pod's directory aside, and returns an error that says so.
func abandon(dir string) error {
	device := "its device, if it had one, is to be deleted by hand"
	data, _ := os.ReadFile(filepath.Join(dir, recordFile))
	if id := deviceIn.FindSubmatch(data); id != nil {
		device = fmt.Sprintf("device %s is to be deleted by hand, unless another pod has it", id[1])
	}
	aside, err := setAside(dir)
	if err != nil {
		return fmt.Errorf("setting the pod's state aside: %w", remedy(err))
	}
	return fmt.Errorf("the pod's state was set aside as %s; %s", aside, device)
}

// checkRoom refuses a new node whose directory is there: it holds the keys of a
// node of the same pod, and could not be used.
func (n *node) checkRoom() error {
	if !n.disk.fresh {
		return nil
	}
	_, err := os.Lstat(n.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("looking for the pod's state: %w", err)
	}
	return fmt.Errorf("%s is of this pod and could not be used when this process started, see its log: repair it or move it away, and restart tailscale-nri", n.dir)
}
