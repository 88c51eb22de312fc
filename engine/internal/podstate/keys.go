// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"tailscale.com/ipn"
	"tailscale.com/ipn/store/mem"
	"tailscale.com/types/key"
	"tailscale.com/types/persist"
)

// EnsureNodeKey gives a fresh state its node key.
//
// Left to itself a backend makes a new key for each attempt to log in, and stores it when
// one has succeeded. If the answer to an attempt is lost, or this process is killed
// meanwhile, a device whose name is not known stays in the tailnet, and a single-use auth
// key is used up. With a key on disk beforehand, all attempts are of one and the same
// device, which can be found by its key.
//
// The state gets what a backend would have stored after a first login
// (ipn/ipnlocal/profiles.go): one profile, which is the current one, and its
// preferences. It gets the machine key too, since lockKey makes the lock key from it.
func EnsureNodeKey(state *Store, lockKey func(key.MachinePublic) key.NLPrivate) error {
	p, err := CurrentPrefs(state)
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

// ErrDamaged is the error of a file that cannot be read as what it is.
var ErrDamaged = errors.New("is damaged")

// Keys are a node's public keys, zero where there is none.
type Keys struct {
	Node    key.NodePublic
	Machine key.MachinePublic
	// Workload says that they are a workload's, whose device outlives the pod.
	Workload bool
}

// StoredKeys returns the keys of the state in a file, if there is one. The error
// wraps ErrDamaged if no backend could use the state; any other says nothing
// about it.
func StoredKeys(path string) (Keys, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Keys{}, nil
	}
	if err != nil {
		return Keys{}, fmt.Errorf("reading the node's state: %w", err)
	}
	k, err := ParseKeys(data)
	if err != nil {
		return Keys{}, fmt.Errorf("%s %w: %w", path, ErrDamaged, err)
	}
	return k, nil
}

// ParseKeys reads a state as a backend does at its start, and returns an error
// where one would fail, forever, or forget its node.
func ParseKeys(data []byte) (Keys, error) {
	var values map[string][]byte
	if err := json.Unmarshal(data, &values); err != nil {
		return Keys{}, err
	}
	if values == nil {
		return Keys{}, errors.New("it is empty") // "null", which a FileStore reads and cannot write to
	}
	var state mem.Store
	state.LoadFromMap(values)
	machine, err := machineKeyIn(&state)
	if err != nil {
		return Keys{}, err
	}
	p, err := CurrentPrefs(&state)
	if err != nil {
		return Keys{}, err
	}
	if err := checkProfiles(&state); err != nil {
		return Keys{}, err
	}
	k := Keys{Machine: machine, Workload: values[workloadMark] != nil}
	if p.Persist != nil && !p.Persist.PrivateNodeKey.IsZero() {
		k.Node = p.Persist.PublicNodeKey()
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

// CurrentPrefs returns the preferences that a backend on this state would
// begin with.
func CurrentPrefs(state ipn.StateStore) (*ipn.Prefs, error) {
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
