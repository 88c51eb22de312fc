// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"time"

	"tailscale.com/tstime"

	"tailscale-nri/engine/internal/podstate"
)

// A host that was rebooted and a copy of one look the same: a state directory that
// another boot has used, and devices that may look connected for a while. What differs is
// for how long nobody has used that directory: a reboot takes minutes. The limit is
// longer than a device can look connected. If a host lost power, Headscale notices only
// when the kernel of its own host ends the connection, which takes up to 16 minutes with
// data under way (tcp_retries2), and the file is up to servedEvery old.
const (
	servedEvery = 5 * time.Minute
	rebootTakes = 30 * time.Minute
)

// cameBack reports whether this host is the one that used the state directory
// before this boot, as far as the time tells: it has then just been rebooted.
func (e *Engine) cameBack() bool { return e.served.Away < cmp.Or(e.cfg.rebootTakes, rebootTakes) }

// keepServed says on disk, until ctx is done, that the state directory is in use.
// A failure costs no more than that a copy may be taken for a reboot.
func (e *Engine) keepServed(ctx context.Context) {
	last := ""
	say := func() {
		e.served.At = time.Now()
		if err := podstate.SaveServed(e.cfg.StateDir, e.served); err != nil && err.Error() != last {
			last = err.Error()
			e.log.Debug("saying on disk that the state directory is in use", "err", err)
		}
	}
	for say(); tstime.Sleep(ctx, servedEvery); say() {
	}
	say() // a reboot begins now, perhaps
}

// tidy leaves nothing on disk where there is no node whose keys could be copied:
// who uninstalls the program finds an empty directory.
func (e *Engine) tidy() {
	if len(e.snapshot()) == 0 {
		podstate.RemoveServed(e.cfg.StateDir)
	}
}
