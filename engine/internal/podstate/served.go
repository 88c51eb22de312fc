// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"
)

// ServedFile is the name of Served in the state directory.
const ServedFile = "served.json"

// Served is the file that says when the state directory was last used. A copy of
// the directory has it, too.
type Served struct {
	HostBoot string    `json:"machine"` // the host, in one of its boots: see podnet.HostBoot
	At       time.Time `json:"at"`      // when the host last wrote it
	// Away is for how long the directory had not been used when that boot began; 0
	// if that is not known.
	Away time.Duration `json:"away"`
}

// LoadServed reads the file. One that cannot be read, or says what cannot be, is
// treated as that of a host that was never away.
func LoadServed(stateDir, hostBoot string) Served {
	var s Served
	data, err := os.ReadFile(filepath.Join(stateDir, ServedFile))
	if err != nil || json.Unmarshal(data, &s) != nil {
		s = Served{}
	}
	if s.HostBoot != hostBoot {
		away := time.Since(s.At)
		if s.At.IsZero() || away < 0 {
			away = 0
		}
		s = Served{HostBoot: hostBoot, Away: away}
	}
	return s
}

// SaveServed writes the file.
func SaveServed(stateDir string, s Served) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return ReplaceFile(filepath.Join(stateDir, ServedFile), data)
}

// RemoveServed removes the file, and what a process that was killed has left half
// written of it.
func RemoveServed(stateDir string) {
	file := filepath.Join(stateDir, ServedFile)
	os.Remove(file)
	os.Remove(file + ".new") // see ReplaceFile
}
