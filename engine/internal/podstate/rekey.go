// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"encoding/json"
	"fmt"

	"tailscale.com/ipn"
	"tailscale.com/types/key"
)

// workloadMark is in the state of each workload's node: even if the record next to it
// is lost, its device is not to be deleted with the pod. A backend leaves keys alone
// that it does not know.
const workloadMark = "_tailscale-nri-workload"

// Rekey returns a state with an unused node key, which is to replace the one in the
// given state. For an empty state, it has a machine key of its own as well. registered
// says that the control plane knows the key in state.
func Rekey(state []byte, registered bool, lockKey func(key.MachinePublic) key.NLPrivate) ([]byte, error) {
	s := &Store{
		values: map[ipn.StateKey][]byte{},
		// It stays in memory.
		take:    func(func() error) error { return nil },
		written: func(int) {},
	}
	defer s.stopSync()
	if len(state) == 0 {
		s.values[workloadMark] = []byte("true")
		if err := EnsureNodeKey(s, lockKey); err != nil {
			return nil, err
		}
		return s.encode()
	}
	if _, err := ParseKeys(state); err != nil {
		return nil, fmt.Errorf("the stored identity's state %w: %w", ErrDamaged, err)
	}
	if err := json.Unmarshal(state, &s.values); err != nil {
		return nil, err
	}
	p, err := CurrentPrefs(s)
	if err != nil {
		return nil, err
	}
	if p.Persist == nil || p.Persist.PrivateNodeKey.IsZero() {
		return nil, fmt.Errorf("the stored identity's state %w: it holds no node key", ErrDamaged)
	}
	// The control plane is told the key that it knows. Where it knows neither, it goes
	// by the machine key.
	if registered || p.Persist.OldPrivateNodeKey.IsZero() {
		p.Persist.OldPrivateNodeKey = p.Persist.PrivateNodeKey
	}
	p.Persist.PrivateNodeKey = key.NewNode()
	current, err := s.ReadState(ipn.CurrentProfileStateKey)
	if err != nil {
		return nil, err
	}
	s.values[ipn.StateKey(current)] = p.ToBytes()
	return s.encode()
}
