// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"
	"tailscale.com/ipn"
	"tailscale.com/ipn/store/mem"
	"tailscale.com/types/key"
	"tailscale.com/types/persist"
)

// ensureNodeKey gives a fresh state its node key.
//
// Left to itself a backend makes a new key for each attempt to log in, and
// stores it when one has succeeded. If the answer to an attempt is lost, or
// this process is killed meanwhile, that leaves a device in the tailnet that
// nobody knows the name of, and a single-use auth key that is spent. With a
// key on disk beforehand, all attempts are of one and the same device, which
// can be found by its key.
//
// The state gets what a backend would have stored after a first login
// (ipn/ipnlocal/profiles.go): one profile, which is the current one, and its
// preferences. So does the machine key, since the lock key is made from it: see
// [tailnet.Tailnet].
func ensureNodeKey(state *stateStore, lockKey func(key.MachinePublic) key.NLPrivate) error {
	p, err := currentPrefs(state)
	if err != nil {
		return err
	}
	if p.Persist != nil && !p.Persist.PrivateNodeKey.IsZero() {
		return nil
	}
	machine := key.NewMachine()
	machineText, err := machine.MarshalText()
	if err != nil {
		return err
	}
	p.Persist = &persist.Persist{PrivateNodeKey: key.NewNode(), NetworkLockKey: lockKey(machine.Public())}
	const id, profileKey = "0001", "profile-0001"
	profiles, err := json.Marshal(map[ipn.ProfileID]ipn.LoginProfile{id: {ID: id, Key: profileKey}})
	if err != nil {
		return err
	}
	return state.writeStates(map[ipn.StateKey][]byte{
		ipn.MachineKeyStateKey:     machineText,
		profileKey:                 p.ToBytes(),
		ipn.KnownProfilesStateKey:  profiles,
		ipn.CurrentProfileStateKey: []byte(profileKey),
	})
}

// errDamaged is of a file of ours that nothing can be made of.
var errDamaged = errors.New("is damaged")

// keys are a node's public keys, zero where there is none.
type keys struct {
	node    key.NodePublic
	machine key.MachinePublic
	// workload says that they are a workload's, whose device outlives the pod.
	workload bool
}

// storedKeys returns the keys of the state in a file, if there is one. The error
// wraps errDamaged if no backend could use the state; any other says nothing
// about it.
func storedKeys(path string) (keys, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return keys{}, nil
	}
	if err != nil {
		return keys{}, fmt.Errorf("reading the node's state: %w", err)
	}
	k, err := parseState(data)
	if err != nil {
		return keys{}, fmt.Errorf("%s %w: %w", path, errDamaged, err)
	}
	return k, nil
}

// parseState reads a state as a backend does at its start, and returns an error
// where one would fail, forever, or forget its node.
func parseState(data []byte) (keys, error) {
	var values map[string][]byte
	if err := json.Unmarshal(data, &values); err != nil {
		return keys{}, err
	}
	if values == nil {
		return keys{}, errors.New("it is empty") // "null", which a FileStore reads and cannot write to
	}
	var state mem.Store
	state.LoadFromMap(values)
	machine, err := machineKeyIn(&state)
	if err != nil {
		return keys{}, err
	}
	p, err := currentPrefs(&state)
	if err != nil {
		return keys{}, err
	}
	if err := checkProfiles(&state); err != nil {
		return keys{}, err
	}
	k := keys{machine: machine, workload: values[workloadMark] != nil}
	if p.Persist != nil && !p.Persist.PrivateNodeKey.IsZero() {
		k.node = p.Persist.PublicNodeKey()
	}
	return k, nil
}

// machineKeyIn returns the zero key for a state that has none yet.
func machineKeyIn(state ipn.StateStore) (none key.MachinePublic, err error) {
	text, err := state.ReadState(ipn.MachineKeyStateKey)
	if errors.Is(err, ipn.ErrStateNotExist) {
		return none, nil
	}
	var k key.MachinePrivate
	if err == nil {
		err = k.UnmarshalText(text)
	}
	if err != nil {
		return none, fmt.Errorf("machine key: %w", err)
	}
	if k.IsZero() {
		return none, errors.New("the machine key is zero")
	}
	return k.Public(), nil
}

// checkProfiles looks for the current profile among those that are known.
func checkProfiles(state ipn.StateStore) error {
	profiles := map[ipn.ProfileID]*ipn.LoginProfile{}
	data, err := state.ReadState(ipn.KnownProfilesStateKey)
	if err == nil {
		err = json.Unmarshal(data, &profiles)
	}
	if err != nil && !errors.Is(err, ipn.ErrStateNotExist) {
		return fmt.Errorf("profiles: %w", err)
	}
	current, err := state.ReadState(ipn.CurrentProfileStateKey)
	found := errors.Is(err, ipn.ErrStateNotExist) || len(current) == 0
	for id, p := range profiles {
		if p == nil || p.ID != id {
			return fmt.Errorf("profile %q is stored under another name", id)
		}
		found = found || p.Key == ipn.StateKey(current)
	}
	if !found {
		return fmt.Errorf("there is no profile %q", current)
	}
	return nil
}

// mendState sets the node's state aside if no backend could use it, and notes
// in the record that the node is to register again if its key is lost: what it
// was is one of its former devices then, which are deleted in time. It reports
// whether the node has a key.
func (n *node) mendState() (keyed bool, err error) {
	r := n.record()
	k, err := storedKeys(n.statePath())
	switch {
	case err == nil && (!k.node.IsZero() || r.NodeID == "" || r.Forgotten):
		return !k.node.IsZero(), nil
	case err == nil:
		err = fmt.Errorf("%s holds no node key", n.statePath())
	case !errors.Is(err, errDamaged):
		return false, err
	}
	var aside string
	asideErr := n.e.take(stepState, func() (err error) {
		aside, err = setAside(n.statePath())
		return err
	})
	switch {
	case asideErr == nil:
		err = fmt.Errorf("%w; it was set aside as %s", err, aside)
	case !errors.Is(asideErr, fs.ErrNotExist):
		return false, fmt.Errorf("%w; setting it aside: %w", err, remedy(asideErr))
	}
	if r.NodeID == "" {
		n.log().Error("the node's key is lost, the node gets a new one; which device it was is not known here", "err", err)
		return false, nil
	}
	n.log().Error("the node's key is lost, the node registers again; its device is deleted with the pod at the latest",
		"err", err, "nodeID", r.NodeID)
	n.update(func(r *record) {
		if !slices.Contains(r.Former, r.NodeID) {
			r.Former = append(r.Former, r.NodeID)
		}
		r.NodeID = ""
	})
	n.setNodeID("")
	return false, nil
}

// damagedExt ends the names of what was set aside; the second of a name gets a
// number, too.
const damagedExt = ".damaged"

// copiedExt ends the names of what was set aside because another machine uses it.
const copiedExt = ".copied"

var isSetAside = regexp.MustCompile(`\.(damaged|copied)(-[0-9]+)?$`).MatchString

// setAside renames a file or directory that nothing can be made of, and returns
// its new path. What was set aside before stays.
func setAside(path string) (string, error) { return setAsideAs(path, damagedExt) }

func setAsideAs(path, ext string) (string, error) {
	to, err := freeName(path, ext)
	if err != nil {
		return "", err
	}
	return to, os.Rename(path, to)
}

func freeName(path, ext string) (string, error) {
	for i := 1; ; i++ {
		to := path + ext
		if i > 1 {
			to = fmt.Sprintf("%s-%d", to, i)
		}
		_, err := os.Lstat(to)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return to, nil
		case err != nil:
			return "", err
		}
	}
}

// checkWritable returns why nothing can be written to the directory, nil if it
// can be.
func checkWritable(dir string) error {
	probe := filepath.Join(dir, ".writable")
	err := os.WriteFile(probe, []byte("x"), 0o600) // a full disk takes empty files
	if removeErr := os.Remove(probe); err == nil {
		err = removeErr
	}
	return remedy(err)
}

// remedy says what is to be done about an error of writing.
func remedy(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: free space on this node's disk", err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: make it writable; if it was, the kernel's log says why it no longer is", err)
	}
	return err
}

// currentPrefs returns the preferences that a backend on this state would
// begin with.
func currentPrefs(state ipn.StateStore) (*ipn.Prefs, error) {
	p := ipn.NewPrefs()
	current, err := state.ReadState(ipn.CurrentProfileStateKey)
	var data []byte
	if err == nil {
		data, err = state.ReadState(ipn.StateKey(current))
	}
	switch {
	case errors.Is(err, ipn.ErrStateNotExist):
		return p, nil
	case err != nil:
		return nil, err
	}
	return p, ipn.PrefsFromBytes(data, p)
}
