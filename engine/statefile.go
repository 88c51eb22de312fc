// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"tailscale.com/ipn"
	"tailscale.com/ipn/store"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
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
func ensureNodeKey(state ipn.StateStore, lockKey func(key.MachinePublic) key.NLPrivate) error {
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
	return errors.Join(
		state.WriteState(ipn.MachineKeyStateKey, machineText),
		state.WriteState(profileKey, p.ToBytes()),
		state.WriteState(ipn.KnownProfilesStateKey, profiles),
		state.WriteState(ipn.CurrentProfileStateKey, []byte(profileKey)),
	)
}

// keys are a node's public keys, zero where there is none.
type keys struct {
	node    key.NodePublic
	machine key.MachinePublic
}

// storedKeys returns the keys of the state in a file, if there is one.
func storedKeys(path string, logf logger.Logf) (k keys, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	state, err := store.NewFileStore(logf, path)
	if err != nil {
		return k, fmt.Errorf("opening the node's state %s: %w", path, err)
	}
	p, err := currentPrefs(state)
	if err != nil {
		return k, err
	}
	if p.Persist != nil {
		k.node = p.Persist.PublicNodeKey()
	}
	text, err := state.ReadState(ipn.MachineKeyStateKey)
	switch {
	case errors.Is(err, ipn.ErrStateNotExist):
		return k, nil
	case err != nil:
		return k, err
	}
	var machine key.MachinePrivate
	if err := machine.UnmarshalText(text); err != nil {
		return k, fmt.Errorf("reading the machine key in %s: %w", path, err)
	}
	k.machine = machine.Public()
	return k, nil
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
