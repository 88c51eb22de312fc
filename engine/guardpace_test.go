// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"
)

// Whatever a pod does to its ts0, its guard has a bounded number of looks and of lines
// in the log, also if nothing was missing and if restoring does not help.
func TestGuardIsBounded(t *testing.T) {
	var p pace
	start := time.Now()
	for i := range looksAtOnce {
		if pause, _ := p.pause(start); pause != settleChanges {
			t.Fatalf("look %d waits %v", i, pause)
		}
		p.looked.note(start, restless)
	}
	if pause, restored := p.pause(start); pause != slowRestore || restored != 0 {
		t.Errorf("after %d looks within a minute the next waits %v, with %d restorations", looksAtOnce, pause, restored)
	}
	if pause, _ := p.pause(start.Add(restless + 1)); pause != settleChanges {
		t.Errorf("after a quiet minute a look waits %v", pause)
	}

	var log logBuffer
	n := &node{}
	n.logger.Store(slog.New(slog.NewTextHandler(&log, nil)))
	for i := range 10 * linesPerHour {
		n.logRestored(&p, 1, []string{"routes"}, 0)
		n.cannotRestore(&p, fmt.Errorf("renaming vpn%d: %w", i, errors.ErrUnsupported))
	}
	if lines := log.count("level="); lines != linesPerHour {
		t.Errorf("%d lines in the log", lines)
	}
	if c := log.count("no more of this within the hour"); c != 1 {
		t.Errorf("the end of the lines is said %d times", c)
	}
}
