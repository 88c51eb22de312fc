// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"tailscale-nri/engine/internal/podnet"
)

// LoadAll returns the records below stateDir by directory. One that cannot
// be read, or saved what can be of it, is reported by bad and keeps no other
// pod from its node. A directory without a record and without keys is one that
// was being made or removed: there was no device yet, or none any more.
func LoadAll(stateDir string, bad func(dir string, err error)) (map[string]Record, error) {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the state directory: %w", err)
	}
	records := map[string]Record{}
	for _, entry := range entries {
		dir := filepath.Join(stateDir, entry.Name())
		if !entry.IsDir() || !ValidUID(entry.Name()) || isSetAside(dir) {
			continue
		}
		if err := removeHalfWritten(dir); err != nil {
			bad(dir, fmt.Errorf("removing what is half written: %w", Remedy(err)))
		}
		r, err := Load(dir)
		if k, keysErr := StoredKeys(filepath.Join(dir, StateFile)); errors.Is(err, fs.ErrNotExist) && keysErr == nil && k.Node.IsZero() {
			if err := os.RemoveAll(dir); err != nil {
				bad(dir, fmt.Errorf("removing the rest of a pod's state: %w", Remedy(err)))
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

// halfWritten matches the names under which the next version of a file is written:
// by this package, by tailscale.com's atomicfile, and by CheckWritable.
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

// UnknownSandbox is the sandbox in the record of a pod whose sandbox is not known.
const UnknownSandbox = "unknown"

// rescue saves what can be saved of a pod whose record cannot be used, for the
// reason given, and returns an error that says what became of it.
//
// If the node's key is whole, the record alone is set aside. The new record says only
// that there may be a device with this key. When the pod is attached, it is that device
// again. When the pod is gone, the device is found by the key. Otherwise all is set
// aside.
func rescue(dir string, cause error) (r Record, ok bool, err error) {
	k, err := StoredKeys(filepath.Join(dir, StateFile))
	if err != nil || k.Node.IsZero() || errors.Is(cause, errOtherPod) {
		if err != nil {
			cause = fmt.Errorf("%w; %w", cause, err)
		}
		return Record{}, false, fmt.Errorf("%w; %w", cause, abandon(dir))
	}
	// Retried: the pod may have a sandbox, or be about to get one.
	r = Record{
		Pod:  Pod{UID: filepath.Base(dir), SandboxID: UnknownSandbox},
		Link: podnet.HostLink(UnknownSandbox), Registering: true, Retried: true,
	}
	data, _ := os.ReadFile(filepath.Join(dir, RecordFile))
	if profile := profileIn.FindSubmatch(data); profile != nil {
		r.Pod.Features.Profile = string(profile[1]) // or its device would be looked for in another tailnet
	}
	if err := r.NewSecrets(); err != nil {
		return Record{}, false, fmt.Errorf("%w; %w", cause, err)
	}
	aside, err := SetAside(filepath.Join(dir, RecordFile))
	switch {
	case err == nil:
		cause = fmt.Errorf("%w; it was set aside as %s", cause, aside)
	case !errors.Is(err, fs.ErrNotExist):
		cause = fmt.Errorf("%w; setting it aside: %w", cause, Remedy(err))
	}
	// If it cannot be written, keys without a record are what the next process
	// finds, and it does the same.
	if _, err := Save(dir, &r); err != nil {
		cause = fmt.Errorf("%w; %w", cause, err)
	}
	return r, true, fmt.Errorf("%w; the node's key is whole: the pod gets its device back when it is attached", cause)
}

// These find the device and the profile in a record of which the rest may be
// damaged.
var (
	deviceIn  = regexp.MustCompile(`"nodeID":\s*"([A-Za-z0-9]+)"`)
	profileIn = regexp.MustCompile(`"profile":\s*"([a-z0-9-]+)"`)
)

// abandon sets a pod's directory aside, and returns an error that says so.
func abandon(dir string) error {
	device := "its device, if it had one, is to be deleted by hand"
	data, _ := os.ReadFile(filepath.Join(dir, RecordFile))
	if id := deviceIn.FindSubmatch(data); id != nil {
		device = fmt.Sprintf("device %s is to be deleted by hand, unless another pod has it", id[1])
	}
	aside, err := SetAside(dir)
	if err != nil {
		return fmt.Errorf("setting the pod's state aside: %w", Remedy(err))
	}
	return fmt.Errorf("the pod's state was set aside as %s; %s", aside, device)
}

// LoadCopied returns the records of what was set aside as a copy, as far as they
// can be read.
func LoadCopied(stateDir string) (records []Record) {
	dirs, _ := filepath.Glob(filepath.Join(stateDir, "*"+CopiedExt+"*")) // the pattern is a good one
	for _, dir := range dirs {
		var r Record
		data, err := os.ReadFile(filepath.Join(dir, RecordFile))
		if err == nil && json.Unmarshal(data, &r) == nil {
			records = append(records, r)
		}
	}
	return records
}
