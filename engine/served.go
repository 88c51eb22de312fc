// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"tailscale.com/tstime"
)

// A machine that was rebooted and a copy of one look the same: a state directory
// that another boot has used, and devices that may look connected for a while. What
// differs is for how long nobody has used that directory: a reboot takes minutes. It
// is longer than a device can look connected: where a machine lost power, Linux ends
// a connection with data under way after up to 16 minutes (tcp_retries2), which
// Headscale does not notice before, and the file is up to servedEvery old.
const (
	servedFile  = "served.json"
	servedEvery = 5 * time.Minute
	rebootTakes = 30 * time.Minute
)

// served is the file that says when the state directory was last used. A copy of
// the directory has it, too.
type served struct {
	Machine string    `json:"machine"` // in one of its boots: see podnet.Machine
	At      time.Time `json:"at"`      // as that machine has last said
	// Away is for how long nobody had used the directory when that boot began; 0
	// where nobody knows.
	Away time.Duration `json:"away"`
}

// loadServed reads the file. One that cannot be read, or says what cannot be, is
// one of a machine that was never away.
func loadServed(stateDir, machine string) served {
	var s served
	data, err := os.ReadFile(filepath.Join(stateDir, servedFile))
	if err != nil || json.Unmarshal(data, &s) != nil {
		s = served{}
	}
	if s.Machine != machine {
		away := time.Since(s.At)
		if s.At.IsZero() || away < 0 {
			away = 0
		}
		s = served{Machine: machine, Away: away}
	}
	return s
}

// cameBack reports whether this machine is the one that used the state directory
// before this boot, as far as the time tells: it has then just been rebooted.
func (e *Engine) cameBack() bool { return e.served.Away < cmp.Or(e.cfg.rebootTakes, rebootTakes) }

// keepServed says on disk, until ctx is done, that the state directory is in use.
// A failure costs no more than that a copy may be taken for a reboot.
func (e *Engine) keepServed(ctx context.Context) {
	last := ""
	say := func() {
		e.served.At = time.Now()
		data, err := json.Marshal(e.served)
		if err == nil {
			err = replaceFile(filepath.Join(e.cfg.StateDir, servedFile), data)
		}
		if err != nil && err.Error() != last {
			last = err.Error()
			e.log.Debug("saying on disk that the state directory is in use", "err", err)
		}
	}
	for say(); tstime.Sleep(ctx, servedEvery); say() {
	}
	say() // a reboot begins now, perhaps
}

// tidy leaves nothing on disk where there is no node whose keys could be copied:
// whoever uninstalls the program finds an empty directory.
func (e *Engine) tidy() {
	if len(e.snapshot()) == 0 {
		file := filepath.Join(e.cfg.StateDir, servedFile)
		os.Remove(file)
		os.Remove(file + ".new") // of a process that was killed: see replaceFile
	}
}
